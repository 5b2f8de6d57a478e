"""The README.md of a checkpoint folder."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from model_export.checkpoint.gates import GateReport
from service.contract.manifest import Manifest

_CARD = """\
---
license: {licence_tag}
library_name: transformers
tags: [notegrade, relevance, reranking]
---
# {name}

A Notegrade checkpoint: it grades how well a note answers a search query, from 0 to {top}.

{status}

| | |
| --- | --- |
| Base | {base} |
| Licence of the base, and so of these weights | {licence} |
| Source | {source} |
| Weights | {weights} |
| Template | {template} |
| Criteria | {criteria} |
| Reads | query up to {query} tokens, note up to {note} tokens, the rest of a note is cut |
| Calibration | {calibration} |
| Grade | {decisions} |
| Made by | notegrade {version} |
| Fingerprint | `{fingerprint}` |
{training}
## The criteria

{criteria_texts}

## Limits

{limits}

`manifest.json` says everything else, and `probes.jsonl` holds pairs whose distribution an engine must reproduce
before it may serve this folder.
"""

_ZERO_SHOT = """\
**Not trained for relevance.** These are the weights of its base, unchanged, with a criteria prompt around
them (zero-shot). It shows that everything around the model works. Do not rank for real users with it: put a
trained student in its place."""

_TRAINED = """\
Trained for relevance: its base, fine-tuned as told below. What it was not trained on, it may know nothing of."""

_ZERO_SHOT_LIMITS = (
    "What the base does not know, this does not know: small models grade little better than chance without training,\n"
    "  and worst outside English.",
)

_LIMITS = (
    "A probability is raw unless the calibration above says otherwise: don't read 0.9 as nine in ten.",
    "A note can try to talk the model into a grade. Its text never becomes a control token, but the model reads it.",
)


class TrainingNotes(BaseModel):
    """What a card tells of the training, in Markdown.

    Attributes:
        data: one source each, with its licence.
        recipe: how it was trained, in a paragraph.
        controls: a table's rows, its head first; empty where nothing was compared.
        differences: the same, of what the student has more than its controls, with intervals.
        failures: cases that it grades far off, and how many it doesn't; empty where it was asked none.
        limits: one each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: tuple[str, ...]
    recipe: str
    controls: tuple[tuple[str, ...], ...] = ()
    differences: tuple[tuple[str, ...], ...] = ()
    failures: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()


def render_model_card(
    manifest: Manifest, training: TrainingNotes | None = None, gates: GateReport | None = None
) -> str:
    """Markdown that says what the checkpoint is, what it is not, and whose licence it has.

    Without training notes it is the card of a zero-shot checkpoint.
    """
    sections = [*_training_sections(manifest, training), *_gate_sections(gates)]
    return _CARD.format(
        name=manifest.name,
        top=manifest.labels[-1].grade,
        status=_TRAINED if training else _ZERO_SHOT,
        base=manifest.base.name,
        licence=manifest.base.licence,
        licence_tag=manifest.base.licence.lower(),  # as model hubs spell it
        source=manifest.base.source,
        weights="int8 (W8A8, round to nearest), as compressed-tensors"
        if manifest.quantization
        else "float32 safetensors",
        template=manifest.template.name,
        criteria=", ".join(criteria.name for criteria in manifest.criteria),
        criteria_texts="\n\n".join(_criteria_texts(manifest)),
        query=manifest.limits.max_query_tokens,
        note=manifest.limits.max_note_tokens,
        calibration=_calibration(manifest),
        decisions=_decisions(manifest),
        version=manifest.lineage.code_version,
        fingerprint=manifest.fingerprint,
        training="".join(f"\n## {title}\n\n{text}\n" for title, text in sections),
        limits=_bullets([*(training.limits if training else _ZERO_SHOT_LIMITS), *_LIMITS]),
    )


def _calibration(manifest: Manifest) -> str:
    calibration = manifest.calibration
    if calibration.ece_before is None or calibration.ece_after is None:
        return calibration.name
    ece = f"expected calibration error {calibration.ece_before:.3f} before, {calibration.ece_after:.3f} after"
    temperatures = "".join(
        f", {value:.3g} under `{name}`" for name, value in calibration.temperatures.items()
    )
    return f"{calibration.name} (T = {calibration.temperature:.3g}{temperatures}; {ece}, on {calibration.data or 'dev'})"


def _decisions(manifest: Manifest) -> str:
    others = [
        f"under `{each.criteria}` of the greatest expected utility, fitted to the {each.goal or 'dev pairs'}"
        + (
            ""
            if each.before is None or each.after is None
            else f" ({each.before:.3f} before, {each.after:.3f} after)"
        )
        for each in manifest.decisions
    ]
    return "; ".join(["the most probable one", *others])


def _criteria_texts(manifest: Manifest) -> list[str]:
    blocks = [f"```text\n{criteria.text}\n```" for criteria in manifest.criteria]
    if len(blocks) == 1:
        return blocks
    names = [f"`{criteria.name}`" for criteria in manifest.criteria]
    return [
        f"{name}{', the default' if i == 0 else ''}:\n\n{block}"
        for i, (name, block) in enumerate(zip(names, blocks, strict=True))
    ]


def _training_sections(manifest: Manifest, training: TrainingNotes | None) -> list[tuple[str, str]]:
    if training is None:
        return []
    recipe = [training.recipe]
    if manifest.lineage.recipe_hash:
        recipe.append(f"Recipe: `{manifest.lineage.recipe_hash}`")
    if manifest.lineage.teacher_fingerprint:
        recipe.append(f"Teacher: `{manifest.lineage.teacher_fingerprint}`")
    sections = [("Training data", _bullets(training.data)), ("Training", "\n\n".join(recipe))]
    if training.controls:
        sections.append(("Controls", _table(training.controls)))
    if training.differences:
        table = (
            f"With the 95 % intervals of a paired bootstrap over queries.\n\n{_table(training.differences)}"
        )
        sections.append(("Against its controls", table))
    if training.failures:
        sections.append(("Where it fails", _bullets(training.failures)))
    if manifest.dev_metrics:
        rows = [(name, f"{value:.4g}") for name, value in manifest.dev_metrics.items()]
        sections.append(("On dev", _table([("metric", "value"), *rows])))
    return sections


def _gate_sections(gates: GateReport | None) -> list[tuple[str, str]]:
    if gates is None:
        return []
    rows = [
        (gate.what, f"{gate.figure:.3g}", gate.bound, "yes" if gate.passed else "no") for gate in gates.gates
    ]
    return [("Gates of the export", _table([("figure", "value", "limit", "passed"), *rows]))]


def _bullets(items: Sequence[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "| " + " | ".join("---" for _ in rows[0]) + " |", *body])
