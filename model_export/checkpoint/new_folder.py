"""A folder that appears whole or not at all."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from service.contract.manifest import MANIFEST_NAME
from service.errors import NotegradeError


class FolderExistsError(NotegradeError):
    """The place where a folder should go is taken."""


@contextlib.contextmanager
def new_folder(out: Path, *, force: bool = False) -> Iterator[Path]:
    """A hidden sibling folder to write into, which becomes `out` when the block ends well and goes when it doesn't.

    With `force` an older checkpoint at `out` is replaced; anything else that lies there never is.
    Raises FolderExistsError, before the block where it can.
    """
    _check_place(out, force)
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.partial-{uuid4().hex[:8]}"
    try:
        # Inside, so that a signal which ends the run right after it finds the way out below.
        partial.mkdir()
        yield partial
        _open_to_readers(partial)
        _check_place(out, force)
        _put(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_place(out: Path, force: bool) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise FolderExistsError(f"{out} exists and is no folder of its own")
    if not any(out.iterdir()):
        return
    if not force:
        raise FolderExistsError(f"{out} exists: choose another folder, or replace it with --force")
    if not (out / MANIFEST_NAME).is_file():
        # A slip of the hand (`--out ~ --force`) must not cost more than a checkpoint.
        raise FolderExistsError(
            f"{out} is no checkpoint (it has no {MANIFEST_NAME}): --force won't replace it"
        )


def _open_to_readers(folder: Path) -> None:
    # safetensors writes files that their owner alone can read; a server often runs as somebody else.
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(path.stat().st_mode | 0o444)


def _put(partial: Path, out: Path) -> None:
    """Rename into place; what lay there goes only after that, and comes back if it fails."""
    old = partial.with_name(partial.name.replace(".partial-", ".old-"))
    if out.exists():
        out.rename(old)
    try:
        partial.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
