"""Assembles a checkpoint folder from a base model and, optionally, an adapter."""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from model_export.checkpoint.adapter import (
    AdapterDescription,
    AdapterError,
    merge,
    read_description,
    read_factors,
)
from model_export.checkpoint.gates import render_probe, reread
from model_export.checkpoint.model_card import render_model_card
from model_export.checkpoint.new_folder import new_folder
from model_export.checkpoint.writer import CheckpointSpec, code_version, write_contract
from model_export.data.criteria import DEFAULT_CRITERIA, load_criteria
from model_export.data.template import default_template, find_template
from model_export.models.base_model import (
    PRUNED,
    BaseLocation,
    first_layers,
    load_base,
    locate_base,
    save_base,
)
from model_export.models.quantize import quantize_folder
from model_export.models.reference_scorer import ReferenceScorer
from model_export.progress import OnProgress
from service.contract.checkpoint import Checkpoint
from service.contract.manifest import ENCODER_NAME, Base, Criteria, Lineage
from service.contract.probes import check_probes
from service.contract.template import Name, Template
from service.contract.tokenizer import ContractTokenizer
from service.errors import NotegradeError


class PlanError(NotegradeError):
    """A plan's values are invalid or contradict one another."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The inputs of `assemble`.

    An adapter brings the template and criteria that it was trained with. Without one, `template` and `criteria`
    default to packaged ones that suit the base. `assemble` runs no gates on `int8` weights (W8A8); `notegrade-train verify` does.
    """

    base: str
    template: Template | None = None
    criteria: Criteria | None = None
    name: str | None = None
    adapter: Path | None = None
    int8: bool = False


def assemble(
    plan: Plan, out: Path, *, force: bool = False, on_progress: OnProgress = lambda *_: None
) -> Path:
    """Make the checkpoint folder `out` from a base model, zero-shot or with an adapter merged into it.

    The same plan gives the same fingerprint. An interrupted run leaves no partial checkpoint at `out`.
    An adapter's probes are copied: the machine that assembles often serves, too, and probes that it makes can't show that it
    computes wrongly.
    Raises NotegradeError with a one-line message; ProbeMismatchError when the assembled weights give other probabilities.
    """
    _check_plan(plan)
    location, adapter = locate_base(plan.base), None
    if plan.adapter:
        adapter, factors = read_description(plan.adapter), read_factors(plan.adapter)
        location = _match_base(location, adapter)
        if plan.int8 and adapter.vectors:
            raise PlanError(f"{adapter.name} reads note vectors, which int8 weights can't: leave out --int8")
    with new_folder(out, force=force) as folder, tempfile.TemporaryDirectory() as temporary:
        full = Path(temporary) if plan.int8 else folder
        on_progress(f"Load {location.name}", 0, 1)
        loaded = load_base(location)
        if adapter:
            on_progress(f"Merge {adapter.name}", 0, 1)
            merge(loaded, factors)
        on_progress("Write weights and tokenizer", 0, 1)
        save_base(loaded, full)
        if plan.adapter and adapter and adapter.vectors:
            encoder = load_base(location)
            merge(encoder, read_factors(plan.adapter / ENCODER_NAME))
            save_base(encoder, folder / ENCODER_NAME)
        if plan.int8:
            quantize_folder(full, folder)
        spec = _make_spec(plan, loaded.base, adapter, full)
        # Rounding to int8 changes the probes, so the adapter's are those of its float32 weights only.
        probes = plan.adapter if not plan.int8 else None
        checkpoint = write_contract(folder, spec, on_progress, probes)
        if probes:
            on_progress("Compare probes", 0, 1)
            _compare_probes(checkpoint)
        card = render_model_card(checkpoint.manifest, spec.training)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return out


def _check_plan(plan: Plan) -> None:
    try:
        TypeAdapter(Name | None).validate_python(plan.name)
    except ValidationError as error:
        raise PlanError(
            f"{plan.name!r} is not a valid checkpoint name: use letters, digits, '.', '_' and '-'"
        ) from error
    if plan.adapter and (plan.template or plan.criteria):
        raise PlanError(
            "an adapter brings its own template and criteria: leave out --template and --criteria, or the adapter"
        )


def _match_base(location: BaseLocation, adapter: AdapterDescription) -> BaseLocation:
    """Return the base with as many layers as the adapter was trained for. Raises AdapterError when it is another base."""
    pruned = PRUNED.fullmatch(adapter.base)
    if pruned and location.name == pruned[1]:
        location = first_layers(location, int(pruned[2]))
    if location.name != adapter.base:
        raise AdapterError(
            f"the adapter {adapter.name} was trained for the base {adapter.base}, not {location.name}"
        )
    return location


def _make_spec(plan: Plan, base: Base, adapter: AdapterDescription | None, folder: Path) -> CheckpointSpec:
    quantization: Literal["w8a8"] | None = "w8a8" if plan.int8 else None
    if adapter:
        name, template = plan.name or adapter.name, find_template(adapter.template)
        return CheckpointSpec(
            **adapter.shared(), name=name, base=base, template=template, quantization=quantization
        )
    return CheckpointSpec(
        name=plan.name or _default_name(base),
        base=base,
        template=plan.template or default_template(ContractTokenizer.load(folder)),
        quantization=quantization,
        criteria=(plan.criteria or load_criteria(DEFAULT_CRITERIA),),
        lineage=Lineage(code_version=code_version()),
    )


def _compare_probes(checkpoint: Checkpoint) -> None:
    """Compare every eighth probe with transformers here: wrong weights change them all. The service compares all at its start."""
    probes, manifest = checkpoint.probes[::8], checkpoint.manifest
    reference = ReferenceScorer.load(checkpoint.folder, manifest.label_token_ids)
    prompts = [render_probe(checkpoint, probe) for probe in probes]
    check_probes(probes, list(reference.distributions(prompts)), manifest.probe_tolerance["float32"])
    if second := checkpoint.vectors:
        some = second.probes[::8]
        found = list(reread(checkpoint, second, some))
        check_probes(some, found, second.reading.probe_tolerance["float32"])


def _default_name(base: Base) -> str:
    valid = re.sub(r"[^a-z0-9._-]+", "-", base.name.lower()).strip("-._")
    return f"{valid or 'base'}-zero-shot"
