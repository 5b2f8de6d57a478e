"""Download checkpoints from a model hub. The only file that imports `huggingface_hub`."""

import re
from pathlib import Path

from service.errors import CheckpointError

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


def locate_checkpoint(name: str) -> Path:
    """Return the folder of a checkpoint: `name` if it is a folder, else the files of that hub repository, downloaded once.

    A hub id is `owner/name`; `HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` configure the hub's client.
    Raises CheckpointError if neither exists.
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
        raise CheckpointError(
            f"{name} is no folder here, and could not be downloaded from the hub: {reason}"
        ) from error
