"""Reinforcement learning of the teacher: TRL's GRPO, with or without the step mask.

Left out of GRPO as first published (arXiv 2402.03300): the KL term, unless `beta` is set, and several updates per
rollout, unless `iterations` is set. Added: with the mask, advantages are (rollouts, tokens) instead of (rollouts,).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from model_export.data.pairs import Pair
from model_export.data.prompting import Prompting
from model_export.data.rollout_reader import Rollout, RolloutReader
from model_export.models.model_io import load_model, load_tokenizer
from model_export.recipe import RlConfig
from model_export.run_log import LOG_NAME, RunLog
from model_export.teacher.reward import reward
from model_export.teacher.step_mask import step_mask
from model_export.training.processes import save_trained, share
from model_export.training.stage_job import OnStep, StageJob
from model_export.training.supervised import Reporter, freeze_all_but_linears, saved_state
from service.errors import NotegradeError


class StepMaskError(NotegradeError):
    """Raised for settings that would silently undo the step mask."""


def check_settings(args: GRPOConfig) -> None:
    """Raise StepMaskError for a setting under which the loss would not follow a mask by tokens."""
    if args.importance_sampling_level != "token":
        raise StepMaskError(
            f"importance_sampling_level={args.importance_sampling_level!r} gives all tokens of a rollout one ratio, so "
            "masked tokens would change with the others: set it to 'token'"
        )
    if args.loss_type in {"luspo", "vespo"}:
        raise StepMaskError(
            f"loss_type={args.loss_type!r} weighs a sequence as one: choose grpo, bnpo, dr_grpo, dapo or cispo"
        )
    if args.off_policy_mask_threshold is not None:
        raise StepMaskError(
            "off_policy_mask_threshold drops whole rollouts by the sign of their advantage: leave it unset"
        )
    if args.use_liger_kernel:
        raise StepMaskError("use_liger_kernel takes one advantage per rollout: leave it off")


class StepMaskTrainer(GRPOTrainer):  # type: ignore[misc]  # mypy does not read trl
    """TRL's GRPO trainer with prompts rendered by the contract and, if `masked`, advantages masked by step."""

    def __init__(
        self, *args: Any, prompts: Mapping[str, list[int]], reader: RolloutReader, masked: bool, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if masked:
            check_settings(self.args)
        self._prompts = prompts
        self._reader = reader
        self._masked = masked

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        # The dataset holds pair ids in place of prompts: TRL would encode a text itself, and a note could become a control token.
        return [self._prompts[prompt] for prompt in prompts], None, {}

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        rollouts = self._read(output, inputs)
        self._log_steps(rollouts, inputs)
        if self._masked:
            output["advantages"] = masked_advantages(
                output["advantages"], rollouts, inputs, output["completion_mask"]
            )
        return output

    def _read(self, output: Mapping[str, torch.Tensor], inputs: Sequence[Mapping[str, Any]]) -> list[Rollout]:
        lengths = output["completion_mask"].sum(-1).tolist()
        rows = zip(output["completion_ids"].tolist(), lengths, inputs, strict=True)
        return [self._reader.read(ids[:length], row["steps"]) for ids, length, row in rows]

    def _log_steps(self, rollouts: Sequence[Rollout], inputs: Sequence[Mapping[str, Any]]) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        # Gathered from all processes, like TRL's own metrics.
        seen = gather_object(
            [(rollout.trace, row["label"]) for rollout, row in zip(rollouts, inputs, strict=True)]
        )
        parsed = [(trace, gold) for trace, gold in seen if trace is not None]
        metrics["parse_rate"].append(len(parsed) / len(seen))
        right: dict[str, list[bool]] = {"answer": [trace.grade == gold for trace, gold in parsed]}
        for trace, gold in parsed:
            for step in trace.steps:
                right.setdefault(step.criterion, []).append(step.grade == gold)
        for name, values in right.items():
            if values:
                metrics[f"step_accuracy/{name}"].append(sum(values) / len(values))


def masked_advantages(
    advantages: torch.Tensor,
    rollouts: Sequence[Rollout],
    inputs: Sequence[Mapping[str, Any]],
    completion_mask: torch.Tensor,
) -> torch.Tensor:
    """Turn one advantage per rollout, (rollouts,), into one per token, (rollouts, tokens); 0 for padding."""
    mask = torch.zeros_like(completion_mask, dtype=advantages.dtype)
    for index, (rollout, row) in enumerate(zip(rollouts, inputs, strict=True)):
        values = step_mask(rollout, row["label"], advantages[index].item())
        mask[index, : len(values)] = torch.tensor(values, dtype=mask.dtype, device=mask.device)
    return advantages.unsqueeze(1) * mask


def train_rl(pairs: Sequence[Pair], prompting: Prompting, job: StageJob, on_step: OnStep) -> None:
    """Train the SFT teacher on the reward of its rollouts, with the step mask in the stage `sam`, and write it to the folder."""
    config = job.recipe.rl
    model, tokenizer = load_model(job.start), load_tokenizer(job.start)
    if not job.from_scratch:
        freeze_all_but_linears(model, config.frozen_layers)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    prompts = {pair.id: prompting.teacher_prompt(pair) for pair in pairs}
    rows = [
        {"prompt": pair.id, "label": pair.label, "steps": list(prompting.steps(pair.criteria))}
        for pair in pairs
    ]
    trainer = StepMaskTrainer(
        model=model,
        reward_funcs=[reward_function(config, prompting.reader)],
        args=_arguments(job, max(map(len, prompts.values()))),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Reporter(RunLog(job.folder / LOG_NAME, job.stage), on_step)],
        prompts=prompts,
        reader=prompting.reader,
        masked=job.stage == "sam",
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=saved_state(job.folder / "state"))
    save_trained(trainer, tokenizer, job.folder)


def reward_function(config: RlConfig, reader: RolloutReader) -> Any:
    """Return the function that rewards a batch of completions, with the arguments that TRL gives it."""

    def grade_and_form(
        completion_ids: list[list[int]], label: list[int], steps: list[list[str]], **_: Any
    ) -> list[float]:
        rows = zip(completion_ids, label, steps, strict=True)
        return [reward(reader.read(ids, criteria).trace, gold, config) for ids, gold, criteria in rows]

    return grade_and_form


def _arguments(job: StageJob, longest_prompt: int) -> GRPOConfig:
    config = job.recipe.rl
    # A saved state does not hold the rollouts: training can only resume at a step that samples new ones.
    save_every = math.ceil((config.save_steps or config.steps) / config.iterations) * config.iterations
    return GRPOConfig(
        output_dir=str(job.folder / "state"),
        max_steps=config.steps,
        **share(job.recipe.launch, config.prompts * config.rollouts),
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
        use_vllm=config.vllm,
        # Without it vLLM reserves memory for the longest text that the base can read.
        vllm_max_model_length=longest_prompt + config.max_tokens,
        bf16=config.precision == "bfloat16",
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
