"""Supervised training of a causal model on graded pairs: one loop for the control, the SFT teacher and the student.

An example is a prompt, a completion and, where the first token after the prompt is the grade, its soft label:
  control      prompt, no completion, soft label
  SFT teacher  prompt, steps and answer, no soft label
  student      prompt, grade and steps, soft label; it may also learn the order of a query's pairs
"""

import json
import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from model_export.data.pairs import UNJUDGED
from model_export.models.model_io import speed_up
from model_export.recipe import LaunchConfig, Precision
from model_export.recipe_stages import CrossEncoderConfig, TrainConfig
from model_export.run_log import LOG_NAME, RunLog
from model_export.training.batches import IGNORED, Example, collate, model_inputs, plan_order
from model_export.training.frozen_outputs import cache_frozen_activations, run_layers
from model_export.training.processes import share
from model_export.training.ranking import Ranking, rank_scores, ranking_loss
from model_export.training.stage_job import OnStep, StageJob
from service.errors import NotegradeError

OUTPUTS_NAME = "frozen_outputs.bin"
_CORRELATION_WINDOW = 512
_LOG_STEPS = 5

AfterStep = Callable[[PreTrainedModel, int], bool]


class TrainingError(NotegradeError):
    """Raised for a stage in which no weight would learn."""


def losses(
    logits: torch.Tensor, batch: dict[str, torch.Tensor], label_token_ids: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean cross-entropy of the grade token to its soft label, and that of the completion's weighted tokens.

    Both are over the whole vocabulary, so that label mass is learned too.

    Args:
        logits: (predictions, vocabulary); those of an example predict its completion, or the token right after its prompt.
        batch: `starts` (batch), the first prediction of each example; `soft_labels` (batch, grades), rows of zeros for examples
            without one; `targets` (predictions), IGNORED where a token is not to be learned; `weights` (predictions), float32.
    """
    first = torch.log_softmax(logits[batch["starts"]].float(), dim=-1)[:, list(label_token_ids)]
    grade = -(batch["soft_labels"] * first).sum(-1).mean()
    targets = batch["targets"]
    count = _count_targets(batch)
    if not count:
        return grade, grade.new_zeros(())
    tokens = torch.nn.functional.cross_entropy(
        logits.float(), targets, ignore_index=IGNORED, reduction="none"
    )
    return grade, (tokens * batch["weights"]).sum() / count


class GradingTrainer(Trainer):  # type: ignore[misc]  # mypy does not read transformers
    """transformers' Trainer, which logs each of our losses and the correlation of expected and gold grade too.

    Watch the correlation: a model that only learns the prior lowers its loss all the same.
    """

    def __init__(self, *args: Any, label_token_ids: Sequence[int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False
        self.label_token_ids = list(label_token_ids)
        self._seen: deque[tuple[float, float]] = deque(maxlen=_CORRELATION_WINDOW)
        self._parts: deque[dict[str, float]] = deque(maxlen=_LOG_STEPS)

    def note(
        self,
        losses: Mapping[str, torch.Tensor],
        probabilities: torch.Tensor,
        gold: torch.Tensor,
        graded: torch.Tensor,
    ) -> None:
        """Note a step's losses, and the expected grades of the judged pairs among those that are `graded`."""
        self._parts.append({name: loss.item() for name, loss in losses.items()})
        probabilities = probabilities.detach()
        expected = probabilities @ torch.arange(probabilities.shape[1], device=gold.device).float()
        counted = graded & (gold != UNJUDGED)
        self._seen.extend(zip(expected[counted].tolist(), gold[counted].tolist(), strict=True))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add each loss and the correlation to what the Trainer logs."""
        if self._parts and "loss" in logs:
            for name in {name: None for part in self._parts for name in part}:
                found = [part[name] for part in self._parts if name in part]  # a step may lack a loss
                logs[name] = sum(found) / len(found)
            if len(self._seen) > 2:
                logs["correlation"] = torch.corrcoef(torch.tensor(list(self._seen)).T)[0, 1].item()
        super().log(logs, *args, **kwargs)


class SupervisedTrainer(GradingTrainer):
    """Learns the grade right after the prompt, the completion and, if asked to, the order of a query's pairs."""

    def __init__(self, *args: Any, trace_weight: float, ranking: Ranking | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._trace_weight = trace_weight
        self._ranking = ranking
        self._targets_per_micro_batch = 0.0

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], None]:
        """Return the micro-batches of one step of this process, and count the step's target tokens over all processes."""
        batches: list[Any] = super().get_batch_samples(epoch_iterator, num_batches, device)[0]
        own = torch.tensor([_count_targets(batch) for batch in batches], dtype=torch.float64, device=device)
        self._targets_per_micro_batch = self.accelerator.gather(own).mean().item()
        return batches, None

    def compute_loss(self, model: Any, inputs: dict[str, Any], **_: Any) -> torch.Tensor:
        """Return the sum of the losses; those on traces and rankings are weighted."""
        gold = inputs.pop("labels")
        logits = model(**model_inputs(inputs), use_cache=False).logits[0]
        grade, tokens = losses(logits, inputs, self.label_token_ids)
        if self._targets_per_micro_batch:
            # Each target token of the step weighs the same, in whatever micro-batch and process it is.
            tokens = tokens * (_count_targets(inputs) / self._targets_per_micro_batch)
        loss, parts = grade + self._trace_weight * tokens, {"grade_loss": grade, "trace_loss": tokens}
        probabilities = logits[inputs["starts"]][:, self.label_token_ids].float().softmax(-1)
        if self._ranking:
            targets = rank_scores(inputs["soft_labels"])
            ranking = ranking_loss(self._ranking.loss, rank_scores(probabilities), targets, inputs["groups"])
            loss, parts = loss + self._ranking.weight * ranking, {**parts, "ranking_loss": ranking}
        self.note(parts, probabilities, gold, inputs["soft_labels"].sum(-1) > 0)
        return loss


class Reporter(TrainerCallback):  # type: ignore[misc]  # mypy does not read transformers
    """Writes a trainer's metrics to the run log, and reports its progress."""

    def __init__(self, log: RunLog, on_step: OnStep, after_step: AfterStep | None = None) -> None:
        """`after_step` gets the model and the number of steps done; training ends when it returns True."""
        self._log = log
        self.on_step = on_step
        self._after_step = after_step

    @classmethod
    def of(cls, job: StageJob, on_step: OnStep, after_step: AfterStep | None = None) -> Self:
        """Return the reporter of a stage, which writes to the log in its folder."""
        return cls(RunLog(job.folder / LOG_NAME, job.stage), on_step, after_step)

    def on_step_end(
        self, _args: Any, state: TrainerState, control: TrainerControl, *, model: PreTrainedModel, **_: Any
    ) -> None:
        if state.is_world_process_zero:
            self.on_step(state.global_step, state.max_steps)
        if self._after_step and self._after_step(model, state.global_step):
            control.should_training_stop = True

    def on_log(
        self, _args: Any, state: TrainerState, _control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if logs and state.is_world_process_zero:
            self._log.write(state.global_step, logs)


def _count_targets(batch: dict[str, torch.Tensor]) -> int:
    return int((batch["targets"] != IGNORED).sum())


@dataclass(frozen=True, slots=True)
class StageSettings:
    """Settings of a supervised stage, its name, and the folder it works in."""

    stage: str
    config: TrainConfig
    seed: int
    folder: Path
    label_token_ids: Sequence[int]
    precision: Precision = "float32"
    trace_weight: float = 1.0
    ranking: Ranking | None = None
    launch: LaunchConfig = field(default_factory=LaunchConfig)


def train(
    model: PreTrainedModel,
    examples: Sequence[Example],
    settings: StageSettings,
    report: Reporter,
) -> SupervisedTrainer:
    """Train the model in place on the examples of all steps, resuming from the stage's saved state if there is one.

    The same model, examples, settings and number of threads give the same weights, also after a kill and a resume. Pass the
    returned trainer to `save_trained`: processes that share the weights hold only parts of them.
    """
    lengths = [len(example.prompt) + len(example.completion) for example in examples]
    order = plan_order(
        lengths,
        settings.config.batch_size,
        settings.config.steps,
        settings.seed,
        groups=[example.group for example in examples],
        group_size=settings.ranking.group_size if settings.ranking else 1,
    )
    numbered = [(index, examples[index]) for index in order]
    speed_up(model, compiled=settings.config.compile)
    into_batch = partial(collate, grades=len(settings.label_token_ids), config=model.config)
    if not settings.config.keep_outputs:
        return _train(model, numbered, into_batch, settings, report)
    frozen, file = settings.config.frozen_layers, settings.folder / OUTPUTS_NAME
    rows = [example.prompt + example.completion for example in examples]
    outputs = cache_frozen_activations(model, frozen, rows, file, settings.precision, report.on_step)
    with run_layers(model, slice(frozen, None)):
        trainer = _train(model, numbered, partial(into_batch, outputs=outputs), settings, report)
    file.unlink()
    return trainer


def _train(
    model: PreTrainedModel,
    dataset: Sequence[Any],
    collator: Callable[..., Any],
    settings: StageSettings,
    report: Reporter,
) -> SupervisedTrainer:
    config = settings.config
    shared = share(settings.launch, settings.stage, config.batch_size, config.micro_batch)
    trainer = SupervisedTrainer(
        model=model,
        args=training_arguments(config, settings.folder, settings.seed, settings.precision, **shared),
        train_dataset=dataset,
        data_collator=collator,
        callbacks=[report],
        label_token_ids=settings.label_token_ids,
        trace_weight=settings.trace_weight,
        ranking=settings.ranking,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=saved_state(settings.folder / "state"))
    model.eval()
    return trainer


def saved_state(folder: Path) -> str | None:
    """Return the newest complete state that a Trainer saved, or None. States that a kill left half-written are removed."""
    for state in sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.split("-")[1])):
        try:
            # The Trainer writes this file after weights, optimizer and random state.
            json.loads((state / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(state)
        else:
            return str(state)
    return None


def training_arguments(
    config: TrainConfig | CrossEncoderConfig, folder: Path, seed: int, precision: Precision, **others: Any
) -> TrainingArguments:
    """Return a Trainer's arguments for a stage that keeps its state in `folder` and reads its examples in the given order."""
    return TrainingArguments(
        output_dir=str(folder / "state"),
        max_steps=config.steps,
        learning_rate=config.learning_rate,
        warmup_steps=int(config.steps * config.warmup_share),
        lr_scheduler_type="cosine" if config.schedule == "cosine" else "constant_with_warmup",
        weight_decay=config.weight_decay,
        bf16=precision == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        data_seed=seed,
        train_sampling_strategy="sequential",  # `plan_order` has shuffled
        logging_steps=_LOG_STEPS,
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or config.steps,
        save_total_limit=1,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **others,
    )
