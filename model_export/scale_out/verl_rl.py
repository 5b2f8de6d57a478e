"""verl's GRPO with our prompts, reward and step mask. Only this file imports verl; recipes/verl/grpo_step.yaml names its parts.

A process of verl loads it where VERL_USE_EXTERNAL_MODULES names it, which the recipe sets.
  PromptLoop       sends prompts as token ids: verl's own loop encodes texts, and a note could become a control token
  compute_score    the reward, for `reward.custom_reward_function`
  grpo_batch       advantages scaled as TRL's `scale_rewards = "batch"` scales them
  StepMaskTrainer  verl's synchronous trainer with the step mask: verl hands an estimator rewards, but no tokens to mask
"""

from typing import Any
from uuid import uuid4

import numpy as np
import torch
import transfer_queue as tq
from tensordict import TensorDict
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput, register
from verl.trainer.ppo.core_algos import register_adv_est
from verl.trainer.ppo.v1 import PPOTrainerSync, register_trainer

from model_export.scale_out.verl_rows import Task, mask_batch

_EPSILON = 1e-4  # TRL's


@register("notegrade")
class PromptLoop(AgentLoopBase):  # type: ignore[misc]  # mypy does not read verl
    """Samples one rollout of a row's prompt, which is token ids already."""

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> AgentLoopOutput:
        """Return the rollout. Its tokens travel to the reward function, which verl gives decoded text alone."""
        prompt = list(row["raw_prompt"])
        sampled = await self.server_manager.generate(
            request_id=uuid4().hex,
            prompt_ids=prompt,
            sampling_params=sampling_params | {"stop_token_ids": [self.tokenizer.eos_token_id]},
        )
        rollout = sampled.token_ids[: self.rollout_config.response_length]
        return AgentLoopOutput(
            prompt_ids=prompt,
            response_ids=rollout,
            response_mask=[1] * len(rollout),
            response_logprobs=sampled.log_probs[: len(rollout)] if sampled.log_probs else None,
            num_turns=2,
            metrics={},
            extra_fields=sampled.extra_fields | {"token_ids": rollout},
        )


def compute_score(*, extra_info: dict[str, Any], teacher: str, **_: Any) -> float:
    """Return a rollout's reward; `teacher` is the folder of its tokenizer."""
    task = Task.of_json(extra_info["task"])
    return task.reward(task.read(extra_info["token_ids"], teacher))


@register_adv_est("grpo_batch")  # type: ignore[untyped-decorator]  # mypy does not read verl
def grpo_batch(
    token_level_rewards: torch.Tensor, response_mask: torch.Tensor, index: np.ndarray, **_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return advantages and returns, both (rollouts, tokens): rewards minus their group's mean, by the batch's deviation."""
    rewards = token_level_rewards.sum(-1)
    _, inverse = np.unique(index.astype(str), return_inverse=True)
    groups = torch.as_tensor(inverse)
    means = torch.zeros(len(rewards)).scatter_reduce(0, groups, rewards, "mean", include_self=False)
    advantages = (rewards - means[groups]) / (rewards.std() + _EPSILON)
    by_token = advantages.unsqueeze(-1) * response_mask
    return by_token, by_token


@register_trainer("step_mask")
class StepMaskTrainer(PPOTrainerSync):  # type: ignore[misc]  # mypy does not read verl
    """verl's synchronous trainer, whose advantages the step mask limits to the steps that earned them."""

    def __init__(self, config: Any) -> None:
        config.trainer.v1.trainer_mode = (
            "sync"  # verl compares the name with this one, to choose how it samples
        )
        super().__init__(config)

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        # verl 0.9 has no public step between the advantages and the update.
        batch = super()._compute_advantage(batch, metrics)
        where = {"keys": batch.keys, "partition_id": batch.partition_id}
        found = tq.kv_batch_get(**where, select_fields=["uid", "responses", "extra_info", "advantages"])
        tasks = [Task.of_json(row["task"]) for row in found.pop("extra_info").tolist()]
        teacher = self.config.actor_rollout_ref.model.path
        rollouts = [
            task.read(row.tolist(), teacher)
            for task, row in zip(tasks, found["responses"].unbind(), strict=True)
        ]
        plain = [row[0].item() for row in found["advantages"].unbind()]
        masked = mask_batch(found.pop("uid").tolist(), tasks, rollouts, plain)
        metrics["rollouts/parse_rate"] = sum(each.trace is not None for each in rollouts) / len(rollouts)
        rows = torch.nested.as_nested_tensor([torch.tensor(row) for row in masked], layout=torch.jagged)
        return tq.kv_batch_put(**where, fields=TensorDict({"advantages": rows}, batch_size=len(masked)))
