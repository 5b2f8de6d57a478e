"""Measures a student's explanations: well-formed, grounded, consistent, faithful and sufficient.

  well-formed  exactly the steps of the criteria
  grounded     share of citations that are true, and of well-formed explanations all of whose citations are
  consistent   the last step has the served grade
  faithful     how much more the expected grade moves, without the spans cited from the note, than without random spans of
               the same numbers of words of what the prompt holds of the note; with a 95 % bootstrap interval over queries
  sufficient   the cited spans alone keep the served grade
The grammar of an explanation leaves no other than well-formed and grounded ones, so these two are also measured for what the
student writes without it (free).
Faithfulness and sufficiency: comprehensiveness and sufficiency of DeYoung et al., ERASER, ACL 2020 (arXiv 1911.03429).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from model_export.data.gold_traces import citations_of
from model_export.data.pairs import GRADES, Pair
from model_export.data.prompting import PromptForm, Prompting
from model_export.data.sampling import sample_each
from model_export.data.spans import Span, cut, spans_of
from model_export.evaluation.fitted import Fitted
from model_export.evaluation.paired_bootstrap import draw_resamples, percentile_interval
from model_export.models.constrained import Grammars
from model_export.models.quantize import load_as_served
from model_export.progress import OnProgress
from model_export.recipe import Precision
from model_export.teacher.rollout import OnBatch, Sampler, Sampling
from service.contract.checkpoint import load_checkpoint
from service.contract.citations import Citation, locate
from service.contract.prompt import Note
from service.contract.text import canonicalize
from service.contract.trace import Step, parse_explanation
from service.contract.trace_grammar import trace_grammar

# Turns (pairs, grades) probabilities into the served grades, (pairs,).
Serve = Callable[[np.ndarray, Sequence[Pair]], np.ndarray]
_RANDOM_SPANS = 3
_DRAWS = 1000
_MAX_TOKENS, _BATCH_SIZE = 160, 64


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one source's explanations; None where nothing could be measured. `faithful` has its interval.

    `free_...` are those of explanations without the grammar.
    """

    pairs: int
    well_formed: float
    grounded: float | None
    all_grounded: float | None
    cites_note: float
    consistent: float
    faithful: float | None
    faithful_low: float | None
    faithful_high: float | None
    sufficient: float | None
    free_well_formed: float
    free_grounded: float | None


@dataclass(frozen=True, slots=True)
class _Explained:
    """A pair as the prompt holds it, its served grade, and the steps and citations of its explanation.

    `steps` is None if the explanation is not well-formed.
    """

    pair: Pair
    grade: int
    steps: tuple[Step, ...] | None
    citations: tuple[Citation, ...]

    @property
    def cited(self) -> list[tuple[str, Span]]:
        """Return the field and the span of each true citation from what the prompt holds of the note."""
        noted = (each for each in self.citations if each.field != "query")
        places = ((each.field, locate(each.text, getattr(self.pair.note, each.field))) for each in noted)
        return [(field, span) for field, span in places if span]


class Explainer:
    """Explains pairs with a student, and scores pairs with parts of their notes."""

    def __init__(self, prompting: Prompting, sampler: Sampler, sampling: Sampling, serve: Serve) -> None:
        self._prompting = prompting
        self._sampler = sampler
        self._sampling = sampling
        self._serve = serve

    def measure(self, pairs: Sequence[Pair], seed: int, on_batch: OnBatch) -> dict[str, Figures]:
        """Return the figures by source."""
        probabilities = self._probabilities(pairs)
        grades = self._serve(probabilities, pairs)
        both = 2 * len(pairs)
        explained = self._explain(pairs, grades, lambda done, _: on_batch(done, both))
        free = self._explain(
            pairs, grades, lambda done, _: on_batch(len(pairs) + done, both), within_grammar=False
        )
        expected = probabilities @ np.arange(len(GRADES))
        moved = self._moved(explained, expected, Random(seed))
        kept = self._kept(explained)
        return {
            source: _figures(_of(source, explained), _of(source, free), moved, kept, seed)
            for source in dict.fromkeys(pair.source for pair in pairs)
        }

    def _probabilities(self, pairs: Sequence[Pair]) -> np.ndarray:
        prompts = [self._prompting.student_prompt(pair) for pair in pairs]
        found: np.ndarray = (
            self._sampler.distributions(prompts, self._sampling.batch_size)[0].double().numpy()
        )
        return found

    def _explain(
        self, pairs: Sequence[Pair], grades: np.ndarray, on_batch: OnBatch, *, within_grammar: bool = True
    ) -> list[_Explained]:
        """Let the student write on after the served grade; within its grammar, as the service does, or not."""
        prompts = [
            self._prompting.explanation_prompt(pair, int(grade))
            for pair, grade in zip(pairs, grades, strict=True)
        ]
        grammars = None
        if within_grammar:
            texts, end = [self._grammar(pair) for pair in pairs], self._prompting.end_token_id
            grammars = Grammars.read(self._prompting.tokenizer, end, texts)
        completions = self._sampler.sample(prompts, self._sampling, on_batch, grammars)
        return [
            self._read(pair, int(grade), completion)
            for pair, grade, completion in zip(pairs, grades, completions, strict=True)
        ]

    def _grammar(self, pair: Pair) -> str:
        return trace_grammar(self._prompting.steps(pair.criteria), GRADES[-1], pair.query, pair.note)

    def _read(self, pair: Pair, grade: int, completion: Sequence[int]) -> _Explained:
        end = self._prompting.end_token_id  # the service's engine leaves it out as well
        text = self._prompting.tokenizer.decode([each for each in completion if each != end])
        steps = parse_explanation(text, self._prompting.steps(pair.criteria), GRADES[-1])
        citations = tuple(citations_of(steps or (), pair))
        return _Explained(self._prompting.visible(pair), grade, steps, citations)

    def _moved(
        self, explained: Sequence[_Explained], expected: np.ndarray, random: Random
    ) -> dict[str, float]:
        """Return, by id of the pair, how much more the grade moves without the cited spans than without random ones."""
        before = {row.pair.id: value for row, value in zip(explained, expected.tolist(), strict=True)}
        variants: list[tuple[str, list[Pair]]] = []  # without a cited span, then without each random one
        for row in explained:
            for field, span in row.cited:
                others = _random_spans(row.pair.note, field, span, random)
                if others:  # else the note has nothing else of that length
                    spans = ((field, span), *others)
                    variants.append((row.pair.id, [cut(row.pair, *each) for each in spans]))
        if not variants:
            return {}
        found = self._probabilities([pair for _, pairs in variants for pair in pairs])
        after = iter((found @ np.arange(len(GRADES))).tolist())
        moves: dict[str, list[float]] = {}
        for id_, pairs in variants:
            cited, *others = (abs(next(after) - before[id_]) for _ in pairs)
            moves.setdefault(id_, []).append(cited - float(np.mean(others)))
        return {id_: float(np.mean(each)) for id_, each in moves.items()}

    def _kept(self, explained: Sequence[_Explained]) -> dict[str, bool]:
        """Return, by id of the pair, whether a note of the cited spans alone keeps the served grade."""
        rows = [row for row in explained if row.cited]
        if not rows:
            return {}
        reduced = [replace(row.pair, note=_cited_note(row)) for row in rows]
        grades = self._serve(self._probabilities(reduced), reduced)
        return {row.pair.id: bool(grade == row.grade) for row, grade in zip(rows, grades, strict=True)}


def _cited_note(row: _Explained) -> Note:
    parts = {"title": "", "body": ""}
    for field, span in row.cited:
        parts[field] += f" {getattr(row.pair.note, field)[slice(*span)]}"
    return Note(canonicalize(parts["title"]), canonicalize(parts["body"]))


def _random_spans(note: Note, field: str, cited: Span, random: Random) -> list[tuple[str, Span]]:
    """Draw spans of the note with as many words as the cited one, which do not overlap it."""
    words = len(spans_of(getattr(note, field)[slice(*cited)], 1))
    found = [
        (name, span)
        for name in ("title", "body")
        for span in _windows(getattr(note, name), words)
        if name != field or span[1] <= cited[0] or span[0] >= cited[1]
    ]
    return random.sample(found, min(_RANDOM_SPANS, len(found)))


def _windows(text: str, words: int) -> list[Span]:
    """Return all spans of `words` consecutive words."""
    each = spans_of(text, 1)
    return [(first[0], last[1]) for first, last in zip(each, each[words - 1 :], strict=False)]


def _of(source: str, rows: Sequence[_Explained]) -> list[_Explained]:
    return [row for row in rows if row.pair.source == source]


def _figures(
    rows: Sequence[_Explained],
    free: Sequence[_Explained],
    moved: dict[str, float],
    kept: dict[str, bool],
    seed: int,
) -> Figures:
    well_formed, grounded = _shares(rows)
    free_well_formed, free_grounded = _shares(free)
    true = [all(each.found for each in row.citations) for row in rows if row.citations]
    low, mean, high = _interval(
        [(row.pair.query, moved[row.pair.id]) for row in rows if row.pair.id in moved], seed
    )
    return Figures(
        pairs=len(rows),
        well_formed=well_formed,
        grounded=grounded,
        all_grounded=_share(true),
        cites_note=sum(bool(row.cited) for row in rows) / len(rows),
        consistent=sum(row.steps is not None and row.steps[-1].grade == row.grade for row in rows)
        / len(rows),
        faithful=mean,
        faithful_low=low,
        faithful_high=high,
        sufficient=_share([kept[row.pair.id] for row in rows if row.pair.id in kept]),
        free_well_formed=free_well_formed,
        free_grounded=free_grounded,
    )


def _shares(rows: Sequence[_Explained]) -> tuple[float, float | None]:
    """Return the shares of well-formed explanations and of true citations."""
    cited = [citation.found for row in rows for citation in row.citations]
    return sum(row.steps is not None for row in rows) / len(rows), _share(cited)


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _interval(
    by_query: Sequence[tuple[str, float]], seed: int
) -> tuple[float | None, float | None, float | None]:
    """Return the mean and its bootstrap interval over queries, as (low, mean, high)."""
    if not by_query:
        return None, None, None
    queries = list(dict.fromkeys(query for query, _ in by_query))
    sums, counts = np.zeros(len(queries)), np.zeros(len(queries))
    for query, value in by_query:
        sums[queries.index(query)] += value
        counts[queries.index(query)] += 1
    resamples = draw_resamples(len(queries), _DRAWS, seed)
    low, high = percentile_interval((resamples @ sums) / (resamples @ counts))
    return low, float(sums.sum() / counts.sum()), high


def measure_checkpoint(
    folder: Path, pairs: Sequence[Pair], most: int, seed: int, precision: Precision, on_progress: OnProgress
) -> dict[str, Figures]:
    """Measure a checkpoint's explanations on at most `most` pairs of each source, for the grades that it serves."""
    checkpoint = load_checkpoint(folder)
    manifest = checkpoint.manifest
    form = PromptForm(manifest.template, manifest.criteria, manifest.limits)
    prompting = Prompting.load(form, folder)
    fitted = Fitted(manifest.calibration, manifest.decisions)
    known = [pair for pair in pairs if pair.criteria in checkpoint.renderer.criteria_names]
    sampled = sample_each(known, most, Random(seed))
    sampler = Sampler(load_as_served(folder, precision), manifest.label_token_ids, prompting.end_token_id)
    explainer = Explainer(prompting, sampler, Sampling(_MAX_TOKENS, 0.0, _BATCH_SIZE), serve_by(fitted))
    return explainer.measure(sampled, seed, partial(on_progress, f"Explain by {manifest.name}"))


def serve_by(fitted: Fitted) -> Serve:
    """Return the choice of grades by a calibration and decisions."""
    return lambda probabilities, pairs: fitted.choose_grades(probabilities, [pair.criteria for pair in pairs])


def format_figures(found: Mapping[str, Figures]) -> str:
    """Return the figures as a Markdown table, a row per source."""
    header, *rows = table_of(found)
    lines = (header, ("---",) * len(header), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table_of(found: Mapping[str, Figures]) -> list[tuple[str, ...]]:
    """Return the rows of a table, header first."""
    header = (
        "source",
        "pairs",
        "well-formed (free)",
        "true citations (free)",
        "cites the note",
        "consistent",
        "faithful",
        "sufficient",
    )
    rows = [
        (
            source,
            str(each.pairs),
            f"{_text(each.well_formed)} ({_text(each.free_well_formed)})",
            f"{_text(each.grounded)} ({_text(each.free_grounded)})",
            _text(each.cites_note),
            _text(each.consistent),
            f"{_text(each.faithful)} [{_text(each.faithful_low)}, {_text(each.faithful_high)}]",
            _text(each.sufficient),
        )
        for source, each in found.items()
    ]
    return [header, *rows]


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def read_figures(text: str) -> dict[str, Figures]:
    """Read the JSON of `to_json`."""
    return TypeAdapter(dict[str, Figures]).validate_json(text)


def to_json(found: Mapping[str, Figures]) -> dict[str, Any]:
    """Return the figures by source as JSON-like data."""
    return {source: asdict(figures) for source, figures in found.items()}
