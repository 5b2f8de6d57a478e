"""A small scoring service on transformers, plain or tuned.

    .venv/bin/python -m load_tests.bench.peers.transformers_server --checkpoint checkpoints/default --tuning tuned --port 8001

POST /score {"prompts": [[token ids]]} answers with the label probabilities of each prompt. It handles one request at a time, since
concurrent forward passes would compete for the same cores.
"""

import copy
import os.path
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModelForCausalLM

from load_tests.arguments import CHECKPOINT, make_parser
from service.contract.manifest import read_manifest
from service.engines.vllm.profile import choose_cpu_dtype

# On two cores with a shared prefix, batches of 10 and 20 are equally fast.
BATCH = 16


class Prompts(BaseModel):
    """Token ids of each prompt."""

    prompts: list[list[int]]


class Scorer(Protocol):
    """Computes label probabilities, in the order of the label ids, for each prompt in order."""

    def score(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]: ...


class PlainScorer:
    """Scores in float32, in padded batches in the order of the request, with logits of all positions and tokens."""

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
    """Scores in the faster dtype, in batches of similar length, with label logits at the last position only.

    The common prefix of a request's prompts (the criteria, and the query if it is before the note) is computed once.
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
        # No mask is needed: attention is causal and the padding is on the right.
        states = self._body(
            input_ids=ids, past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state
        logits = states[torch.arange(len(tails)), last] @ self._label_rows.T
        rows: list[list[float]] = logits.float().softmax(-1).tolist()
        return rows


def pad_right(prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids (B, longest) int64, padded with zeros, and each prompt's last position (B,)."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts])
    return ids, torch.tensor([len(prompt) - 1 for prompt in prompts])


def count_shared(prompts: Sequence[Sequence[int]]) -> int:
    """Count the tokens of the common prefix, leaving at least one token to each prompt; 0 for a single prompt."""
    if len(prompts) < 2:
        return 0
    # commonprefix works on any sequences, not only on paths.
    common = len(os.path.commonprefix([list(prompt) for prompt in prompts]))  # noqa: RUF071
    return min(common, min(map(len, prompts)) - 1)


def build_app(scorer: Scorer) -> FastAPI:
    """Build the service around a scorer."""
    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    # It blocks the event loop: one request at a time, and in the main thread, where engines expect to be called.
    @app.post("/score")
    async def score(body: Prompts) -> list[list[float]]:
        return scorer.score(body.prompts)

    return app


def serve(scorer: Scorer, port: int) -> None:
    """Serve until the process ends."""
    uvicorn.run(build_app(scorer), host="127.0.0.1", port=port, log_level="warning")


def main() -> None:
    """Read the command line, load and serve."""
    parser = make_parser(__doc__, checkpoint=CHECKPOINT, port=8001)
    parser.add_argument("--tuning", choices=("default", "tuned"), required=True)
    options = parser.parse_args()
    labels = read_manifest(options.checkpoint).label_token_ids
    if options.tuning == "tuned":
        dtype = getattr(torch, choose_cpu_dtype(options.checkpoint, "auto"))
        serve(TunedScorer(options.checkpoint, labels, dtype), options.port)
    else:
        serve(PlainScorer(options.checkpoint, labels), options.port)


if __name__ == "__main__":
    main()
