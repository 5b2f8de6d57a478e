import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from model_export.checkpoint.adapter import (
    CONFIG_NAME,
    DEFAULT_ADAPTER,
    DESCRIPTION_NAME,
    WEIGHTS_NAME,
    AdapterError,
    Factors,
    check_is_of,
    merge,
    note_test_figures,
    read_description,
    read_factors,
)
from model_export.models.base_model import load_base, locate_base
from service.contract.probes import PROBES_NAME
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


def test_description_round_trips_with_file_hashes(adapter: Path) -> None:
    found = read_description(adapter)
    assert set(found.files) == {WEIGHTS_NAME, CONFIG_NAME, PROBES_NAME}
    assert found.model_copy(update={"files": {}}) == describe()


def test_test_figures_are_noted_and_nothing_else_changes(adapter: Path) -> None:
    rows = (("test pairs", "system"), ("all: 8", "student"))
    note_test_figures(adapter, rows)
    found = read_description(adapter)
    assert found.training.test == rows
    training = found.training.model_copy(update={"test": ()})
    assert found.model_copy(update={"files": {}, "training": training}) == describe()


def test_adapter_of_another_checkpoint_is_refused(adapter: Path) -> None:
    check_is_of(adapter, describe().name)
    with pytest.raises(AdapterError, match=r"is the adapter of .+, not of another"):
        check_is_of(adapter, "another")


def flip_a_bit(adapter: Path) -> None:
    content = bytearray((adapter / WEIGHTS_NAME).read_bytes())
    content[-1] ^= 1
    (adapter / WEIGHTS_NAME).write_bytes(content)


def set_rank_to_zero(adapter: Path) -> None:
    data = json.loads((adapter / DESCRIPTION_NAME).read_text(encoding="utf-8"))
    (adapter / DESCRIPTION_NAME).write_text(json.dumps({**data, "rank": 0}), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (flip_a_bit, rf"{WEIGHTS_NAME} differs from the one in {DESCRIPTION_NAME}"),
        (set_rank_to_zero, r"adapter\.json is not valid: rank: "),
        *(
            (partial(lambda adapter, name: (adapter / name).unlink(), name=name), rf"incomplete .*{name}")
            for name in (WEIGHTS_NAME, CONFIG_NAME, PROBES_NAME, DESCRIPTION_NAME)
        ),
    ],
)
def test_damaged_adapter_is_refused(
    damage: Callable[[Path], None], complaint: str, adapter: Path, tmp_path: Path
) -> None:
    damaged = shutil.copytree(adapter, tmp_path / "adapter")
    damage(damaged)
    with pytest.raises(AdapterError, match=complaint):
        read_description(damaged)


def test_adapter_with_another_alpha_than_rank_is_refused(adapter: Path, tmp_path: Path) -> None:
    config = json.loads((adapter / CONFIG_NAME).read_text(encoding="utf-8"))
    (tmp_path / CONFIG_NAME).write_text(json.dumps({**config, "lora_alpha": 2 * RANK}), encoding="utf-8")
    with pytest.raises(AdapterError, match="only adapters with equal values"):
        read_factors(tmp_path)


def test_packaged_adapter_is_complete_and_small() -> None:
    assert read_description(DEFAULT_ADAPTER).base.startswith("SmolLM2-135M-Instruct")
    assert (DEFAULT_ADAPTER / WEIGHTS_NAME).stat().st_size <= 10_000_000
