"""From a trained transformers folder to a checkpoint folder, through the gates."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from model_export.checkpoint.gates import (
    GateData,
    GateLimits,
    GateReport,
    gate_int8,
    gate_label_mass,
    gate_vllm,
    sample_pairs,
)
from model_export.checkpoint.model_card import render_model_card
from model_export.checkpoint.new_folder import new_folder
from model_export.checkpoint.writer import CheckpointSpec, OnProgress, write_contract
from model_export.data.pairs import Pair
from model_export.models.base_model import load_base, locate_base, save_base
from model_export.models.quantize import quantize_folder
from model_export.models.reference_scorer import ReferenceScorer
from service.contract.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """What is exported, and how it is checked.

    Attributes:
        trained: a float transformers folder: an adapter merged into its base, or a whole fine-tune.
        spec: its `quantization` decides whether the checkpoint is written in float32 or in int8.
        dev: pairs for the gates; of more than MAX_DEV_PAIRS a sample is taken.
        with_vllm: also start plain vLLM on the folder, and hold it against transformers.
    """

    trained: Path
    spec: CheckpointSpec
    dev: Sequence[Pair] = ()
    limits: GateLimits = field(default_factory=GateLimits)
    with_vllm: bool = True


def export(
    plan: ExportPlan, out: Path, *, force: bool = False, on_progress: OnProgress = lambda *_: None
) -> GateReport:
    """Make the checkpoint folder `out`, with `gates.json` in it.

    The same plan makes the same fingerprint. Raises GateError naming figure and limit of each gate that failed, and
    any other NotegradeError with one line; then, as when it is interrupted, nothing is written.
    """
    with (
        new_folder(out, force=force) as folder,
        tempfile.TemporaryDirectory(prefix="notegrade-export-") as private,
    ):
        full = Path(private) if plan.spec.quantization else folder
        on_progress("Write weights and tokenizer", 0, 1)
        save_base(load_base(locate_base(str(plan.trained))), full)
        if plan.spec.quantization:
            on_progress("Quantize", 0, 1)
            quantize_folder(full, folder)
        checkpoint = write_contract(folder, plan.spec, on_progress)
        report = _pass_gates(plan, checkpoint, full, on_progress)
        report.write(folder)
        card = render_model_card(checkpoint.manifest, plan.spec.training, report)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return report


def _pass_gates(plan: ExportPlan, checkpoint: Checkpoint, full: Path, on_progress: OnProgress) -> GateReport:
    on_progress("Measure on dev", 0, 1)
    data = GateData.render(checkpoint, sample_pairs(plan.dev))
    labels = checkpoint.manifest.label_token_ids
    macro_f1 = data.macro_f1(ReferenceScorer.load(checkpoint.folder, labels))
    gates = [gate_label_mass(checkpoint, plan.limits)]
    if plan.spec.quantization:
        gates += gate_int8(data, ReferenceScorer.load(full, labels), macro_f1, plan.limits)
    GateReport(tuple(gates)).raise_if_failed()  # before vLLM is started for nothing
    if plan.with_vllm:
        on_progress("Measure with vLLM", 0, 1)
        gates += gate_vllm(data, macro_f1, plan.limits)
    report = GateReport(tuple(gates))
    report.raise_if_failed()
    return report
