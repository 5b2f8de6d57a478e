"""A fine-tune's difference to its base, cut to a low rank so that the least is lost of what it does.

A linear's difference D = W' - W changes its output by D x. Of the matrices of some rank, the one whose D x is nearest over the
inputs that the model really has is not D's own truncated SVD, but that of D S with S S = E[x x^T], times S^-1: inputs that never
come cost nothing.
Source: arXiv 2403.07378 (SVD-LLM, truncation-aware data whitening), on the difference in place of the weight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_export.checkpoint.adapter import LINEAR, WEIGHTS_NAME, AdapterError, Factors, write_factors
from model_export.models.base_model import load_base, locate_base

if TYPE_CHECKING:
    import torch

# E[x x^T] of few tokens is singular: directions that they lack count a thousandth of the mean one.
_RIDGE = 1e-3


@dataclass(frozen=True, slots=True)
class CutReport:
    """What the cut kept: the mean over linears of the kept share of E[|D x|^2], in [0, 1]; and the size of the weights."""

    energy_kept: float
    weights_bytes: int


def cut(
    base: str, tuned: Path, out: Path, rank: int, rows: Sequence[Sequence[int]], *, name: str | None = None
) -> CutReport:
    """Write the adapter that brings `base` (as `locate_base` takes it) near the transformers folder `tuned`.

    `rows` are token ids of what the model is to read and write; `name` is the base's for the adapter's configuration, by default
    what `base` says. The folder lacks its description until `describe_adapter` adds it. Raises AdapterError as
    `changed_linears` does.
    """
    model = load_base(locate_base(str(tuned))).model
    before, after = load_base(locate_base(base)).model.state_dict(), model.state_dict()
    moments = input_moments(model, rows, changed_linears(before, after, rank))
    factors, energy_kept = cut_difference(before, after, rank, moments)
    out.mkdir(parents=True, exist_ok=True)
    write_factors(out, factors, rank, base=name or locate_base(base).name)
    return CutReport(energy_kept, (out / WEIGHTS_NAME).stat().st_size)


def changed_linears(
    base: "Mapping[str, torch.Tensor]", tuned: "Mapping[str, torch.Tensor]", rank: int
) -> list[str]:
    """Names of the linear weights (`*proj.weight`) that training has changed.

    Raises AdapterError naming what else has changed (norms and embeddings must be frozen in training: an adapter can't
    carry them), or when nothing has, or when a linear is narrower than the rank.
    """
    _check_only_linears_changed(base, tuned)
    linears = [name for name in base if name.endswith(LINEAR)]
    for name in linears:
        if min(base[name].shape) < rank:
            raise AdapterError(
                f"rank {rank} is more than {name} has ({min(base[name].shape)}): take a lower one"
            )
    changed = [name for name in linears if not base[name].equal(tuned[name])]
    if not changed:
        raise AdapterError("the tuned model does not differ from its base: there is nothing to cut")
    return changed


def input_moments(
    model: Any, rows: Sequence[Sequence[int]], names: Sequence[str]
) -> "dict[str, torch.Tensor]":
    """E[x x^T], (in, in), of what each of these linears reads when the model reads the rows."""
    import torch

    sums: dict[str, torch.Tensor] = {}

    def add(name: str, _: Any, inputs: "tuple[torch.Tensor, ...]") -> None:
        x = inputs[0].flatten(0, -2).float()
        sums[name] = sums.get(name, 0) + x.T @ x

    modules = dict(model.named_modules())
    hooks = [
        modules[name.removesuffix(".weight")].register_forward_pre_hook(partial(add, name)) for name in names
    ]
    with torch.inference_mode():
        for row in rows:
            model(torch.tensor([list(row)], device=model.device), use_cache=False)
    for hook in hooks:
        hook.remove()
    tokens = sum(map(len, rows))
    return {name: total / tokens for name, total in sums.items()}


def cut_difference(
    base: "Mapping[str, torch.Tensor]",
    tuned: "Mapping[str, torch.Tensor]",
    rank: int,
    moments: "Mapping[str, torch.Tensor]",
) -> tuple[Factors, float]:
    """The factors of tuned - base for each linear weight (out x in) that has moments, in bfloat16, and the energy they keep.

    Deterministic. The energy is that of `CutReport`.
    """
    cuts = {
        name: _cut_one(tuned[name].double() - base[name].double(), moment.double(), rank)
        for name, moment in moments.items()
    }
    energies = [energy for _, energy in cuts.values()]
    return {name: factors for name, (factors, _) in cuts.items()}, sum(energies) / len(energies)


def _cut_one(
    difference: "torch.Tensor", moment: "torch.Tensor", rank: int
) -> "tuple[tuple[torch.Tensor, torch.Tensor], float]":
    import torch

    variances, directions = torch.linalg.eigh(moment)
    spread = (variances.clamp(min=0) + _RIDGE * variances.mean()).sqrt()
    u, s, vt = torch.linalg.svd(difference @ (directions * spread), full_matrices=False)
    root = s[:rank].sqrt()  # half of it on each side: bfloat16 then rounds both alike
    a = (root[:, None] * vt[:rank]) @ (directions / spread).T
    return ((u[:, :rank] * root).bfloat16(), a.bfloat16()), float(s[:rank].square().sum() / s.square().sum())


def _check_only_linears_changed(
    base: "Mapping[str, torch.Tensor]", tuned: "Mapping[str, torch.Tensor]"
) -> None:
    shapes = [{name: tuple(tensor.shape) for name, tensor in state.items()} for state in (base, tuned)]
    if shapes[0] != shapes[1]:
        names = sorted(name for name, _ in shapes[0].items() ^ shapes[1].items())
        raise AdapterError(f"the tuned model is no fine-tune of this base: {names[0]} differs in shape")
    others = [name for name in base if not name.endswith(LINEAR)]
    changed = [name for name in others if not base[name].equal(tuned[name])]
    if changed:
        raise AdapterError(
            f"an adapter carries linear weights alone, and training changed {', '.join(changed[:3])}"
            f"{' ...' if len(changed) > 3 else ''}: freeze norms and embeddings"
        )
