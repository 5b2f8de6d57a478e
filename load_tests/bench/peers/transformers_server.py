"""A small scoring service on transformers, plain or tuned: what `transformers_loop.py` starts.

    .venv/bin/python -m load_tests.bench.peers.transformers_server --model checkpoints/default --labels 32,33,34,35 --tuning best --port 8001

POST /score {"prompts": [[token ids]]} answers with the labels' probabilities of each prompt. Plain or tuned, it works on one
request at a time: two forward passes at once would fight for the same cores.
"""

import argparse
import copy
import os.path
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModelForCausalLM

from service.engines.vllm.profile import choose_cpu_dtype

# Measured on two cores, with a shared prefix: batches of 10 and 20 are equally fast.
BATCH = 16


class Prompts(BaseModel):
    """Token ids of each prompt."""

    prompts: list[list[int]]


class Scorer(Protocol):
    """Label probabilities, in the order of the label ids, for each prompt in order."""

    def score(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]: ...


class PlainScorer:
    """float32, padded batches in the order of the request, logits of every position and token."""

    def __init__(self, folder: Path, label_token_ids: Sequence[int]) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._labels = list(label_token_ids)

    def score(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """See Scorer."""
        return [
            row
            for start in range(0, len(prompts), BATCH)
            for row in self._batch(prompts[start : start + BATCH])
        ]

    def _batch(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        ids, last = pad_right(prompts)
        mask = torch.arange(ids.shape[1]) <= last[:, None]
        with torch.no_grad():
            logits = self._model(input_ids=ids, attention_mask=mask.long()).logits
        rows: list[list[float]] = (
            logits[torch.arange(len(prompts)), last][:, self._labels].softmax(-1).tolist()
        )
        return rows


class TunedScorer:
    """The faster dtype, batches of like length, the labels' logits at the last position alone, and a prefix computed once.

    The prefix is what all prompts of a request begin with: the criteria, and the query where it comes before the note.
    """

    def __init__(self, folder: Path, label_token_ids: Sequence[int], dtype: torch.dtype) -> None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self._body = model.base_model
        self._label_rows = model.get_output_embeddings().weight[list(label_token_ids)].detach()

    def score(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """See Scorer."""
        shared = count_shared(prompts)
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        rows: dict[int, list[float]] = {}
        with torch.inference_mode():
            prefix = self._compute_prefix(prompts[0][:shared]) if shared else None
            for start in range(0, len(by_length), BATCH):
                batch = by_length[start : start + BATCH]
                rows |= zip(batch, self._batch([prompts[i][shared:] for i in batch], prefix), strict=True)
        return [rows[i] for i in range(len(prompts))]

    def _compute_prefix(self, token_ids: Sequence[int]) -> Any:
        return self._body(input_ids=torch.tensor([list(token_ids)]), use_cache=True).past_key_values

    def _batch(self, tails: Sequence[Sequence[int]], prefix: Any) -> list[list[float]]:
        ids, last = pad_right(tails)
        cache = copy.deepcopy(prefix)
        if cache is not None:
            cache.batch_repeat_interleave(len(tails))
        # No mask: a token sees none that follow it, and padding follows all.
        states = self._body(
            input_ids=ids, past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state
        logits = states[torch.arange(len(tails)), last] @ self._label_rows.T
        rows: list[list[float]] = logits.float().softmax(-1).tolist()
        return rows


def pad_right(prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, longest) int64, padded with zeros, and each prompt's last position (B,)."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts])
    return ids, torch.tensor([len(prompt) - 1 for prompt in prompts])


def count_shared(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, at least one left to each; 0 for a prompt alone."""
    if len(prompts) < 2:
        return 0
    # By item, of any sequences: no path is meant.
    common = len(os.path.commonprefix([list(prompt) for prompt in prompts]))  # noqa: RUF071
    return min(common, min(map(len, prompts)) - 1)


def build_app(scorer: Scorer) -> FastAPI:
    """The service around a scorer."""
    app = FastAPI()
    alone = threading.Lock()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/score")
    def score(body: Prompts) -> list[list[float]]:
        with alone:
            return scorer.score(body.prompts)

    return app


def main() -> None:
    """Read the command line, load and serve."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--labels", required=True)
    parser.add_argument("--tuning", choices=("default", "tuned"), required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    labels = [int(token_id) for token_id in options.labels.split(",")]
    scorer: Scorer
    if options.tuning == "tuned":
        dtype = getattr(torch, choose_cpu_dtype(options.model, "auto"))
        scorer = TunedScorer(options.model, labels, dtype)
    else:
        scorer = PlainScorer(options.model, labels)
    uvicorn.run(build_app(scorer), host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
