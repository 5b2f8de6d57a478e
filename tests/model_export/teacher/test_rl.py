"""The step mask on TRL's trainer: batches, losses and gradients are TRL's, the rollouts are given."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOConfig

from model_export.models.model_io import load_model
from model_export.run_log import read_log
from model_export.teacher.rl import StepMaskError, check_settings, train_rl
from service.contract.trace import write_step
from tests.given_rollouts import STEPS, Bench, GivenRollouts
from tests.tiny_teacher import TinyTeacher, micro_job

LOSSES = ["dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo"]


def loss_and_gradients(trainer: GivenRollouts, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    loss = trainer._compute_loss(trainer.model, batch)
    return (loss.detach(), *torch.autograd.grad(loss, list(trainer.model.parameters())))


def gradient_by_token(trainer: GivenRollouts, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(rollouts, tokens) of the loss by the log-probability of each token, at ratios other than 1."""
    generator = torch.Generator().manual_seed(1)
    shape = batch["completion_ids"].shape
    old = -torch.rand(shape, generator=generator) - 0.1
    trainer.given_logps = (old + 0.1 * torch.rand(shape, generator=generator)).requires_grad_()
    loss = trainer._compute_loss(trainer.model, {**batch, "old_per_token_logps": old})
    [gradient] = torch.autograd.grad(loss, [trainer.given_logps])
    trainer.given_logps = None
    return gradient


def same(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def trace_text(topic: int, constraints: int, answer: int) -> str:
    steps = write_step("topic", "tea", topic) + write_step("constraints", "green", constraints)
    return f"{steps}Grade: {answer}"


@pytest.fixture(scope="module")
def bench(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tiny_base, tmp_path_factory.mktemp("rl"))


@pytest.fixture(scope="module")
def masked(bench: Bench) -> GivenRollouts:
    return bench.trainer(masked=True)


@pytest.fixture(scope="module")
def unmasked(bench: Bench) -> GivenRollouts:
    return bench.trainer(masked=False)


@pytest.fixture(params=LOSSES)
def loss_type(
    request: pytest.FixtureRequest, masked: GivenRollouts, unmasked: GivenRollouts
) -> Iterator[str]:
    for trainer in (masked, unmasked):
        trainer.loss_type = request.param
    yield request.param
    for trainer in (masked, unmasked):
        trainer.loss_type = "dapo"


@pytest.mark.parametrize(
    ("texts", "steps"),
    [
        # The criteria have no steps, so a rollout is its answer.
        (["Grade: 2", "Grade: 0", "Grade: green", "Grade: 2"], ()),
        # The steps of the only rollout that earned more than the others are right, and all other steps are wrong.
        ([trace_text(2, 2, 2), trace_text(0, 1, 3), trace_text(3, 3, 0), "no trace"], STEPS),
    ],
)
def test_where_the_mask_keeps_all_tokens_the_gradient_is_grpo_s(
    bench: Bench,
    masked: GivenRollouts,
    unmasked: GivenRollouts,
    loss_type: str,
    texts: list[str],
    steps: Sequence[str],
) -> None:
    rollouts = [bench.encode(text, ended=index < 3) for index, text in enumerate(texts)]
    with_mask, without = (bench.batch(trainer, rollouts, steps) for trainer in (masked, unmasked))
    assert (with_mask["advantages"].dim(), without["advantages"].dim()) == (2, 1)
    assert without["advantages"].max() > 0
    found, expected = loss_and_gradients(masked, with_mask), loss_and_gradients(unmasked, without)
    assert same(found, expected), loss_type
    assert max(gradient.abs().max() for gradient in found[1:]) > 0


def test_only_unmasked_tokens_get_a_gradient(
    bench: Bench, masked: GivenRollouts, unmasked: GivenRollouts, loss_type: str
) -> None:
    texts = [trace_text(2, 0, 2), trace_text(0, 2, 0), "no trace", trace_text(2, 2, 2)]
    rollouts = [bench.encode(text, ended=index < 3) for index, text in enumerate(texts)]
    with_mask, without = (bench.batch(trainer, rollouts, STEPS) for trainer in (masked, unmasked))
    found, plain = gradient_by_token(masked, with_mask), gradient_by_token(unmasked, without)
    topic, both = (
        len(bench.encode(trace_text(2, 0, 2).split("\n")[0] + "\n")) - 1,
        len(bench.encode(texts[0][:-8])) - 1,
    )
    kept = torch.zeros_like(plain)
    kept[0, :topic] = 1  # right, and the advantage is positive
    kept[1, :topic] = 1  # wrong, and it is negative
    kept[:2, both : len(rollouts[0])] = 1
    kept[2, : len(rollouts[2])] = 1
    kept[3, : len(rollouts[3])] = 1
    assert torch.equal(found, plain * kept)
    assert not with_mask["advantages"][with_mask["completion_mask"] == 0].any()
    assert found[0, :topic].abs().min() > 0, loss_type


def test_sequence_level_ratios_change_masked_tokens(bench: Bench, masked: GivenRollouts) -> None:
    """This is why they are refused."""
    rollouts = [bench.encode(trace_text(grade, grade, 2)) for grade in (0, 1)] + [
        bench.encode("no trace")
    ] * 2
    batch = bench.batch(masked, rollouts, STEPS)
    masked_tokens = (batch["advantages"] == 0) & (batch["completion_mask"] == 1)
    assert masked_tokens.any()
    assert gradient_by_token(masked, batch)[masked_tokens].abs().max() == 0
    masked.importance_sampling_level = "sequence"
    try:
        assert gradient_by_token(masked, batch)[masked_tokens].abs().min() > 0
    finally:
        masked.importance_sampling_level = "token"


def test_equal_rewards_give_no_gradient(bench: Bench, masked: GivenRollouts) -> None:
    rollouts = [bench.encode(trace_text(grade, 2, 2)) for grade in (0, 1, 2, 3)]
    batch = bench.batch(masked, rollouts, STEPS)
    assert batch["advantages"].shape == batch["completion_ids"].shape
    assert not batch["advantages"].any()
    loss, *gradients = loss_and_gradients(masked, batch)
    assert not loss
    assert not any(gradient.any() for gradient in gradients)


def test_texts_of_a_pair_never_become_control_tokens(bench: Bench, masked: GivenRollouts) -> None:
    bench.batch(masked, [bench.encode("Grade: 2")] * 4, STEPS)
    assert list(masked.seen_prompts) == [bench.prompting.teacher_prompt(bench.pair)] * 4
    control = {
        bench.prompting.tokenizer.encode_template(token)[0] for token in ("<|im_start|>", "<|im_end|>")
    }
    assert not control.intersection(masked.seen_prompts[0])


def test_parse_rate_and_step_accuracy_are_logged(bench: Bench, masked: GivenRollouts) -> None:
    masked._metrics["train"].clear()
    texts = [trace_text(2, 0, 2), trace_text(2, 2, 0), trace_text(1, 2, 2), "no trace"]
    bench.batch(masked, [bench.encode(text) for text in texts], STEPS)
    found = {
        name: values for name, values in masked._metrics["train"].items() if "step" in name or "parse" in name
    }
    third = pytest.approx([2 / 3])
    assert found == {
        "parse_rate": [0.75],
        "step_accuracy/answer": third,
        "step_accuracy/topic": third,
        "step_accuracy/constraints": third,
    }


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"importance_sampling_level": "sequence"},
            r"importance_sampling_level='sequence' gives all tokens .* one ratio",
        ),
        ({"loss_type": "luspo"}, "loss_type='luspo' weighs a sequence as one"),
        ({"loss_type": "vespo"}, "loss_type='vespo' weighs a sequence as one"),
        ({"off_policy_mask_threshold": 0.5}, "off_policy_mask_threshold drops whole rollouts"),
        ({"use_liger_kernel": True}, "use_liger_kernel"),
    ],
)
def test_settings_that_would_undo_the_mask_are_refused(
    tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(StepMaskError, match=reason):
        check_settings(GRPOConfig(output_dir=str(tmp_path), use_cpu=True, **settings))


def test_they_are_refused_only_with_the_mask(bench: Bench) -> None:
    with pytest.raises(StepMaskError, match="importance_sampling_level"):
        bench.trainer(masked=True, importance_sampling_level="sequence")
    assert (
        bench.trainer(masked=False, importance_sampling_level="sequence").importance_sampling_level
        == "sequence"
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_token_level_losses_are_accepted(tmp_path: Path, loss: str) -> None:
    check_settings(GRPOConfig(output_dir=str(tmp_path), use_cpu=True, loss_type=loss))


def train(
    teacher: TinyTeacher, folder: Path, *, iterations: int = 1, stop_at: int = 0
) -> dict[str, torch.Tensor]:
    """Train three steps and return the weights; `stop_at` raises KeyboardInterrupt at that step."""

    def on_step(step: int, _steps: int) -> None:
        if step == stop_at:
            raise KeyboardInterrupt

    job = micro_job("sam", teacher.folder, folder, rl={"iterations": iterations})
    train_rl(teacher.others, teacher.prompting, job, on_step)
    return {name: weight.detach() for name, weight in load_model(folder).named_parameters()}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in one if not torch.equal(one[name], other[name])]


def test_stage_learns_and_is_logged(tiny_teacher: TinyTeacher, tmp_path: Path) -> None:
    learned = train(tiny_teacher, tmp_path)
    assert differing(learned, dict(load_model(tiny_teacher.folder).named_parameters())) != []
    rows = read_log(tmp_path / "log.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all({"reward", "parse_rate", "loss"} <= set(row) for row in rows)
    assert not (tmp_path / "state").exists()


# With two steps on the same rollouts, the second of which a state does not hold.
@pytest.mark.parametrize(("iterations", "stop_at"), [(1, 2), (2, 2), (2, 3)])
def test_stopped_stage_resumes_exactly(
    tiny_teacher: TinyTeacher, tmp_path: Path, iterations: int, stop_at: int
) -> None:
    whole = train(tiny_teacher, tmp_path / "whole", iterations=iterations)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_teacher, tmp_path / "cut", iterations=iterations, stop_at=stop_at)
    resumed = train(tiny_teacher, tmp_path / "cut", iterations=iterations)
    assert differing(whole, resumed) == []
