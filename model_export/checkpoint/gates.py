"""The numbers that a checkpoint must reach before anybody serves it, and what it reached."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from model_export.data.pairs import Pair
from model_export.data.prompting import render_for
from model_export.models.reference_scorer import ReferenceScorer
from service.contract.checkpoint import Checkpoint, load_checkpoint
from service.contract.judgement import judge
from service.contract.labels import LabelDistribution
from service.contract.probes import Probe, largest_difference
from service.errors import NotegradeError

GATES_NAME = "gates.json"
MAX_DEV_PAIRS = 200  # about a minute for each scorer on two cores


class GateError(NotegradeError):
    """A gate that was not passed, or that can't be measured."""


@dataclass(frozen=True, slots=True)
class GateLimits:
    """How far a checkpoint may fall behind.

    How well an engine must reproduce the probes is no limit of these: it is the `probe_tolerance` of the manifest,
    which the service holds its own engine to.

    Attributes:
        int8_probe_difference: largest change of a label probability, or of the label mass, on a probe through int8.
        macro_f1_drop: largest fall of macro-F1 on dev, through int8 or from transformers to vLLM.
        label_mass: least mean label mass on the probes.
    """

    int8_probe_difference: float = 0.1
    macro_f1_drop: float = 0.01
    label_mass: float = 0.5


@dataclass(frozen=True, slots=True)
class Gate:
    """One figure and its limit: the most that it may be, or the least where `at_least` is set."""

    name: str
    what: str
    figure: float
    limit: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        # A NaN passes neither way.
        return self.figure >= self.limit if self.at_least else self.figure <= self.limit

    @property
    def bound(self) -> str:
        return f"{'at least' if self.at_least else 'at most'} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class GateReport:
    """Every gate that was measured, in order, passed or not."""

    gates: tuple[Gate, ...]

    def raise_if_failed(self) -> None:
        """Raise GateError with figure and limit of each gate that was not passed."""
        failed = [
            f"{gate.what} is {gate.figure:.3g} and must be {gate.bound}"
            for gate in self.gates
            if not gate.passed
        ]
        if failed:
            raise GateError("; ".join(failed))

    def write(self, folder: Path) -> None:
        """Write `gates.json`: a list of gate, figure, limit, passed. The checkpoint's fingerprint doesn't count it."""
        rows = [
            {
                "gate": gate.name,
                "what": gate.what,
                "figure": gate.figure,
                "limit": gate.limit,
                "passed": gate.passed,
            }
            for gate in self.gates
        ]
        (folder / GATES_NAME).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


class Scorer(Protocol):
    """Whatever gives label distributions: ReferenceScorer, VllmServer."""

    def distributions(self, prompts: Sequence[Sequence[int]]) -> Iterator[LabelDistribution]:
        """The raw label distribution of each prompt, in order."""
        ...


@dataclass(frozen=True, slots=True)
class GateData:
    """The prompts that gates are measured on: those of the checkpoint's probes, and of dev pairs with gold grades."""

    checkpoint: Checkpoint
    probe_prompts: tuple[tuple[int, ...], ...]
    dev_prompts: tuple[tuple[int, ...], ...]
    criteria: tuple[str, ...]
    gold: tuple[int, ...]

    @classmethod
    def render(cls, checkpoint: Checkpoint, dev: Sequence[Pair]) -> "GateData":
        """Raises GateError for a dev pair that was judged by criteria which the checkpoint doesn't have, and as `render_for` does."""
        unknown = {pair.criteria for pair in dev} - set(checkpoint.renderer.criteria_names)
        if unknown:
            raise GateError(
                f"dev pairs are judged by {min(unknown)}, which {checkpoint.manifest.name} does not have"
            )
        return cls(
            checkpoint,
            tuple(_render_probe(checkpoint, probe) for probe in checkpoint.probes),
            tuple(map(tuple, render_for(checkpoint, dev))),
            tuple(pair.criteria for pair in dev),
            tuple(pair.label for pair in dev),
        )

    def probe_difference(self, scorer: Scorer) -> float:
        """Largest difference of a label probability, or of the label mass, to a probe of the checkpoint."""
        found = scorer.distributions(self.probe_prompts)
        return max(largest_difference(p, f) for p, f in zip(self.checkpoint.probes, found, strict=True))

    def macro_f1(self, scorer: Scorer) -> float | None:
        """Mean over all grades of the F1 that the chosen grades reach on dev; None without dev pairs."""
        if not self.dev_prompts:
            return None
        from sklearn.metrics import f1_score

        manifest = self.checkpoint.manifest
        distributions = scorer.distributions(self.dev_prompts)
        judged = zip(distributions, self.criteria, strict=True)
        grades = [judge(found, manifest, criteria).grade for found, criteria in judged]
        labels = [label.grade for label in manifest.labels]
        return float(f1_score(self.gold, grades, labels=labels, average="macro", zero_division=0))


def sample_pairs(pairs: Sequence[Pair], limit: int = MAX_DEV_PAIRS) -> tuple[Pair, ...]:
    """At most `limit` pairs, evenly spread over the sequence; always the same."""
    if len(pairs) <= limit:
        return tuple(pairs)
    return tuple(pairs[index * len(pairs) // limit] for index in range(limit))


def gate_label_mass(checkpoint: Checkpoint, limits: GateLimits) -> Gate:
    """A prompt that does not make the model answer with a grade shows here."""
    masses = [probe.label_mass for probe in checkpoint.probes]
    mean = sum(masses) / len(masses)
    return Gate("label_mass", "the mean label mass on probes", mean, limits.label_mass, at_least=True)


def gate_int8(data: GateData, full: Scorer, macro_f1: float | None, limits: GateLimits) -> Iterator[Gate]:
    """Full precision against the checkpoint's probes, which are those of int8, and against its macro-F1."""
    change = "the largest change of a probe through int8"
    yield Gate("int8_probes", change, data.probe_difference(full), limits.int8_probe_difference)
    yield from _gate_drop("int8_macro_f1", "through int8", data.macro_f1(full), macro_f1, limits)


def gate_vllm(data: GateData, macro_f1: float | None, limits: GateLimits) -> Iterator[Gate]:
    """Plain vLLM, started on the folder, against its probes and against the reference's macro-F1."""
    from model_export.checkpoint.vllm_server import run_vllm

    checkpoint = data.checkpoint
    longest, labels = checkpoint.renderer.max_prompt_tokens, checkpoint.manifest.label_token_ids
    with run_vllm(checkpoint.folder, longest, labels) as server:
        yield _gate_probes("vllm", data, server)
        found = data.macro_f1(server)
    yield from _gate_drop("vllm_macro_f1", "from transformers to vLLM", macro_f1, found, limits)


def verify(
    folder: Path, dev: Sequence[Pair] = (), *, with_vllm: bool = True, limits: GateLimits = GateLimits()
) -> GateReport:
    """Run the gates on any checkpoint folder; what it reached, passed or not.

    The macro-F1 of the manifest's dev metrics is held against the one found where it is stated to be of as many pairs
    (`pairs`) as `dev` has. Raises CheckpointError where the folder is no whole checkpoint.
    """
    checkpoint = load_checkpoint(folder)
    data = GateData.render(checkpoint, dev)
    reference = ReferenceScorer.load(folder, checkpoint.manifest.label_token_ids)
    macro_f1, stated = data.macro_f1(reference), checkpoint.manifest.dev_metrics
    gates = [gate_label_mass(checkpoint, limits), _gate_probes("transformers", data, reference)]
    if stated.get("pairs") == len(dev):
        gates += _gate_drop(
            "stated_macro_f1", "from what is stated", stated.get("macro_f1"), macro_f1, limits
        )
    if with_vllm:
        gates += gate_vllm(data, macro_f1, limits)
    return GateReport(tuple(gates))


def _gate_probes(engine: str, data: GateData, scorer: Scorer) -> Gate:
    limit = data.checkpoint.manifest.probe_tolerance["float32"]
    what = f"the largest difference of {engine} to a probe"
    return Gate(f"{engine}_probes", what, data.probe_difference(scorer), limit)


def _gate_drop(
    name: str, where: str, before: float | None, after: float | None, limits: GateLimits
) -> Iterator[Gate]:
    if before is not None and after is not None:
        yield Gate(name, f"the fall of macro-F1 on dev {where}", before - after, limits.macro_f1_drop)


def _render_probe(checkpoint: Checkpoint, probe: Probe) -> tuple[int, ...]:
    query, note = probe.canonical()
    return checkpoint.renderer.render(query, [note], probe.criteria)[0].token_ids
