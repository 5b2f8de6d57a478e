"""Renders the model card: the README.md of a checkpoint folder."""

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
| Licence of the base and of these weights | {licence} |
| Source | {source} |
| Weights | {weights} |
| Template | {template} |
| Criteria | {criteria} |
| Input limits | query {query} tokens, note {note} tokens; longer notes are truncated |
| Calibration | {calibration} |
| Grade decision | {decisions} |
| Made by | notegrade {version} |
| Fingerprint | `{fingerprint}` |
{training}
## The criteria

{criteria_texts}

## Limits

{limits}

All other metadata is in `manifest.json`. `probes.jsonl` holds pairs with expected label distributions, which an engine
must reproduce before it serves this folder.
"""

_ZERO_SHOT = """\
**Not trained for relevance.** These are the unchanged weights of the base, used zero-shot with a criteria prompt.
Use this checkpoint to try out the service, not to rank for real users; for those, train a student."""

_TRAINED = """\
Trained for relevance: the base model, fine-tuned as described below. Expect worse grades on data unlike its
training data."""

_ZERO_SHOT_LIMITS = (
    "Small models grade little better than chance without training, and worst outside English.",
)

_LIMITS = (
    "Probabilities are uncalibrated unless the table above names a calibration: 0.9 does not mean nine in ten.",
    "A note's text can try to persuade the model to give a grade (prompt injection). The text never becomes a control"
    " token, but the model does read it.",
)


class TrainingNotes(BaseModel):
    """The training sections of a card, in Markdown.

    Attributes:
        data: one source per item, with its licence.
        recipe: a paragraph on how the model was trained.
        controls: rows of the table of systems, header first; empty without a comparison.
        differences: rows of the table of student minus control, with intervals, header first.
        failures: the count of right cases, then each case with a grade far off; empty if no case was graded.
        limits: one limit per item.
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
    """Render the card as Markdown; without training notes it describes a zero-shot checkpoint."""
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
        f"under `{each.criteria}` the one with the highest expected utility, fitted for the {each.goal or 'dev pairs'}"
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
        table = f"Intervals are 95 %, from a paired bootstrap over queries.\n\n{_table(training.differences)}"
        sections.append(("Difference to the controls", table))
    if training.failures:
        sections.append(("Known failures", _bullets(training.failures)))
    if manifest.dev_metrics:
        rows = [(name, f"{value:.4g}") for name, value in manifest.dev_metrics.items()]
        sections.append(("Dev metrics", _table([("metric", "value"), *rows])))
    return sections


def _gate_sections(gates: GateReport | None) -> list[tuple[str, str]]:
    if gates is None:
        return []
    rows = [
        (gate.what, f"{gate.figure:.3g}", gate.bound, "yes" if gate.passed else "no") for gate in gates.gates
    ]
    return [("Export gates", _table([("figure", "value", "limit", "passed"), *rows]))]


def _bullets(items: Sequence[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "| " + " | ".join("---" for _ in rows[0]) + " |", *body])
