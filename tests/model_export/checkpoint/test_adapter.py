import json
from pathlib import Path
from typing import Any

import pytest

from model_export.checkpoint.adapter import (
    CONFIG_NAME,
    DESCRIPTION_NAME,
    WEIGHTS_NAME,
    AdapterError,
    Factors,
    default_adapter,
    merge,
    read_description,
    read_factors,
    write_factors,
)
from model_export.models.base_model import load_base, locate_base
from tests.tiny_adapter import RANK, describe, make_adapter

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a complete adapter; tests must not change it."""
    return make_adapter(tiny_base, tmp_path_factory.mktemp("adapters") / "adapter")


def state(folder: Path) -> dict[str, Any]:
    return dict(load_base(locate_base(str(folder))).model.state_dict())


def test_peft_merges_to_the_same_weights(tiny_base: Path, adapter: Path) -> None:
    from peft import PeftModel

    loaded = load_base(locate_base(str(tiny_base)))
    merge(loaded, read_factors(adapter))
    peft = PeftModel.from_pretrained(load_base(locate_base(str(tiny_base))).model, str(adapter))
    expected = peft.merge_and_unload().state_dict()
    ours = loaded.model.state_dict()
    assert ours.keys() == expected.keys()
    assert all(float((ours[name] - expected[name]).abs().max()) < 1e-6 for name in ours)
    assert not ours[Q_PROJ].equal(state(tiny_base)[Q_PROJ])


def test_merge_refuses_an_adapter_of_another_shape(tiny_base: Path) -> None:
    import torch

    loaded = load_base(locate_base(str(tiny_base)))
    factors: Factors = {Q_PROJ: (torch.ones(128, 2), torch.ones(2, 64))}
    with pytest.raises(AdapterError, match=rf"base tiny-base, which has no {Q_PROJ} of 128 x 64"):
        merge(loaded, factors)


def test_adapter_of_the_default_base_and_rank_is_under_ten_megabytes(tmp_path: Path) -> None:
    import torch

    hidden, kv, inter, rank = 576, 192, 1536, 16
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inter, hidden),
        "mlp.up_proj": (inter, hidden),
        "mlp.down_proj": (hidden, inter),
    }
    factors = {
        f"model.layers.{layer}.{name}.weight": (
            torch.zeros(out, rank, dtype=torch.bfloat16),
            torch.zeros(rank, into, dtype=torch.bfloat16),
        )
        for layer in range(30)
        for name, (out, into) in shapes.items()
    }
    write_factors(tmp_path, factors, rank, base="SmolLM2-135M-Instruct")
    assert (tmp_path / WEIGHTS_NAME).stat().st_size <= 10_000_000


def test_description_round_trips_with_file_hashes(adapter: Path) -> None:
    found = read_description(adapter)
    assert set(found.files) == {WEIGHTS_NAME, CONFIG_NAME}
    assert found.model_copy(update={"files": {}}) == describe()


def test_changed_weights_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_base, tmp_path / "adapter")
    content = bytearray((adapter / WEIGHTS_NAME).read_bytes())
    content[-1] ^= 1
    (adapter / WEIGHTS_NAME).write_bytes(content)
    with pytest.raises(AdapterError, match=rf"{WEIGHTS_NAME} differs from the one in {DESCRIPTION_NAME}"):
        read_description(adapter)


@pytest.mark.parametrize("missing", [WEIGHTS_NAME, CONFIG_NAME, DESCRIPTION_NAME])
def test_missing_file_is_named(missing: str, tiny_base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_base, tmp_path / "adapter")
    (adapter / missing).unlink()
    with pytest.raises(AdapterError, match=rf"an incomplete adapter: .*{missing}"):
        read_description(adapter)


def test_invalid_description_gives_a_one_line_error(tiny_base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_base, tmp_path / "adapter")
    data = json.loads((adapter / DESCRIPTION_NAME).read_text(encoding="utf-8"))
    (adapter / DESCRIPTION_NAME).write_text(json.dumps({**data, "rank": 0}), encoding="utf-8")
    with pytest.raises(AdapterError, match=r"adapter\.json is not valid: rank: "):
        read_description(adapter)


def test_adapter_with_another_alpha_than_rank_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_base, tmp_path / "adapter")
    config = json.loads((adapter / CONFIG_NAME).read_text(encoding="utf-8"))
    (adapter / CONFIG_NAME).write_text(json.dumps({**config, "lora_alpha": 2 * RANK}), encoding="utf-8")
    with pytest.raises(AdapterError, match="only adapters with equal values"):
        read_factors(adapter)


def test_packaged_adapter_is_complete() -> None:
    folder = default_adapter()
    assert folder is None or read_description(folder).base.startswith("SmolLM2-135M-Instruct")
