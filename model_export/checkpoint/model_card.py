"""Renders the model card: the README.md of a checkpoint folder."""

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict

from model_export.checkpoint.gates import Gate
from model_export.checkpoint.terms import notice_of
from service.contract.manifest import Manifest, describe_limits

_TEMPLATE = "model_card.md.jinja"


class TrainingNotes(BaseModel):
    """The training sections of a card, in Markdown.

    Attributes:
        data: one source per item, with its licence.
        recipe: a paragraph on how the model was trained.
        controls: rows of the table of systems, header first; empty without a comparison.
        differences: rows of the table of student minus control, with intervals, header first.
        test: rows of the table of systems on the test pairs, as served, with the model's differences to each, header first; empty
            before `notegrade-train evaluate --test --card`.
        explanations: rows of the table of explanations by source, header first; empty where none were measured.
        failures: the count of right cases, then each case with a grade far off; empty if no case was graded.
        limits: one limit per item.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: tuple[str, ...]
    recipe: str
    controls: tuple[tuple[str, ...], ...] = ()
    differences: tuple[tuple[str, ...], ...] = ()
    test: tuple[tuple[str, ...], ...] = ()
    explanations: tuple[tuple[str, ...], ...] = ()
    failures: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()


def render_model_card(
    manifest: Manifest, training: TrainingNotes | None = None, gates: Sequence[Gate] = ()
) -> str:
    """Render the card as Markdown; without training notes it describes a zero-shot checkpoint."""
    environment = Environment(  # noqa: S701 - Markdown is not escaped
        loader=PackageLoader(__package__, ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(_TEMPLATE).render(
        manifest=manifest,
        training=training,
        gates=gates,
        calibration=_calibration(manifest),
        decisions=_decisions(manifest),
        limits=describe_limits(manifest),
        terms=notice_of(manifest.base, manifest.lineage),
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
