from pathlib import Path

import pytest

from service.cli.hub import locate_checkpoint
from service.errors import CheckpointError


def test_a_folder_is_used_as_it_is(tmp_path: Path) -> None:
    assert locate_checkpoint(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["no/such/folder", "nowhere", "/absolutely/not"])
def test_a_name_that_is_neither_folder_nor_hub_id_is_an_error_with_advice(name: str) -> None:
    with pytest.raises(CheckpointError, match="`notegrade-train assemble --out"):
        locate_checkpoint(name)


def test_a_hub_id_is_found_in_the_hub_client_s_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    repository = tmp_path / "models--owner--student"
    snapshot = repository / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123", encoding="utf-8")
    (snapshot / "manifest.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate_checkpoint("owner/student") == snapshot
    with pytest.raises(CheckpointError, match="could not be downloaded from the hub") as caught:
        locate_checkpoint("owner/other")
    assert "\n" not in str(caught.value)
