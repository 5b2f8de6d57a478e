"""Generates queries and notes of realistic length, reproducible by seed."""

import random
from collections.abc import Iterator
from typing import Any

TOPICS = {
    "cafes": "cafe coffee espresso wifi laptop table quiet noisy terrace pastry roaster socket window barista",
    "hiking": "trail summit ridge map boots water weather hut viewpoint forest river descent shade signal",
    "bread": "flour starter dough oven crust hydration salt proofing steam crumb bake knead loaf yeast",
    "python": "function loop type error test module package async thread list memory profile deploy import",
    "tax": "income deduction form deadline receipt freelance invoice refund expense rate country resident filing",
}
FILLER_TEXT = "the a of with for that when you it and near after before most best first small new old open"
FILLER = FILLER_TEXT.split()


def make_query(rng: random.Random) -> str:
    """Make a query of four to seven words about one topic."""
    words = TOPICS[rng.choice(list(TOPICS))].split()
    return " ".join(rng.sample(words, 3) + rng.sample(FILLER, rng.randint(1, 4)))


def make_note(rng: random.Random, note_id: str, words: int = 60) -> dict[str, Any]:
    """Make a note of about `words` words about one topic."""
    topic = rng.choice(list(TOPICS))
    vocabulary = TOPICS[topic].split() + FILLER * 2
    body = " ".join(rng.choice(vocabulary) for _ in range(rng.randint(words * 2 // 3, words * 4 // 3)))
    return {"id": note_id, "title": f"{topic} {rng.randint(0, 10**9)}", "body": body}


def zipf_choices(rng: random.Random, items: list[Any], count: int) -> list[Any]:
    """Draw `count` distinct items, the k-th of the list with weight 1/k."""
    pool, weights = list(items), [1 / rank for rank in range(1, len(items) + 1)]
    chosen = []
    for _ in range(count):
        [index] = rng.choices(range(len(pool)), weights)
        chosen.append(pool.pop(index))
        weights.pop(index)
    return chosen


def score_requests(
    rng: random.Random, notes: list[dict[str, Any]], per_request: int
) -> Iterator[dict[str, Any]]:
    """Yield endless /score bodies, each with a new query and notes drawn by Zipf's law."""
    number = 0
    while True:
        number += 1
        yield {
            "request_id": f"load-{rng.randint(0, 10**12)}-{number}",
            "query": make_query(rng) + f" {rng.randint(0, 10**6)}",
            "notes": zipf_choices(rng, notes, per_request),
            "deadline_ms": 60_000,
        }
