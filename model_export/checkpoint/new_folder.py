"""Writes a folder atomically: it appears complete or not at all."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from service.contract.manifest import MANIFEST_NAME
from service.errors import NotegradeError


class FolderExistsError(NotegradeError):
    """The output path is already taken."""


@contextlib.contextmanager
def new_folder(out: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a hidden sibling folder to write into; it becomes `out` on success and is deleted on failure.

    `force` replaces an older checkpoint at `out`, and never anything else.
    Raises FolderExistsError, if possible before the block runs.
    """
    _check_place(out, force)
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.partial-{uuid4().hex[:8]}"
    try:
        # Inside `try`, so that the folder is deleted even if a signal arrives right after mkdir.
        partial.mkdir()
        yield partial
        _make_readable(partial)
        _check_place(out, force)
        _move(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_place(out: Path, force: bool) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise FolderExistsError(f"{out} exists and is not a folder (a link is not followed)")
    if not any(out.iterdir()):
        return
    if not force:
        raise FolderExistsError(f"{out} exists: choose another folder, or pass --force to replace it")
    if not (out / MANIFEST_NAME).is_file():
        # A typing error such as `--out ~ --force` must not delete anything but a checkpoint.
        raise FolderExistsError(
            f"{out} is not a checkpoint (it has no {MANIFEST_NAME}): --force does not replace it"
        )


def _make_readable(folder: Path) -> None:
    # safetensors writes files that only their owner can read; a server often runs as another user.
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(path.stat().st_mode | 0o444)


def _move(partial: Path, out: Path) -> None:
    """Rename into place; the old folder is deleted after that, and restored if the rename fails."""
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
