"""What turns weights and a tokenizer in a folder into a checkpoint: the manifest and the probes around them."""

import importlib.metadata
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Literal

from model_export.checkpoint.model_card import TrainingNotes
from model_export.data.pairs import GRADES
from model_export.data.template import check_control_tokens
from model_export.models.base_model import BaseModelError
from model_export.models.reference_scorer import ReferenceScorer
from service.contract.checkpoint import Checkpoint, load_checkpoint
from service.contract.labels import check_labels
from service.contract.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    Base,
    Calibration,
    Criteria,
    Decision,
    Label,
    Limits,
    Lineage,
    Manifest,
    Template,
    compute_fingerprint,
    hash_file,
)
from service.contract.probes import PROBES_NAME, Probe, ProbeNote
from service.contract.prompt import Prompt, PromptForm, PromptRenderer
from service.contract.tokenizer import ContractTokenizer
from service.errors import InvalidRequestError, LabelTokenError, NotegradeError

LIMITS = Limits(max_query_tokens=128, max_note_tokens=256)
# vLLM 0.32 on a CPU differs by up to 7e-6, 0.027 and 0.004 on the default checkpoint.
PROBE_TOLERANCE = {"float32": 0.002, "bfloat16": 0.1, "float16": 0.01}
# Rounding activations makes a deep model jump: 1e-7 on SmolLM2's embeddings moves its label probabilities by 0.08, and
# vLLM in float32 differs from the reference by up to 0.093 on 32 probes. The other dtypes are not measured yet.
INT8_PROBE_TOLERANCE = {"float32": 0.15, "bfloat16": 0.15, "float16": 0.15}
_PROBE_PAIRS = "probe_pairs.jsonl"

# Told what is being done and how much of it is: (stage, steps done, steps in all).
OnProgress = Callable[[str, int, int], None]


class SpecError(NotegradeError):
    """A spec that no checkpoint can be written by."""


@dataclass(frozen=True, slots=True)
class CheckpointSpec:
    """What a checkpoint says of its weights, and how they are asked.

    Attributes:
        criteria: the first is the default, and the one that probes are made with.
        quantization: None for float32 weights, or `w8a8`.
        training: what the card tells of the training; None where there was none.
    """

    name: str
    base: Base
    template: Template
    criteria: tuple[Criteria, ...]
    lineage: Lineage
    limits: Limits = LIMITS
    calibration: Calibration = field(default_factory=Calibration)
    decisions: tuple[Decision, ...] = ()
    dev_metrics: Mapping[str, float] = field(default_factory=dict)
    quantization: Literal["w8a8"] | None = None
    training: TrainingNotes | None = None


def code_version() -> str:
    """The release that makes the checkpoint."""
    try:
        return importlib.metadata.version("notegrade")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def write_contract(folder: Path, spec: CheckpointSpec, on_progress: OnProgress) -> Checkpoint:
    """Write manifest and probes beside the weights and tokenizer of the folder, and load it as the service will.

    The same spec and files make the same fingerprint. Raises NotegradeError with one line that says what is wrong.
    """
    tokenizer = ContractTokenizer.load(folder)
    manifest = _make_manifest(spec, folder, tokenizer)
    renderer = PromptRenderer(manifest, tokenizer)
    _check_context(renderer, folder)
    # From the folder, as it will be served; a model fresh from a GGUF also runs four times slower.
    scorer = ReferenceScorer.load(folder, manifest.label_token_ids)
    _write_probes(folder, renderer, scorer, on_progress)
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    on_progress("Check the folder", 0, 1)
    return load_checkpoint(folder)


def _make_manifest(spec: CheckpointSpec, folder: Path, tokenizer: ContractTokenizer) -> Manifest:
    check_control_tokens(spec.template, tokenizer)
    unsigned = Manifest(
        format_version=FORMAT_VERSION,
        name=spec.name,
        created=datetime.now(UTC).replace(microsecond=0),
        lineage=spec.lineage,
        base=spec.base,
        labels=_make_labels(spec.template, tokenizer),
        template=spec.template,
        criteria=spec.criteria,
        limits=spec.limits,
        calibration=spec.calibration,
        decisions=spec.decisions,
        quantization=spec.quantization,
        dev_metrics=dict(spec.dev_metrics),
        probe_tolerance=INT8_PROBE_TOLERANCE if spec.quantization else PROBE_TOLERANCE,
        files=_hash_files(folder),
        fingerprint=f"sha256:{'0' * 64}",
    )
    fingerprint = compute_fingerprint(unsigned.model_dump(mode="json"))
    manifest = unsigned.model_copy(update={"fingerprint": fingerprint})
    check_labels(manifest, tokenizer)
    return manifest


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


def _check_context(renderer: PromptRenderer, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    longest, limit = renderer.max_prompt_tokens + 1, config.get("max_position_embeddings")
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


def check_probes(form: PromptForm, tokenizer: ContractTokenizer) -> None:
    """Raise SpecError where a packaged probe can't be asked in this form: better before training than after."""
    renderer = PromptRenderer(form, tokenizer)
    for query, note in read_probe_pairs():
        _render_probe(_blank_probe(query, note, renderer), renderer)


def _blank_probe(query: str, note: ProbeNote, renderer: PromptRenderer) -> Probe:
    criteria = renderer.default_criteria
    return Probe(query=query, note=note, criteria=criteria, distribution=(0, 1), label_mass=0)


def _render_probe(blank: Probe, renderer: PromptRenderer) -> Prompt:
    canonical_query, canonical_note = blank.canonical()
    try:
        [prompt] = renderer.render(canonical_query, [canonical_note], blank.criteria)
    except InvalidRequestError as error:
        raise SpecError(f"a probe can't be asked: {error}; raise max_query_tokens") from error
    return prompt


def _compute_probe(query: str, note: ProbeNote, renderer: PromptRenderer, scorer: ReferenceScorer) -> Probe:
    blank = _blank_probe(query, note, renderer)
    prompt = _render_probe(blank, renderer)
    [found] = scorer.distributions([prompt.token_ids])
    return blank.model_copy(
        update={
            "distribution": tuple(round(p, 7) for p in found.probabilities),
            "label_mass": round(found.label_mass, 7),
        }
    )
