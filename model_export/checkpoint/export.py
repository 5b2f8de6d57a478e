"""Exports a trained transformers folder as a checkpoint folder, if it passes the gates."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from model_export.checkpoint.gates import (
    Gate,
    GateData,
    GateLimits,
    check_gates,
    gate_int8,
    gate_label_mass,
    gate_vllm,
    write_gates,
)
from model_export.checkpoint.model_card import render_model_card
from model_export.checkpoint.new_folder import new_folder
from model_export.checkpoint.writer import CheckpointSpec, write_contract
from model_export.data.pairs import Pair
from model_export.models.base_model import load_base, locate_base, save_base
from model_export.models.quantize import quantize_folder
from model_export.models.reference_scorer import ReferenceScorer
from model_export.progress import OnProgress
from service.contract.checkpoint import Checkpoint
from service.contract.manifest import ENCODER_NAME


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """The inputs of `export`.

    Attributes:
        trained: a float transformers folder: an adapter merged into its base, or a full fine-tune.
        spec: its `quantization` selects float32 or int8 weights.
        dev: pairs for the gates.
        with_vllm: also start plain vLLM on the folder and compare it with transformers.
        measured: gates whose figures are known already.
    """

    trained: Path
    spec: CheckpointSpec
    dev: Sequence[Pair] = ()
    limits: GateLimits = field(default_factory=GateLimits)
    with_vllm: bool = True
    measured: Sequence[Gate] = ()


def export(plan: ExportPlan, out: Path, on_progress: OnProgress = lambda *_: None) -> list[Gate]:
    """Make the checkpoint folder `out`, with `gates.json` in it, in place of an earlier checkpoint.

    The same plan gives the same fingerprint. Raises GateError with the figure and limit of each failed gate, or another
    NotegradeError with a one-line message. A failed or interrupted export changes nothing.
    """
    with (
        new_folder(out, force=True) as folder,
        tempfile.TemporaryDirectory(prefix="notegrade-export-") as temporary,
    ):
        full = Path(temporary) if plan.spec.quantization else folder
        on_progress("Write weights and tokenizer", 0, 1)
        save_base(load_base(locate_base(str(plan.trained))), full)
        if plan.spec.vectors:
            save_base(load_base(locate_base(str(plan.trained / ENCODER_NAME))), folder / ENCODER_NAME)
        if plan.spec.quantization:
            on_progress("Quantize", 0, 1)
            quantize_folder(full, folder)
        checkpoint = write_contract(folder, plan.spec, on_progress)
        gates = _pass_gates(plan, checkpoint, full, on_progress)
        write_gates(folder, gates)
        card = render_model_card(checkpoint.manifest, plan.spec.training, gates)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return gates


def _pass_gates(plan: ExportPlan, checkpoint: Checkpoint, full: Path, on_progress: OnProgress) -> list[Gate]:
    on_progress("Measure on dev", 0, 1)
    data = GateData.render(checkpoint, plan.dev)
    labels = checkpoint.manifest.label_token_ids
    macro_f1 = data.macro_f1(ReferenceScorer.load(checkpoint.folder, labels))
    gates = [*plan.measured, gate_label_mass(checkpoint, plan.limits)]
    if plan.spec.quantization:
        gates += gate_int8(data, ReferenceScorer.load(full, labels), macro_f1, plan.limits)
    check_gates(gates)  # do not start vLLM for a checkpoint that has failed already
    if plan.with_vllm:
        on_progress("Measure with vLLM", 0, 1)
        gates += gate_vllm(data, macro_f1, plan.limits)
    check_gates(gates)
    return gates
