"""Extracts a LoRA adapter from a fine-tuned model, with the smallest loss on the inputs that the model reads.

There is no loss where training kept the rank of the difference low (`lora_rank`).

A linear's weight difference D = W' - W changes its output by D x. The rank-r matrix that approximates D x best over
real inputs is not the truncated SVD of D. It is the truncated SVD of D S, with S S = E[x x^T], times S^-1, which spends
no rank on input directions that never occur.
Source: arXiv 2403.07378 (SVD-LLM, truncation-aware data whitening), applied to the difference instead of the weight.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from model_export.checkpoint.adapter import LINEAR, AdapterError, Factors, write_factors
from model_export.models.base_model import load_base, locate_base

State = Mapping[str, torch.Tensor]

# E[x x^T] over few tokens is singular: each direction gets a thousandth of the mean variance on top of its own.
_RIDGE = 1e-3


def extract_lora(
    base: str, tuned: Path, out: Path, rank: int, rows: Sequence[Sequence[int]], *, name: str | None = None
) -> float:
    """Write to `out` the rank-`rank` adapter that approximates the fine-tune `tuned` of `base`.

    `write_probes` and `describe_adapter` then complete the folder.

    Args:
        base: as `locate_base` takes it. tuned: a transformers folder.
        rows: token ids of typical prompts and completions, over which the loss is minimised.
        name: the base's name in the adapter's configuration, by default that of `base`.
    Returns: `energy_kept`, as `factor_differences` does. Raises: AdapterError without rows, and as `changed_linears` does.
    """
    if not any(rows):
        raise AdapterError(
            "an adapter needs prompts and completions to be fitted on, and there are none:"
            " did the teacher write a trace that parses?"
        )
    model = load_base(locate_base(str(tuned))).model
    before, after = load_base(locate_base(base)).model.state_dict(), model.state_dict()
    moments = input_moments(model, rows, changed_linears(before, after, rank))
    factors, energy_kept = factor_differences(before, after, rank, moments)
    out.mkdir(parents=True, exist_ok=True)
    write_factors(out, factors, rank, base=name or locate_base(base).name)
    return energy_kept


def changed_linears(base: State, tuned: State, rank: int) -> list[str]:
    """List the linear weights (`*proj.weight`) that training has changed.

    Raises AdapterError when another weight has changed (an adapter can't carry norms and embeddings, so training must
    freeze them), when nothing has changed, or when a linear is narrower than the rank.
    """
    _check_only_linears_changed(base, tuned)
    linears = [name for name in base if name.endswith(LINEAR)]
    for name in linears:
        if min(base[name].shape) < rank:
            raise AdapterError(
                f"rank {rank} is above the largest possible rank of {name} ({min(base[name].shape)}): lower it"
            )
    changed = [name for name in linears if not base[name].equal(tuned[name])]
    if not changed:
        raise AdapterError("the tuned model does not differ from its base: there is nothing to extract")
    return changed


def input_moments(model: Any, rows: Sequence[Sequence[int]], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Compute E[x x^T], (in, in), over the inputs x of each of these linears while the model reads the rows."""
    sums: dict[str, torch.Tensor] = {}

    def add(name: str, _: Any, inputs: tuple[torch.Tensor, ...]) -> None:
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


def factor_differences(base: State, tuned: State, rank: int, moments: State) -> tuple[Factors, float]:
    """Factor tuned - base of each linear weight (out x in) that has moments. Deterministic.

    Returns: the factors in bfloat16, and `energy_kept`: the mean over linears of the kept share of E[|D x|^2], in [0, 1].
    """
    found = {
        name: _factor_one(tuned[name].double() - base[name].double(), moment.double(), rank)
        for name, moment in moments.items()
    }
    energies = [energy for _, energy in found.values()]
    return {name: factors for name, (factors, _) in found.items()}, sum(energies) / len(energies)


def _factor_one(
    difference: torch.Tensor, moment: torch.Tensor, rank: int
) -> tuple[tuple[torch.Tensor, torch.Tensor], float]:
    variances, directions = torch.linalg.eigh(moment)
    spread = (variances.clamp(min=0) + _RIDGE * variances.mean()).sqrt()
    u, s, vt = torch.linalg.svd(difference @ (directions * spread), full_matrices=False)
    root = s[:rank].sqrt()  # on both sides, so that bfloat16 rounds both factors equally
    a = (root[:, None] * vt[:rank]) @ (directions / spread).T
    return ((u[:, :rank] * root).bfloat16(), a.bfloat16()), float(s[:rank].square().sum() / s.square().sum())


def _check_only_linears_changed(base: State, tuned: State) -> None:
    shapes = [{name: tuple(tensor.shape) for name, tensor in state.items()} for state in (base, tuned)]
    if shapes[0] != shapes[1]:
        names = sorted(name for name, _ in shapes[0].items() ^ shapes[1].items())
        raise AdapterError(
            f"the tuned model is not a fine-tune of this base: {names[0]} differs in shape or is missing"
        )
    others = [name for name in base if not name.endswith(LINEAR)]
    changed = [name for name in others if not base[name].equal(tuned[name])]
    if changed:
        raise AdapterError(
            f"an adapter carries linear weights only, and training changed {', '.join(changed[:3])}"
            f"{' ...' if len(changed) > 3 else ''}: freeze norms and embeddings"
        )
