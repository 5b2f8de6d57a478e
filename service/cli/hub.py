"""Checkpoints from a model hub. The only file that imports `huggingface_hub`."""

import re
from pathlib import Path

from service.errors import CheckpointError

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


def locate_checkpoint(name: str) -> Path:
    """The folder of a checkpoint: `name` itself when it is one, else a hub repository's files, downloaded once.

    A hub id is `owner/name`; `HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` are the hub client's own.
    Raises CheckpointError when there is neither.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or not _HUB_ID.match(name):
        raise CheckpointError(
            f"{name} is no folder: `notegrade-train assemble --out {name}` makes a checkpoint there"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{name} is no folder here, and the hub did not give it: {reason}") from error
