"""Measures a checkpoint against the limits that it must meet before it is served."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from model_export.data.pairs import Pair
from model_export.data.prompting import render_for
from model_export.models.reference_scorer import ReferenceScorer
from model_export.models.vector_student import VectorReference
from model_export.recipe import Precision
from service.contract.checkpoint import Checkpoint, SecondReading, load_checkpoint
from service.contract.labels import LabelDistribution
from service.contract.probes import Probe, VectorProbe, largest_difference
from service.errors import NotegradeError

GATES_NAME = "gates.json"


class GateError(NotegradeError):
    """A gate failed or can't be measured."""


@dataclass(frozen=True, slots=True)
class GateLimits:
    """The limits of the gates.

    The tolerance for an engine on the probes is not here: it is the manifest's `probe_tolerance`, which the service
    applies to its own engine as well.

    Attributes:
        int8_probe_difference: maximum change of a label probability or label mass on a probe due to int8.
        macro_f1_drop: maximum drop of macro-F1 on dev, due to int8 or from transformers to vLLM in float32.
        bfloat16_macro_f1_drop: the same to vLLM in bfloat16, which changes 1 % of the default's grades (decision 3).
        label_mass: minimum mean label mass on the probes.
    """

    int8_probe_difference: float = 0.1
    macro_f1_drop: float = 0.01
    bfloat16_macro_f1_drop: float = 0.03
    label_mass: float = 0.5


@dataclass(frozen=True, slots=True)
class Gate:
    """One measured figure and its limit: a maximum, or a minimum if `at_least` is set."""

    name: str
    what: str
    figure: float
    limit: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """Return whether the figure meets its limit; NaN never does."""
        return self.figure >= self.limit if self.at_least else self.figure <= self.limit

    @property
    def bound(self) -> str:
        """Format the limit, such as `at most 0.1`."""
        return f"{'at least' if self.at_least else 'at most'} {self.limit:g}"


def check_gates(gates: Sequence[Gate]) -> None:
    """Raise GateError with the figure and limit of each failed gate."""
    failed = [
        f"{gate.what} is {gate.figure:.3g} and must be {gate.bound}" for gate in gates if not gate.passed
    ]
    if failed:
        raise GateError("; ".join(failed))


def write_gates(folder: Path, gates: Sequence[Gate]) -> None:
    """Write `gates.json`, a list of gates with figure, limit and result; it is not part of the fingerprint."""
    rows = [
        {"gate": each.name, "what": each.what, "figure": each.figure, "limit": each.limit, "passed": each.passed}
        for each in gates
    ]  # fmt: skip
    (folder / GATES_NAME).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


class Scorer(Protocol):
    """Computes label distributions: ReferenceScorer or VllmServer."""

    def distributions(self, prompts: Sequence[Sequence[int]]) -> Iterator[LabelDistribution]:
        """Yield the raw label distribution of each prompt, in order."""
        ...


@dataclass(frozen=True, slots=True)
class GateData:
    """The prompts of the gates: the checkpoint's probes, and dev pairs with their gold grades."""

    checkpoint: Checkpoint
    probe_prompts: tuple[tuple[int, ...], ...]
    dev_prompts: tuple[tuple[int, ...], ...]
    gold: tuple[int, ...]

    @classmethod
    def render(cls, checkpoint: Checkpoint, dev: Sequence[Pair]) -> "GateData":
        """Render all prompts. Raises GateError for a dev pair with criteria that the checkpoint lacks, and as `render_for` does."""
        unknown = {pair.criteria for pair in dev} - set(checkpoint.renderer.criteria_names)
        if unknown:
            raise GateError(
                f"dev pairs have the criteria {min(unknown)}, which {checkpoint.manifest.name} does not have"
            )
        return cls(
            checkpoint,
            tuple(render_probe(checkpoint, probe) for probe in checkpoint.probes),
            tuple(map(tuple, render_for(checkpoint, dev))),
            tuple(pair.label for pair in dev),
        )

    def probe_difference(self, scorer: Scorer) -> float:
        """Return the largest difference between the scorer and the probes, over label probabilities and label mass."""
        found = scorer.distributions(self.probe_prompts)
        return max(largest_difference(p, f) for p, f in zip(self.checkpoint.probes, found, strict=True))

    def macro_f1(self, scorer: Scorer) -> float | None:
        """Return macro-F1 of the most probable grades on dev, over the grades in gold, as the manifest states it; None without dev pairs."""
        if not self.dev_prompts:
            return None
        from sklearn.metrics import f1_score

        distributions = scorer.distributions(self.dev_prompts)
        grades = [int(np.argmax(each.probabilities)) for each in distributions]
        return float(
            f1_score(self.gold, grades, labels=sorted(set(self.gold)), average="macro", zero_division=0)
        )


def sample_pairs(pairs: Sequence[Pair], limit: int) -> tuple[Pair, ...]:
    """Take at most `limit` pairs, evenly spread over the sequence; deterministic."""
    if len(pairs) <= limit:
        return tuple(pairs)
    return tuple(pairs[index * len(pairs) // limit] for index in range(limit))


def gate_label_mass(checkpoint: Checkpoint, limits: GateLimits) -> Gate:
    """Gate the mean label mass; near 0 means that the model does not answer with a grade."""
    masses = [probe.label_mass for probe in checkpoint.probes]
    mean = sum(masses) / len(masses)
    return Gate("label_mass", "the mean label mass on probes", mean, limits.label_mass, at_least=True)


def gate_int8(data: GateData, full: Scorer, macro_f1: float | None, limits: GateLimits) -> Iterator[Gate]:
    """Compare full precision with the int8 checkpoint, on its probes and by macro-F1."""
    change = "the largest change of a probe due to int8"
    yield Gate("int8_probes", change, data.probe_difference(full), limits.int8_probe_difference)
    most = limits.macro_f1_drop
    yield from _gate_drop("int8_macro_f1", "due to int8", data.macro_f1(full), macro_f1, most)


def gate_vllm(data: GateData, macro_f1: float | None, limits: GateLimits) -> Iterator[Gate]:
    """Start plain vLLM on the folder, and compare it with the probes and with the reference's macro-F1."""
    from model_export.checkpoint.vllm_server import run_vllm

    checkpoint = data.checkpoint
    longest, labels = checkpoint.renderer.max_prompt_tokens, checkpoint.manifest.label_token_ids
    with run_vllm(checkpoint.folder, longest, labels) as server:
        yield _gate_probes("vllm", data, server, server.dtype)
        found = data.macro_f1(server)
    most = limits.macro_f1_drop if server.dtype == "float32" else limits.bfloat16_macro_f1_drop
    yield from _gate_drop("vllm_macro_f1", "from transformers to vLLM", macro_f1, found, most)


def verify(folder: Path, dev: Sequence[Pair] = (), *, with_vllm: bool = True) -> list[Gate]:
    """Run the gates on any checkpoint folder, and report every figure.

    The measured macro-F1 is compared with the one in the manifest's dev metrics if both are over the same number of
    pairs. Raises CheckpointError for an incomplete checkpoint folder.
    """
    checkpoint, limits = load_checkpoint(folder), GateLimits()
    data = GateData.render(checkpoint, dev)
    reference = ReferenceScorer.load(folder, checkpoint.manifest.label_token_ids)
    macro_f1, stated = data.macro_f1(reference), checkpoint.manifest.dev_metrics
    gates = [gate_label_mass(checkpoint, limits), _gate_probes("transformers", data, reference)]
    if second := checkpoint.vectors:
        gates.append(_gate_vectors(checkpoint, second))
    if stated.get("pairs") == len(dev):
        most = limits.macro_f1_drop
        gates += _gate_drop("stated_macro_f1", "from the manifest's", stated.get("macro_f1"), macro_f1, most)
    if with_vllm:
        gates += gate_vllm(data, macro_f1, limits)
    return gates


def _gate_probes(engine: str, data: GateData, scorer: Scorer, dtype: Precision = "float32") -> Gate:
    limit = data.checkpoint.manifest.probe_tolerance.get(dtype)
    if limit is None:
        raise GateError(
            f"the manifest states no probe tolerance for {dtype}, in which {engine} computes here"
        )
    what = f"the largest difference between {engine} and a probe"
    return Gate(f"{engine}_probes", what, data.probe_difference(scorer), limit)


def _gate_vectors(checkpoint: Checkpoint, second: SecondReading) -> Gate:
    worst = max(
        largest_difference(probe, found)
        for probe, found in zip(second.probes, reread(checkpoint, second, second.probes), strict=True)
    )
    what = "the largest difference between encoder and reader in transformers and a vector probe"
    return Gate("transformers_vector_probes", what, worst, second.reading.probe_tolerance["float32"])


def reread(
    checkpoint: Checkpoint, second: SecondReading, probes: Sequence[VectorProbe]
) -> Iterator[LabelDistribution]:
    """Encode the note of each probe by transformers, in float32, and yield how it is read from these vectors."""
    reference = VectorReference.load(checkpoint.folder, checkpoint.manifest.label_token_ids)
    for probe in probes:
        yield reference.read_note(second.renderer, probe, second.reading.per_note)[1]


def _gate_drop(
    name: str, where: str, before: float | None, after: float | None, most: float
) -> Iterator[Gate]:
    if before is not None and after is not None:
        yield Gate(name, f"the drop of macro-F1 on dev {where}", before - after, most)


def render_probe(checkpoint: Checkpoint, probe: Probe) -> tuple[int, ...]:
    """Return the probe's prompt."""
    query, note = probe.canonical()
    return checkpoint.renderer.render(query, [note], probe.criteria)[0].token_ids
