"""TRL's GRPO trainer with prompts rendered by the contract, credit by token, and new prompts for agreeing groups."""

import math
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any

import torch
from accelerate.utils import gather_object

from model_export.data.pairs import Pair
from model_export.data.prompting import Prompting
from model_export.data.rollout_reader import Rollout
from model_export.models.model_io import speed_up
from model_export.recipe_stages import RlConfig
from model_export.teacher.reward import ClassWeights, reward
from model_export.teacher.rollout import Sampler, Sampling
from model_export.teacher.shared_prompts import score_packed, score_rollouts
from model_export.teacher.step_mask import right_steps
from model_export.training.processes import share
from model_export.training.stage_job import StageJob

with warnings.catch_warnings():
    if not torch.cuda.is_available():
        # Without a GPU, vLLM samples no rollouts, and TRL's warning of its version says nothing.
        warnings.filterwarnings("ignore", "TRL currently supports vLLM versions", UserWarning)
    from trl import GRPOConfig, GRPOTrainer

# Gives each token of a group's rollouts its advantage: (the group's pair, rollouts, advantages of the rollouts).
Credit = Callable[[Pair, Sequence[Rollout], Sequence[float]], list[list[float]]]
PARSE_WINDOW = 5  # steps over which the parse rate is averaged


class RlTrainer(GRPOTrainer):  # type: ignore[misc]  # mypy does not read trl
    """TRL's GRPO trainer, with prompts rendered by the contract, new prompts for agreeing groups and `credit` by token.

    Its rows hold the ids of pairs as prompts: TRL would encode a text itself, and a note could become a control token.
    """

    def __init__(
        self,
        *args: Any,
        pairs: Mapping[str, Pair],
        prompting: Prompting,
        config: RlConfig,
        credit: Credit | None,
        **kwargs: Any,
    ) -> None:
        self.pairs = pairs
        self.prompting = prompting
        self.config = config
        self.parse_rates: deque[float] = deque(maxlen=PARSE_WINDOW)
        self._credit = credit
        self._sampled: list[list[int]] | None = None
        trained = [row["prompt"] for row in kwargs["train_dataset"]]
        self._train_ids = trained
        self._class_weights = ClassWeights([pairs[id_] for id_ in trained], config)
        super().__init__(*args, reward_funcs=[self.reward_rollouts], **kwargs)
        self.packs = self.accelerator.device.type == "cpu"
        for model in (self.model, self.ref_model):
            if self.packs and model is not None:
                speed_up(model, compiled=False)

    def reward_rollouts(self, prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        """Return the reward of each completion, with the arguments that TRL gives a reward function."""
        rows = [(self.pairs[id_], ids) for id_, ids in zip(prompts, completion_ids, strict=True)]
        return [
            reward(self._read(pair, ids).trace, pair, self.config, self._class_weights.of(pair))
            for pair, ids in rows
        ]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate with greedy rollouts, so that rewards of two evaluations differ by the weights alone."""
        if self.use_vllm:
            self.vllm_generation.temperature = 0.0
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        if self.use_vllm:
            self.vllm_generation.temperature = self.config.temperature
        return metrics

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [self.prompting.teacher_prompt(self.pairs[id_]) for id_ in prompts], None, {}

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        if self._sampled is not None:
            sampled, self._sampled = self._sampled, None
            return sampled, None
        if self.use_vllm:
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        was_training = self.model.training
        model = self.accelerator.unwrap_model(self.model)
        sampler = Sampler(model, self.prompting.label_token_ids, self.prompting.end_token_id)
        temperature = self.config.temperature if was_training else 0.0
        with self.accelerator.autocast():
            sampled = sampler.sample(
                prompt_ids, Sampling(self.config.max_tokens, temperature, len(prompt_ids))
            )
        model.train(was_training)
        return sampled, None

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **others: Any,
    ) -> Any:
        """Return log-probabilities and entropies of rollouts as TRL does, with shared prompts; in stages that shard, as TRL does."""
        if self.is_fsdp_enabled or others.get("compute_aux_loss"):
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **others
            )
        config = self.accelerator.unwrap_model(model).config
        size = batch_size or len(input_ids)
        score = partial(score_packed, temperature=self.temperature) if self.packs else score_rollouts
        with self.accelerator.autocast():
            scored = [
                score(model, config, ids, mask, logits_to_keep)
                for ids, mask in zip(input_ids.split(size), attention_mask.split(size), strict=True)
            ]
        log_probs, entropies = zip(*scored, strict=True)
        return torch.cat(log_probs), torch.cat(entropies) if compute_entropy else None, None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.model.training and self.config.resamples:
            inputs = self._replace_agreeing(inputs)
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return output
        lengths = output["completion_mask"].sum(-1).tolist()
        rows = zip(inputs, output["completion_ids"].tolist(), lengths, strict=True)
        pairs = [self.pairs[row["prompt"]] for row in inputs]
        rollouts = [self._read(self.pairs[row["prompt"]], ids[:length]) for row, ids, length in rows]
        self._log(pairs, rollouts)
        if self._credit:
            output["advantages"] = self._by_token(self._credit, pairs, rollouts, output)
        return output

    def _replace_agreeing(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Sample rollouts; give groups whose rollouts all earn the same, and so teach nothing, another prompt and sample again."""
        ids = [row["prompt"] for row in inputs]
        sampled = self._sample(ids)
        size, random = self.num_generations, Random(f"{self.args.seed} {self.state.global_step}")
        for _ in range(self.config.resamples):
            groups = (range(start, start + size) for start in range(0, len(ids), size))
            agreeing = [group for group in groups if self._agrees(ids, sampled, group)]
            if not agreeing:
                break
            fresh = [id_ for id_ in random.choices(self._train_ids, k=len(agreeing)) for _ in range(size)]
            places = [index for group in agreeing for index in group]
            for index, id_, completion in zip(places, fresh, self._sample(fresh), strict=True):
                ids[index], sampled[index] = id_, completion
        self._sampled = sampled
        return [{"prompt": id_} for id_ in ids]

    def _agrees(self, ids: Sequence[str], sampled: Sequence[list[int]], group: range) -> bool:
        return len(set(self.reward_rollouts([ids[i] for i in group], [sampled[i] for i in group]))) == 1

    def _sample(self, ids: list[str]) -> list[list[int]]:
        prompt_ids, images, multimodal = self._tokenize_prompts(ids)
        completions, _ = self._generate_single_turn(prompt_ids, images, multimodal, self.num_generations)
        return list(completions)

    def _read(self, pair: Pair, token_ids: Sequence[int]) -> Rollout:
        return self.prompting.reader.read(token_ids, self.prompting.steps(pair.criteria))

    def _by_token(
        self,
        credit: Credit,
        pairs: Sequence[Pair],
        rollouts: Sequence[Rollout],
        output: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """Return the advantage of each token, (rollouts, tokens); 0 for padding."""
        advantages, size = output["advantages"], self.num_generations
        by_token = torch.zeros_like(output["completion_mask"], dtype=advantages.dtype)
        for start in range(0, len(rollouts), size):
            group = slice(start, start + size)
            found = credit(pairs[start], rollouts[group], advantages[group].tolist())
            for row, values in enumerate(found, start):
                by_token[row, : len(values)] = by_token.new_tensor(values)
        kept = (by_token != 0).sum() / ((advantages[:, None] != 0) & (output["completion_mask"] != 0)).sum()
        self._metrics["train"]["unmasked_share"].append(self.accelerator.gather(kept).nanmean().item())
        return by_token

    def _log(self, pairs: Sequence[Pair], rollouts: Sequence[Rollout]) -> None:
        metrics = self._metrics["train"]
        right = (
            right_steps(rollout.trace, pair, "step") for pair, rollout in zip(pairs, rollouts, strict=True)
        )
        local = [
            (rollout.trace, pair.label, steps)
            for pair, rollout, steps in zip(pairs, rollouts, right, strict=True)
        ]
        # Gathered from all processes, like TRL's own metrics.
        seen = gather_object(local)
        parsed = [row for row in seen if row[0] is not None]
        self.parse_rates.append(len(parsed) / len(seen))
        metrics["parse_rate"].append(self.parse_rates[-1])
        found: dict[str, list[bool]] = {"answer": [trace.grade == gold for trace, gold, _ in parsed]}
        for trace, _, steps in parsed:
            for step, is_right in zip(trace.steps, steps, strict=True):
                found.setdefault(step.criterion, []).append(is_right)
        for name, values in found.items():
            if values:
                metrics[f"step_accuracy/{name}"].append(sum(values) / len(values))


def _rollout_arguments(job: StageJob, longest_prompt: int, end_token_id: int) -> dict[str, Any]:
    """Return the arguments of rollouts by vLLM."""
    rollouts = job.recipe.launch.rollouts
    return {
        "use_vllm": True,
        "vllm_mode": rollouts.mode,
        "vllm_tensor_parallel_size": rollouts.tensor_parallel,
        "vllm_gpu_memory_utilization": rollouts.memory_share,
        "vllm_enable_sleep_mode": rollouts.sleep,
        "vllm_server_base_url": rollouts.url,
        # Without it vLLM reserves memory for the longest text that the base can read.
        "vllm_max_model_length": longest_prompt + job.recipe.rl.max_tokens,
        "generation_kwargs": {"stop_token_ids": [end_token_id]},
    }


def grpo_arguments(job: StageJob, longest_prompt: int, end_token_id: int) -> GRPOConfig:
    """Return TRL's arguments of a stage; `longest_prompt` is in tokens."""
    config = job.recipe.rl
    # A saved state does not hold the rollouts: training can only resume at a step that samples new ones.
    save_every = math.ceil((config.save_steps or config.steps) / config.iterations) * config.iterations
    shared = share(job.recipe.launch, job.stage, config.prompts * config.rollouts, config.micro_batch)
    evaluated = {
        "eval_strategy": "steps",
        "eval_steps": config.eval_steps or save_every,
        "eval_on_start": True,
        "num_generations_eval": 1,
        "per_device_eval_batch_size": shared["per_device_train_batch_size"],
    }
    return GRPOConfig(
        output_dir=str(job.folder / "state"),
        max_steps=config.steps,
        **shared,
        **(evaluated if config.dev_pairs else {}),
        num_generations=config.rollouts,
        num_iterations=config.iterations,
        max_completion_length=config.max_tokens,
        temperature=config.temperature,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=2,
        beta=config.beta,
        loss_type=config.loss,
        importance_sampling_level=config.importance_sampling,
        scale_rewards=config.scale_rewards,
        **(_rollout_arguments(job, longest_prompt, end_token_id) if config.vllm else {}),
        bf16=job.recipe.model.precision == "bfloat16",
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        seed=job.recipe.seed,
        logging_steps=1,
        save_strategy="steps" if config.save_steps else "no",
        save_steps=save_every,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
