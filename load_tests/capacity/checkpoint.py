"""Measures the lengths of a checkpoint's prompts for the capacity model."""

import os.path
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from load_tests.bench.workloads import Shape, cold, take
from load_tests.capacity.prefix import Order, Prompt
from service.contract.manifest import Manifest, read_manifest
from service.contract.prompt import PromptRenderer
from service.contract.template import SlotPiece
from service.contract.tokenizer import ContractTokenizer

_SAMPLE = 30


def order_of(manifest: Manifest) -> Order:
    """Return whether the note or the query comes first in the checkpoint's prompts."""
    slots = [piece.slot for piece in manifest.template.pieces if isinstance(piece, SlotPiece)]
    return "note-first" if slots.index("body") < slots.index("query") else "query-first"


def read_prompt(checkpoint: Path, note_tokens: float, block: int) -> Prompt:
    """Compute mean lengths over generated requests with that mean note length, as the checkpoint renders and truncates them."""
    manifest = read_manifest(checkpoint)
    renderer = PromptRenderer(manifest, ContractTokenizer.load(checkpoint))
    asked = cold("lengths", Shape(notes=4, note_tokens=note_tokens))
    prompts = [request.prompts for request in take(renderer, asked, _SAMPLE)]
    order = order_of(manifest)
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
    return len(os.path.commonprefix(list(prompts)))  # noqa: RUF071 - it works on any sequences, not only on paths
