from pathlib import Path

import pytest

from model_export.checkpoint.new_folder import FolderExistsError, new_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def checkpoint(folder: Path, content: str) -> Path:
    folder.mkdir()
    (folder / "manifest.json").write_text(content)
    return folder


def test_folder_appears_only_when_complete(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with new_folder(out) as partial:
        (partial / "file").touch()
        assert not out.exists()
        assert partial.parent == out.parent  # the same file system, so the rename is atomic
    assert names(out) == ["file"]
    assert names(out.parent) == ["out"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_nothing(failure: type[BaseException], tmp_path: Path) -> None:
    def write_half() -> None:
        with new_folder(tmp_path / "out") as partial:
            (partial / "file").touch()
            raise failure

    with pytest.raises(failure):
        write_half()
    assert names(tmp_path) == []


def test_failure_with_force_keeps_the_old_folder(tmp_path: Path) -> None:
    out = checkpoint(tmp_path / "out", "old")
    with pytest.raises(ValueError, match="torn"), new_folder(out, force=True):
        raise ValueError("torn")
    assert (out / "manifest.json").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_force_replaces_the_whole_folder(tmp_path: Path) -> None:
    out = checkpoint(tmp_path / "out", "old")
    with new_folder(out, force=True) as partial:
        (partial / "new").touch()
    assert names(out) == ["new"]
    assert names(tmp_path) == ["out"]


def test_failed_rename_restores_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = checkpoint(tmp_path / "out", "old")
    rename = Path.rename

    def fail_on_partial(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError("disk gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_on_partial)
    with pytest.raises(OSError, match="disk gone"), new_folder(out, force=True):
        pass
    assert names(tmp_path) == ["out"]
    assert (out / "manifest.json").read_text() == "old"


def test_force_replaces_only_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(FolderExistsError, match="is not a checkpoint"), new_folder(tmp_path, force=True):
        pass
    assert names(tmp_path) == ["thesis.txt"]


def test_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as partial:
        (partial / "file").touch()
    assert names(tmp_path / "out") == ["file"]


@pytest.mark.parametrize("force", [False, True])
def test_file_or_link_is_never_replaced(force: bool, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    checkpoint(tmp_path / "checkpoint", "old")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "link").symlink_to(tmp_path / "checkpoint")
    for name in ("file", "dangling", "link"):
        with (
            pytest.raises(FolderExistsError, match="is not a folder"),
            new_folder(tmp_path / name, force=force),
        ):
            pass
    assert names(tmp_path) == ["checkpoint", "dangling", "file", "link"]


def test_folder_created_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(FolderExistsError), new_folder(out):
        checkpoint(out, "other")
    assert (out / "manifest.json").read_text() == "other"
    assert names(tmp_path) == ["out"]
