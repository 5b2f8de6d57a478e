"""From a base model to a checkpoint folder that the service accepts: weights, manifest, probes, model card."""

import importlib.metadata
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from model_export.base_model import BaseModelError, load_base, locate_base, save_base
from model_export.model_card import render_model_card
from model_export.new_folder import new_folder
from model_export.reference_scorer import ReferenceScorer
from model_export.template import check_control_tokens
from service.contract.checkpoint import load_checkpoint
from service.contract.labels import check_labels
from service.contract.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    Base,
    Criteria,
    Label,
    Limits,
    Lineage,
    Manifest,
    Name,
    Template,
    compute_fingerprint,
    hash_file,
)
from service.contract.probes import PROBES_NAME, Probe, ProbeNote
from service.contract.prompt import PromptRenderer
from service.contract.tokenizer import ContractTokenizer
from service.errors import LabelTokenError, NotegradeError

GRADES = (0, 1, 2, 3)
LIMITS = Limits(max_query_tokens=128, max_note_tokens=256)
# vLLM 0.32 on a CPU differs by up to 7e-6, 0.027 and 0.004 on the default checkpoint.
PROBE_TOLERANCE = {"float32": 0.002, "bfloat16": 0.05, "float16": 0.01}
_PROBE_PAIRS = "probe_pairs.jsonl"

# Told what is being done and how much of it is: (stage, steps done, steps in all).
OnProgress = Callable[[str, int, int], None]


class PlanError(NotegradeError):
    """A plan that no checkpoint can be made by."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a checkpoint is to be made of."""

    base: str
    template: Template
    criteria: Criteria
    name: str | None = None


def assemble(
    plan: Plan, out: Path, *, force: bool = False, on_progress: OnProgress = lambda *_: None
) -> Path:
    """Make the checkpoint folder `out` of a base model that was not trained for relevance.

    The same plan makes the same fingerprint. An interrupted run leaves no folder that looks whole.
    Raises NotegradeError with one line that says what is wrong.
    """
    _check_name(plan.name)
    location = locate_base(plan.base)
    with new_folder(out, force=force) as folder:
        on_progress(f"Load {location.name}", 0, 1)
        loaded = load_base(location)
        on_progress("Write weights and tokenizer", 0, 1)
        save_base(loaded, folder)
        tokenizer = ContractTokenizer.load(folder)
        manifest = _make_manifest(plan, loaded.base, folder, tokenizer)
        renderer = PromptRenderer(manifest, tokenizer)
        _check_context(renderer, loaded.model)
        # From the folder, as it will be served; a model fresh from a GGUF also runs four times slower.
        scorer = ReferenceScorer.load(folder, manifest.label_token_ids)
        _write_probes(folder, renderer, scorer, on_progress)
        (folder / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(render_model_card(manifest), encoding="utf-8")
        on_progress("Check the folder", 0, 1)
        load_checkpoint(folder)
    return out


def _check_name(name: str | None) -> None:
    try:
        TypeAdapter(Name | None).validate_python(name)
    except ValidationError as error:
        raise PlanError(
            f"{name!r} can't be a checkpoint's name: take letters, digits, '.', '_' and '-'"
        ) from error


def _make_manifest(plan: Plan, base: Base, folder: Path, tokenizer: ContractTokenizer) -> Manifest:
    check_control_tokens(plan.template, tokenizer)
    unsigned = Manifest(
        format_version=FORMAT_VERSION,
        name=plan.name or _default_name(base),
        created=datetime.now(UTC).replace(microsecond=0),
        lineage=Lineage(code_version=_code_version()),
        base=base,
        labels=_make_labels(plan.template, tokenizer),
        template=plan.template,
        criteria=(plan.criteria,),
        limits=LIMITS,
        probe_tolerance=PROBE_TOLERANCE,
        files=_hash_files(folder),
        fingerprint=f"sha256:{'0' * 64}",
    )
    fingerprint = compute_fingerprint(unsigned.model_dump(mode="json"))
    manifest = unsigned.model_copy(update={"fingerprint": fingerprint})
    check_labels(manifest, tokenizer)
    return manifest


def _default_name(base: Base) -> str:
    plain = re.sub(r"[^a-z0-9._-]+", "-", base.name.lower()).strip("-._")
    return f"{plain or 'base'}-zero-shot"


def _code_version() -> str:
    try:
        return importlib.metadata.version("notegrade")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _make_labels(template: Template, tokenizer: ContractTokenizer) -> tuple[Label, ...]:
    """Digits as labels, with the gains of nDCG. Raises LabelTokenError for a digit that is not one token."""
    cue_length = len(tokenizer.encode_template(template.cue))
    labels = []
    for grade in GRADES:
        tail = tokenizer.encode_template(f"{template.cue}{grade}")[cue_length:]
        if len(tail) != 1:
            raise LabelTokenError(
                f"label '{grade}' must be one token after the cue {template.cue!r}, and this base's tokenizer makes {len(tail)}"
            )
        labels.append(Label(grade=grade, token=str(grade), token_id=tail[0], gain=2**grade - 1))
    return tuple(labels)


def _hash_files(folder: Path) -> dict[str, str]:
    counted = ("config.json", "tokenizer.json", "*.safetensors", "*.safetensors.index.json")
    return {path.name: hash_file(path) for pattern in counted for path in sorted(folder.glob(pattern))}


def _check_context(renderer: PromptRenderer, model: Any) -> None:
    longest, limit = renderer.max_prompt_tokens + 1, getattr(model.config, "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise BaseModelError(f"prompts take up to {longest:,} tokens, and this base reads {limit:,}")


def read_probe_pairs() -> tuple[tuple[str, ProbeNote], ...]:
    """The packaged query and note pairs, in file order."""
    text = resources.files(__package__).joinpath(_PROBE_PAIRS).read_text(encoding="utf-8")
    pairs = [json.loads(line) for line in text.split("\n") if line]
    return tuple((pair["query"], ProbeNote.model_validate(pair["note"])) for pair in pairs)


def _write_probes(
    folder: Path, renderer: PromptRenderer, scorer: ReferenceScorer, on_progress: OnProgress
) -> None:
    probes: list[Probe] = []
    pairs = read_probe_pairs()
    for done, (query, note) in enumerate(pairs):
        on_progress("Compute probes", done, len(pairs))
        probes.append(_compute_probe(query, note, renderer, scorer))
    lines = [probe.model_dump_json() for probe in probes]
    (folder / PROBES_NAME).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _compute_probe(query: str, note: ProbeNote, renderer: PromptRenderer, scorer: ReferenceScorer) -> Probe:
    blank = Probe(
        query=query, note=note, criteria=renderer.default_criteria, distribution=(0, 1), label_mass=0
    )
    canonical_query, canonical_note = blank.canonical()
    [prompt] = renderer.render(canonical_query, [canonical_note], blank.criteria)
    [found] = scorer.distributions([prompt.token_ids])
    return blank.model_copy(
        update={
            "distribution": tuple(round(p, 7) for p in found.probabilities),
            "label_mass": round(found.label_mass, 7),
        }
    )
