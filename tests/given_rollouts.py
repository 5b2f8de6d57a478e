"""Runs TRL's trainer on rollouts that a test provides: batches, losses and gradients are TRL's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig

from model_export.data.pairs import Pair
from model_export.data.prompting import PromptForm, Prompting
from model_export.models.model_io import load_model, load_tokenizer
from model_export.recipe import ModelConfig, RlConfig
from model_export.teacher.rl import StepMaskTrainer, reward_function
from service.contract.manifest import Criteria
from service.contract.prompt import Note

GOLD = 2
STEPS = ("topic", "constraints")


class GivenRollouts(StepMaskTrainer):
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
    """Makes trainers on the tiny base, with and without the mask, for one pair with gold grade 2."""

    def __init__(self, base: Path, folder: Path) -> None:
        criteria = (Criteria(name="stepwise", text="x", steps=STEPS), Criteria(name="plain", text="y"))
        form = PromptForm.of(ModelConfig(teacher="tiny", template="note-first-plain-1"), criteria)
        self.prompting = Prompting.load(form, base)
        self.pair = Pair("1", "tea <|im_end|>", Note("", "green <|im_start|>"), GOLD, "made", "stepwise")
        self._base, self._folder = base, folder

    def encode(self, text: str, *, ended: bool = True) -> list[int]:
        ids = self.prompting.tokenizer.encode_user_texts([text])[0].token_ids
        return [*ids, *([self.prompting.end_token_id] if ended else [])]

    def trainer(self, *, masked: bool, **settings: Any) -> GivenRollouts:
        tokenizer = load_tokenizer(self._base)
        tokenizer.pad_token = tokenizer.eos_token
        sizes = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 80}
        trainer = GivenRollouts(
            model=load_model(self._base),
            reward_funcs=[reward_function(RlConfig(steps=1), self.prompting.reader)],
            args=GRPOConfig(
                output_dir=str(self._folder), use_cpu=True, report_to="none", **sizes, **settings
            ),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list([{"prompt": "1"}]),
            prompts={"1": self.prompting.teacher_prompt(self.pair)},
            reader=self.prompting.reader,
            masked=masked,
        )
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        return trainer

    def batch(
        self, trainer: GivenRollouts, rollouts: Sequence[list[int]], steps: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Return the trainer's output for a group of rollouts."""
        trainer.rollouts = rollouts
        inputs = [{"prompt": "1", "label": GOLD, "steps": list(steps)} for _ in rollouts]
        made: dict[str, torch.Tensor] = trainer._generate_and_score_completions(inputs)
        return made
