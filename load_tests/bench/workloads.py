"""Generates seeded traffic, as texts and as the checkpoint's prompts.

Texts are made of a few common words. Note lengths are log-normal: most notes are shorter than the mean and a few are
several times as long. The mean of 90 tokens and the spread (sigma 0.5: half of the notes have 57 to 111 tokens) are assumptions;
a run reports the mean length of its prompts. `replay` uses a user's own traffic instead.
"""

import itertools
import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load_tests.bench.peer import Asked, Request
from service.contract.prompt import Note, PromptRenderer
from service.contract.text import canonicalize

TOPICS = {
    "cafes": "cafe coffee espresso wifi laptop table quiet noisy terrace pastry roaster socket window barista",
    "hiking": "trail summit ridge map boots water weather hut viewpoint forest river descent shade signal",
    "bread": "flour starter dough oven crust hydration salt proofing steam crumb bake knead loaf yeast",
    "python": "function loop type error test module package async thread list memory profile deploy import",
    "tax": "income deduction form deadline receipt freelance invoice refund expense rate country resident filing",
}
FILLER_TEXT = "the a of with for that when you it and near after before most best first small new old open"
FILLER = FILLER_TEXT.split()
LENGTH_SIGMA = 0.5
SHORTEST_NOTE_TOKENS = 8
# Measured with SmolLM2's tokenizer on these common words.
TOKENS_PER_WORD = 1.03


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of requests: notes per request, and the mean length of a note in tokens (title and body)."""

    notes: int = 20
    note_tokens: float = 90


@dataclass(frozen=True, slots=True)
class Repetition:
    """The repetition of traffic: the k-th most popular of `queries` or `notes` has weight k^-exponent."""

    exponent: float = 1.0
    queries: int = 2_000
    notes: int = 5_000


def cold(seed: str, shape: Shape) -> Iterator[Asked]:
    """Yield endless requests in which no query and no note repeats, so no cache helps."""
    rng = random.Random(seed)
    queries, notes = new_queries(rng), new_notes(rng, shape.note_tokens)
    while True:
        yield Asked(next(queries), tuple(itertools.islice(notes, shape.notes)))


def zipf(seed: str, shape: Shape, repetition: Repetition) -> Iterator[Asked]:
    """Yield endless requests whose query and notes are drawn by Zipf's law, independently of each other.

    Because of the independence, pairs repeat less than in real search, where a query returns similar notes each time.
    The notes of a request are distinct, so the most popular notes occur slightly less often than by the law.
    """
    rng = random.Random(seed)
    queries = list(itertools.islice(new_queries(rng), repetition.queries))
    notes = list(itertools.islice(new_notes(rng, shape.note_tokens), repetition.notes))
    if shape.notes > len(notes):
        raise ValueError(f"requests of {shape.notes} notes need more than {len(notes)} notes to draw from")
    query_ranks = zipf_ranks(rng, len(queries), repetition.exponent)
    note_ranks = zipf_ranks(rng, len(notes), repetition.exponent)
    while True:
        chosen: dict[int, None] = {}
        while len(chosen) < shape.notes:
            chosen[next(note_ranks)] = None
        yield Asked(queries[next(query_ranks)], tuple(notes[rank] for rank in chosen))


def replay(path: Path) -> Iterator[Asked]:
    """Yield the requests of a JSON lines file, `{"query", "notes": [{"id", "title", "body"}]}`, once and in order.

    Raises ValueError naming the first invalid line.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _read_line(line, f"{path}, line {number}")


def _read_line(line: str, where: str) -> Asked:
    try:
        row = json.loads(line)
        notes = tuple(
            {"id": str(note["id"]), "title": note.get("title"), "body": str(note["body"])}
            for note in row["notes"]
        )
        query = str(row["query"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} is not a request: {type(error).__name__}: {error}") from error
    if not notes or not canonicalize(query):
        raise ValueError(f"{where}: a request needs a query and at least one note")
    return Asked(query, notes)


def zipf_ranks(rng: random.Random, count: int, exponent: float) -> Iterator[int]:
    """Yield endless ranks from 0, rank k with probability proportional to (k + 1)^-exponent."""
    cumulative = list(itertools.accumulate((rank + 1) ** -exponent for rank in range(count)))
    while True:
        yield rng.choices(range(count), cum_weights=cumulative)[0]


def make_query(rng: random.Random) -> str:
    """Make a query of four to seven words about one topic."""
    words = TOPICS[rng.choice(list(TOPICS))].split()
    return " ".join(rng.sample(words, 3) + rng.sample(FILLER, rng.randint(1, 4)))


def new_queries(rng: random.Random) -> Iterator[str]:
    """Yield endless distinct queries of four to seven words."""
    seen: set[str] = set()
    while True:
        query = make_query(rng)
        if query not in seen:
            seen.add(query)
            yield query


def new_notes(rng: random.Random, mean_tokens: float) -> Iterator[dict[str, Any]]:
    """Yield endless distinct notes with log-normal lengths."""
    seen: set[str] = set()
    for number in itertools.count():
        note = _make_note(rng, f"n{number}", mean_tokens)
        while note["body"] in seen:
            note = _make_note(rng, f"n{number}", mean_tokens)
        seen.add(note["body"])
        yield note


def _make_note(rng: random.Random, note_id: str, mean_tokens: float) -> dict[str, Any]:
    # The mean of a log-normal is exp(mu + sigma^2 / 2).
    drawn = rng.lognormvariate(math.log(mean_tokens) - LENGTH_SIGMA**2 / 2, LENGTH_SIGMA)
    words = round(max(drawn, SHORTEST_NOTE_TOKENS) / TOKENS_PER_WORD)
    topic = TOPICS[rng.choice(list(TOPICS))].split()
    title_words = min(rng.randint(3, 7), words // 2)
    body = (
        rng.choice(topic) if rng.random() < 0.4 else rng.choice(FILLER) for _ in range(words - title_words)
    )
    return {"id": note_id, "title": " ".join(rng.choices(topic, k=title_words)), "body": " ".join(body)}


def render(renderer: PromptRenderer, asked: Asked) -> Request:
    """Render a request as the service does. Raises InvalidRequestError when the query exceeds the checkpoint's limit."""
    notes = [Note(canonicalize(note.get("title")), canonicalize(note["body"])) for note in asked.notes]
    prompts = renderer.render(canonicalize(asked.query), notes, renderer.default_criteria)
    return Request(asked.query, asked.notes, tuple(prompt.token_ids for prompt in prompts))


def take(renderer: PromptRenderer, traffic: Iterable[Asked], count: int) -> list[Request]:
    """Render the next `count` requests, or fewer if the traffic ends."""
    return [render(renderer, asked) for asked in itertools.islice(traffic, count)]


def mean_prompt_tokens(requests: Sequence[Request]) -> float:
    """Compute the mean prompt length over all pairs; NaN for no pairs."""
    lengths = [len(prompt) for request in requests for prompt in request.prompts]
    return sum(lengths) / len(lengths) if lengths else math.nan
