"""The log-probabilities of rollouts, with the prompt that a group of them shares computed once.

Prompts are most of a batch's tokens: a group of eight rollouts has eight copies of one. The rollouts attend to the keys and values of
one copy, and its gradient is the sum of theirs, as in Prefix Grouper (https://arxiv.org/abs/2506.05433).
"""

from typing import Any

import torch
from transformers import DynamicCache, PretrainedConfig


def score_rollouts(
    model: Any, config: PretrainedConfig, ids: torch.Tensor, mask: torch.Tensor, width: int
) -> Any:
    """Return the output of TRL's fused head for the last `width` tokens of each row: `log_probs`, (rows, width), 0 where the mask is 0.

    `entropy` has the same shape; it is None where the head does not compute it, as in TRL's reference model.

    Rows are a prompt, padded on the left, and a rollout, padded on the right: token ids and attention mask, (rows, tokens).
    """
    # The last token of the prompt is computed with each rollout, since it predicts the rollout's first.
    parts = [ids.shape[1] - width - 1, width + 1]
    (prompt_ids, rest), (prompt_mask, rest_mask) = ids.split(parts, dim=1), mask.split(parts, dim=1)
    prompts, rows = torch.unique(torch.stack([prompt_ids, prompt_mask], dim=1), dim=0, return_inverse=True)
    cache = DynamicCache(config=config)
    model(
        input_ids=prompts[:, 0],
        attention_mask=prompts[:, 1],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    cache.batch_select_indices(rows)
    return model(
        input_ids=rest,
        attention_mask=mask,
        past_key_values=cache,
        labels=rest.masked_fill(rest_mask == 0, -100),
        fused_lm_head=True,
    )
