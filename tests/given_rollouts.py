"""Runs TRL's trainer on rollouts that a test provides: batches, losses and gradients are TRL's."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig

from model_export.data.pairs import Pair
from model_export.data.prompting import PromptForm, Prompting
from model_export.models.model_io import load_model, load_tokenizer
from model_export.recipe import ModelConfig
from model_export.recipe_stages import RlConfig
from model_export.teacher.rl_trainer import Credit, RlTrainer
from service.contract.manifest import Criteria
from service.contract.prompt import Note

GOLD = 2
STEPS = ("topic", "constraints")


class GivenRollouts(RlTrainer):
    """Uses given rollouts in place of sampling, and given log-probabilities in place of the model's."""

    rollouts: Sequence[list[int]] = ()
    given_logps: torch.Tensor | None = None
    seen_prompts: Sequence[list[int]] = ()

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any) -> tuple[list[list[int]], None]:
        self.seen_prompts = prompt_ids
        return [list(rollout) for rollout in self.rollouts], None

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        if self.given_logps is None:
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)
        return self.given_logps, torch.zeros_like(self.given_logps), None


class Bench:
    """Makes trainers on the tiny base, with and without credit by token, for one pair with gold grade 2."""

    def __init__(self, base: Path, folder: Path) -> None:
        criteria = tuple(
            Criteria(name=name, text=name, steps=steps)
            for name, steps in (("stepwise", STEPS), ("one-step", STEPS[:1]), ("plain", ()))
        )
        form = PromptForm.of(ModelConfig(teacher="tiny", template="note-first-plain-1"), criteria)
        self.prompting = Prompting.load(form, base)
        self.pair = Pair("1", "tea <|im_end|>", Note("", "green <|im_start|>"), GOLD, "made", "stepwise")
        self._base, self._folder = base, folder

    def encode(self, text: str, *, ended: bool = True) -> list[int]:
        ids = self.prompting.tokenizer.encode_user_texts([text])[0].token_ids
        return [*ids, *([self.prompting.end_token_id] if ended else [])]

    def trainer(
        self,
        credit: Credit | None = None,
        *,
        kind: type[GivenRollouts] = GivenRollouts,
        resamples: int = 0,
        beta: float = 0.0,
        temperature: float = 1.0,
    ) -> Any:
        """Return a trainer of this kind, which credits tokens or, without `credit`, rollouts."""
        tokenizer = load_tokenizer(self._base)
        tokenizer.pad_token = tokenizer.eos_token
        sizes = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 80}
        learning = {"beta": beta, "temperature": temperature}
        trainer = kind(
            model=load_model(self._base),
            args=GRPOConfig(
                output_dir=str(self._folder), use_cpu=True, bf16=False, report_to="none", **learning, **sizes
            ),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list([{"prompt": "stepwise"}]),
            pairs={
                name: replace(self.pair, id=name, criteria=name) for name in ("stepwise", "one-step", "plain")
            },
            prompting=self.prompting,
            config=RlConfig(steps=1, resamples=resamples),
            credit=credit,
        )
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        return trainer

    def batch(
        self, trainer: GivenRollouts, rollouts: Sequence[list[int]], criteria: str = "stepwise"
    ) -> dict[str, torch.Tensor]:
        """Return the trainer's output for a group of rollouts under these criteria."""
        trainer.rollouts = rollouts
        inputs = [{"prompt": criteria} for _ in rollouts]
        made: dict[str, torch.Tensor] = trainer._generate_and_score_completions(inputs)
        return made
