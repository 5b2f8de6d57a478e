from pathlib import Path
from typing import Any

import pytest
import torch

from model_export.checkpoint.adapter import CONFIG_NAME, WEIGHTS_NAME, AdapterError, merge_folder
from model_export.checkpoint.extract_lora import (
    changed_linears,
    extract_lora,
    factor_differences,
    input_moments,
)
from model_export.models.base_model import load_base, locate_base
from tests.tiny_adapter import RANK, ROWS, make_tuned

W = "a_proj.weight"


@pytest.fixture(scope="module")
def tuned(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tuned(tiny_base, tmp_path_factory.mktemp("tuned") / "tuned")


def state(folder: Path) -> dict[str, Any]:
    return dict(load_base(locate_base(str(folder))).model.state_dict())


def test_low_rank_difference_is_fully_recovered(tiny_base: Path, tuned: Path, tmp_path: Path) -> None:
    energy_kept = extract_lora(str(tiny_base), tuned, tmp_path / "adapter", RANK, ROWS)
    assert energy_kept == pytest.approx(1, abs=1e-5)
    merge_folder(str(tiny_base), tmp_path / "adapter", tmp_path / "merged")
    merged, expected, base = state(tmp_path / "merged"), state(tuned), state(tiny_base)
    changes = {name: float((expected[name] - base[name]).abs().max()) for name in base}
    assert all(float((merged[n] - expected[n]).abs().max()) <= 0.01 * changes[n] for n in base)
    assert max(changes.values()) > 0.05


def test_energy_kept_is_the_share_of_the_kept_rank() -> None:
    wide = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    base = {W: torch.zeros(3, 3), "b_proj.weight": torch.zeros(3, 3)}
    tuned = {W: wide, "b_proj.weight": torch.ones(3, 3)}
    factors, energy = factor_differences(base, tuned, 1, dict.fromkeys(base, torch.eye(3)))
    assert energy == pytest.approx((9 / 14 + 1) / 2)
    b, a = factors[W]
    assert (b.float() @ a.float())[0, 0] == pytest.approx(3, rel=0.01)


def test_directions_that_inputs_never_use_are_dropped_first() -> None:
    # The first input has the larger weight and is nearly always 0.
    weight, moment = torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([0.001, 1.0]))
    factors, energy = factor_differences({W: torch.zeros(2, 2)}, {W: weight}, 1, {W: moment})
    b, a = factors[W]
    torch.testing.assert_close(b.float() @ a.float(), torch.diag(torch.tensor([0.0, 1.0])), atol=0.01, rtol=0)
    assert energy == pytest.approx(1, abs=0.02)


def test_output_error_is_smaller_than_with_a_plain_svd() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(500, 16, generator=generator) * torch.logspace(1, -1, 16)
    difference = torch.randn(12, 16, generator=generator)

    def output_error(moment: torch.Tensor) -> float:
        factors, _ = factor_differences({W: torch.zeros(12, 16)}, {W: difference}, 4, {W: moment})
        b, a = factors[W]
        return float((inputs @ (difference - b.float() @ a.float()).T).square().sum())

    assert output_error(inputs.T @ inputs / 500) < 0.5 * output_error(torch.eye(16))


def test_moments_match_the_inputs_of_each_linear(tiny_base: Path) -> None:
    model = load_base(locate_base(str(tiny_base))).model
    name = "model.layers.0.self_attn.q_proj"
    moment = input_moments(model, ROWS, [f"{name}.weight"])[f"{name}.weight"]
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    with torch.inference_mode():
        for row in ROWS:
            model(torch.tensor([row]))
    hook.remove()
    read = torch.cat(seen)
    torch.testing.assert_close(moment, read.T @ read / len(read))


def test_unchanged_linears_are_left_out() -> None:
    base = {W: torch.zeros(3, 3), "b_proj.weight": torch.zeros(3, 3)}
    assert changed_linears(base, {**base, "b_proj.weight": torch.ones(3, 3)}, 1) == ["b_proj.weight"]


def test_extraction_is_deterministic(tiny_base: Path, tuned: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        extract_lora(str(tiny_base), tuned, tmp_path / name, RANK, ROWS)
    for name in (WEIGHTS_NAME, CONFIG_NAME):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("also", ["model.norm.weight", "model.embed_tokens.weight"])
def test_change_to_a_weight_that_is_not_linear_is_refused(also: str, tiny_base: Path, tmp_path: Path) -> None:
    tuned = make_tuned(tiny_base, tmp_path / "tuned", also=also)
    with pytest.raises(AdapterError, match=rf"training changed .*{also}.*: freeze norms and embeddings"):
        extract_lora(str(tiny_base), tuned, tmp_path / "adapter", RANK, ROWS)
    assert not (tmp_path / "adapter").exists()


def test_untrained_model_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="nothing to extract"):
        extract_lora(str(tiny_base), tiny_base, tmp_path / "adapter", RANK, ROWS)


def test_rank_above_the_width_of_a_linear_is_refused(tiny_base: Path, tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(
        AdapterError, match=r"rank 65 is above the largest possible rank of model\.layers.*k_proj.* \(64\)"
    ):
        extract_lora(str(tiny_base), tuned, tmp_path / "adapter", 65, ROWS)


def test_model_of_another_shape_is_refused() -> None:
    with pytest.raises(AdapterError, match=r"not a fine-tune of this base: a_proj\.weight"):
        changed_linears({W: torch.ones(3, 3)}, {W: torch.ones(3, 4)}, 1)


@pytest.mark.parametrize("rows", [[], [[]]])
def test_no_rows_is_an_error_that_names_the_likely_cause(
    rows: list[list[int]], tiny_base: Path, tuned: Path, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match="there are none: did the teacher write a trace that parses"):
        extract_lora(str(tiny_base), tuned, tmp_path / "adapter", RANK, rows)
    assert not (tmp_path / "adapter").exists()
