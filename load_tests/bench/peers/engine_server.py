"""Serves vLLM's `LLM.generate` with the settings of Notegrade's engine.

POST /score {"prompts": [[token ids]]} gives the engine all prompts at once, and answers with their label probabilities.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vllm import LLM, SamplingParams
from vllm.platforms import current_platform

from load_tests.arguments import CHECKPOINT, make_parser
from load_tests.bench.peers.transformers_server import serve
from service.contract.checkpoint import Checkpoint, load_checkpoint
from service.contract.labels import LabelDistribution
from service.engines.vllm.profile import choose_cpu_dtype

# The service's defaults of NOTEGRADE_ENGINE_MAX_BATCHED_TOKENS and _MAX_SEQUENCES.
BATCHED_TOKENS, SEQUENCES = 1024, 64


class EngineScorer:
    """Scores with vLLM's engine, whose arguments are those of the service with some changes."""

    def __init__(self, checkpoint: Checkpoint, changes: Mapping[str, Any]) -> None:
        longest = checkpoint.renderer.max_prompt_tokens + 1
        hardware: dict[str, Any] = {}
        if current_platform.is_cpu():
            hardware = {
                "dtype": choose_cpu_dtype(checkpoint.folder, "auto"),
                "block_size": 32,
                "enforce_eager": True,
                "distributed_executor_backend": "uni",
            }
        arguments = {
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            "max_model_len": longest,
            "max_num_batched_tokens": max(BATCHED_TOKENS, longest),
            "max_num_seqs": SEQUENCES,
            "enable_prefix_caching": True,
            **hardware,
            **changes,
        }
        self._llm = LLM(model=str(checkpoint.folder), **arguments)
        self._labels = list(checkpoint.manifest.label_token_ids)
        self._params = SamplingParams(
            max_tokens=1, temperature=0, detokenize=False, logprob_token_ids=self._labels
        )

    def score(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """See Scorer."""
        inputs = [{"prompt_token_ids": ids} for ids in prompts]
        outputs = self._llm.generate(inputs, self._params, use_tqdm=False)
        return [self._probabilities(output) for output in outputs]

    def _probabilities(self, output: Any) -> list[float]:
        [found] = output.outputs[0].logprobs
        logprobs = [found[label].logprob if label in found else -math.inf for label in self._labels]
        return list(LabelDistribution.from_logprobs(logprobs).probabilities)


def main() -> None:
    """Read the command line, load and serve."""
    options = make_parser(__doc__, checkpoint=CHECKPOINT, changes="{}", port=8001).parse_args()
    serve(EngineScorer(load_checkpoint(options.checkpoint), json.loads(options.changes)), options.port)


if __name__ == "__main__":
    main()
