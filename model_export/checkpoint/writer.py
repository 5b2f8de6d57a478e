"""Writes the manifest and the probes that turn a folder of weights and tokenizer into a checkpoint."""

import importlib.metadata
import json
import shutil
from base64 import b64encode
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from model_export.checkpoint.terms import write_terms
from model_export.checkpoint.trained import Trained, TrainedVectors
from model_export.data.pairs import GRADES
from model_export.data.template import check_control_tokens, vector_template
from model_export.models.base_model import BaseModelError
from model_export.models.reference_scorer import ReferenceScorer
from model_export.models.vector_student import VectorReference
from model_export.progress import OnProgress
from service.contract.checkpoint import Checkpoint, load_checkpoint
from service.contract.labels import LabelDistribution, check_labels
from service.contract.manifest import (
    ENCODER_NAME,
    FORMAT_VERSION,
    MANIFEST_NAME,
    Base,
    Label,
    Manifest,
    VectorReading,
    compute_fingerprint,
    hash_file,
)
from service.contract.probes import PROBES_NAME, VECTOR_PROBES_NAME, Probe, ProbeNote, VectorProbe
from service.contract.prompt import Prompt, PromptForm, PromptRenderer
from service.contract.template import Template
from service.contract.tokenizer import ContractTokenizer
from service.contract.vector_prompt import VectorRenderer
from service.errors import InvalidRequestError, LabelTokenError, NotegradeError

# On the default checkpoint vLLM 0.32 on a CPU differs by up to 7e-6, 0.027 and 0.004.
PROBE_TOLERANCE = {"float32": 0.002, "bfloat16": 0.1, "float16": 0.01}
# Rounded activations amplify tiny differences in a deep model: 1e-7 on SmolLM2's embeddings changes label probabilities
# by 0.08. vLLM in float32 differs from the reference by up to 0.093 on 32 probes; other dtypes are not measured yet.
INT8_PROBE_TOLERANCE = {"float32": 0.15, "bfloat16": 0.15, "float16": 0.15}
_PROBE_PAIRS = "probe_pairs.jsonl"


class SpecError(NotegradeError):
    """No checkpoint can be written from this spec."""


class CheckpointSpec(Trained):
    """The metadata, prompt and calibration of a checkpoint. `quantization` is None for float32 weights, or `w8a8`."""

    name: str
    base: Base
    template: Template
    quantization: Literal["w8a8"] | None = None


def code_version() -> str:
    """Return the installed version of notegrade, or `unknown`."""
    try:
        return importlib.metadata.version("notegrade")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def write_contract(
    folder: Path, spec: CheckpointSpec, on_progress: OnProgress, probes: Path | None = None
) -> Checkpoint:
    """Write manifest and probes beside the weights and tokenizer, and load the folder as the service does.

    The same spec and files give the same fingerprint. Raises NotegradeError with a one-line message.
    `probes` is a folder of probes that were made with these weights, to copy; without it they are computed here.
    """
    tokenizer = ContractTokenizer.load(folder)
    manifest = _make_manifest(spec, folder, tokenizer)
    _check_context(PromptRenderer(manifest, tokenizer), folder)
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    write_terms(folder, manifest.base, manifest.lineage)
    if probes:
        for name in probe_files(spec):
            shutil.copyfile(probes / name, folder / name)
    else:
        write_probes(folder, manifest, folder, on_progress)
        if manifest.vectors:
            write_vector_probes(folder, manifest, manifest.vectors, folder, on_progress)
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
        vectors=second_reading(spec, spec.vectors, folder) if spec.vectors else None,
        dev_metrics=spec.dev_metrics,
        probe_tolerance=INT8_PROBE_TOLERANCE if spec.quantization else PROBE_TOLERANCE,
        files=_hash_files(folder),
        fingerprint=f"sha256:{'0' * 64}",
    )
    fingerprint = compute_fingerprint(unsigned.model_dump(mode="json"))
    manifest = unsigned.model_copy(update={"fingerprint": fingerprint})
    check_labels(manifest, tokenizer)
    return manifest


def second_reading(spec: CheckpointSpec, vectors: TrainedVectors, folder: Path) -> VectorReading:
    """Return the manifest's second reading; `folder` has the reader's `config.json`."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return VectorReading(
        template=vector_template(spec.template, vectors.block),
        width=config["hidden_size"],
        probe_tolerance=PROBE_TOLERANCE,
        **vectors.model_dump(exclude={"block"}),
    )


def _make_labels(template: Template, tokenizer: ContractTokenizer) -> tuple[Label, ...]:
    """Make digits the labels, with nDCG's gains. Raises LabelTokenError for a digit that is not a single token."""
    cue_length = len(tokenizer.encode_template(template.cue))
    labels = []
    for grade in GRADES:
        tail = tokenizer.encode_template(f"{template.cue}{grade}")[cue_length:]
        if len(tail) != 1:
            raise LabelTokenError(
                f"label '{grade}' must be one token after the cue {template.cue!r}, but it is {len(tail)} in this base's tokenizer"
            )
        labels.append(Label(grade=grade, token=str(grade), token_id=tail[0], gain=2**grade - 1))
    return tuple(labels)


def _hash_files(folder: Path) -> dict[str, str]:
    counted = ("config.json", "tokenizer.json", "*.safetensors", "*.safetensors.index.json")
    patterns = [*counted, *(f"{ENCODER_NAME}/{name}" for name in counted if name != "tokenizer.json")]
    paths = (path for pattern in patterns for path in sorted(folder.glob(pattern)))
    return {str(path.relative_to(folder)): hash_file(path) for path in paths}


def _check_context(renderer: PromptRenderer, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    longest, limit = renderer.max_prompt_tokens + 1, config.get("max_position_embeddings")
    if limit is not None and longest > limit:
        raise BaseModelError(f"prompts have up to {longest:,} tokens, and this base's context has {limit:,}")


def read_probe_pairs() -> tuple[tuple[str, ProbeNote], ...]:
    """Read the packaged query and note pairs, in file order."""
    text = resources.files(__package__).joinpath(_PROBE_PAIRS).read_text(encoding="utf-8")
    pairs = [json.loads(line) for line in text.split("\n") if line]
    return tuple((pair["query"], ProbeNote.model_validate(pair["note"])) for pair in pairs)


def write_probes(weights: Path, form: PromptForm, out: Path, on_progress: OnProgress) -> None:
    """Compute the packaged probes by transformers, in float32, and write them to the folder `out`.

    `weights` is a folder as transformers writes it: what will be served. A model loaded from GGUF is four times as slow.
    """
    tokenizer = ContractTokenizer.load(weights)
    labels = _make_labels(form.template, tokenizer)
    scorer = ReferenceScorer.load(weights, [label.token_id for label in labels])
    rendered = list(_render_probes(PromptRenderer(form, tokenizer)))
    lines = []
    for done, (blank, prompt) in enumerate(rendered):
        on_progress("Compute probes", done, len(rendered))
        [found] = scorer.distributions([prompt.token_ids])
        lines.append(blank.model_copy(update=_expected(found)).model_dump_json())
    (out / PROBES_NAME).write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_vector_probes(
    weights: Path, form: PromptForm, reading: VectorReading, out: Path, on_progress: OnProgress
) -> None:
    """Compute the packaged probes of the second reading, as `write_probes` does; `weights` has the encoder's folder too."""
    tokenizer = ContractTokenizer.load(weights)
    renderer = VectorRenderer(
        reading.template, form.criteria, form.limits, reading.max_note_tokens, tokenizer
    )
    labels = [label.token_id for label in _make_labels(form.template, tokenizer)]
    reference = VectorReference.load(weights, labels)
    rendered = list(_render_probes(PromptRenderer(form, tokenizer)))
    lines = []
    for done, (blank, _) in enumerate(rendered):
        on_progress("Compute vector probes", done, len(rendered))
        rows, found = reference.read_note(renderer, blank, reading.per_note)
        probe = VectorProbe(**(blank.model_dump() | _expected(found)), vectors=b64encode(rows))
        lines.append(probe.model_dump_json())
    (out / VECTOR_PROBES_NAME).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _expected(found: LabelDistribution) -> dict[str, Any]:
    """Return the fields of a probe that state what an engine must reproduce."""
    distribution = tuple(round(p, 7) for p in found.probabilities)
    return {"distribution": distribution, "label_mass": round(found.label_mass, 7)}


def probe_files(trained: Trained) -> tuple[str, ...]:
    """Return the names of the files of probes that a checkpoint with these fields has."""
    return (PROBES_NAME, VECTOR_PROBES_NAME) if trained.vectors else (PROBES_NAME,)


def check_probes(form: PromptForm, tokenizer: ContractTokenizer) -> None:
    """Raise SpecError, before any training, when a packaged probe can't be rendered in this form."""
    list(_render_probes(PromptRenderer(form, tokenizer)))


def _render_probes(renderer: PromptRenderer) -> Iterator[tuple[Probe, Prompt]]:
    """Yield each packaged pair as a probe under the default criteria, without its distribution, and its prompt."""
    for query, note in read_probe_pairs():
        criteria = renderer.default_criteria
        blank = Probe(query=query, note=note, criteria=criteria, distribution=(0, 1), label_mass=0)
        canonical_query, canonical_note = blank.canonical()
        try:
            [prompt] = renderer.render(canonical_query, [canonical_note], criteria)
        except InvalidRequestError as error:
            raise SpecError(f"a probe can't be rendered: {error}; raise max_query_tokens") from error
        yield blank, prompt
