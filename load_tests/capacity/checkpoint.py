"""Measures the lengths of a checkpoint's prompts for the capacity model."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from load_tests.bench.workloads import Renderer, Shape, cold
from load_tests.capacity.prefix import Order, Prompt
from service.contract.manifest import Manifest, SlotPiece, read_manifest

_SAMPLE = 30


def order_of(manifest: Manifest) -> Order:
    """Return whether the note or the query comes first in the checkpoint's prompts."""
    slots = [piece.slot for piece in manifest.template.pieces if isinstance(piece, SlotPiece)]
    return "note-first" if slots.index("body") < slots.index("query") else "query-first"


def read_prompt(checkpoint: Path, note_tokens: float, block: int) -> Prompt:
    """Compute mean lengths over generated requests with that mean note length, as the checkpoint renders and truncates them."""
    renderer = Renderer.load(checkpoint)
    asked = itertools.islice(cold("lengths", Shape(notes=4, note_tokens=note_tokens)), _SAMPLE)
    prompts = [renderer.render(each).prompts for each in asked]
    order = order_of(read_manifest(checkpoint))
    head = _common([of_request[0] for of_request in prompts])
    # The pairs of one request share their query, at the end or after the head.
    if order == "note-first":
        queries = [_common([prompt[::-1] for prompt in of_request]) for of_request in prompts]
    else:
        queries = [_common(of_request) - head for of_request in prompts]
    notes = [
        len(prompt) - head - query
        for of_request, query in zip(prompts, queries, strict=True)
        for prompt in of_request
    ]
    return Prompt(head, fmean(notes), fmean(queries), order, block, stdev(notes), stdev(queries))


def _common(prompts: Sequence[tuple[int, ...]]) -> int:
    """Count the tokens of the common prefix."""
    first, last = min(prompts), max(prompts)  # their common prefix is that of all prompts sorted between them
    differing = (place for place, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1])
    return next(differing, min(len(first), len(last)))
