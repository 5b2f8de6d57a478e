"""The step mask on TRL's trainer: batches, losses and gradients are TRL's, the rollouts are given."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from model_export.teacher.rl_trainer import RlTrainer
from model_export.teacher.step_mask import mask_advantages
from service.contract.trace import write_step
from tests.given_rollouts import STEPS, Bench, GivenRollouts

LOSSES = ["dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo"]
MASKED = partial(mask_advantages, rule="final")


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


def one_step(grade: int, answer: int) -> str:
    return write_step("topic", "tea", grade) + f"Grade: {answer}"


@pytest.fixture(scope="module")
def bench(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tiny_base, tmp_path_factory.mktemp("rl"))


@pytest.fixture(scope="module")
def masked(bench: Bench) -> GivenRollouts:
    trainer: GivenRollouts = bench.trainer(MASKED)
    return trainer


@pytest.fixture(scope="module")
def unmasked(bench: Bench) -> GivenRollouts:
    trainer: GivenRollouts = bench.trainer()
    return trainer


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
    ("texts", "criteria"),
    [
        # The criteria have no steps, so a rollout is its answer.
        (["Grade: 2", "Grade: 0", "Grade: green", "Grade: 2"], "plain"),
        # With one step, the step is right where the answer is.
        ([one_step(2, 2), one_step(0, 0), one_step(3, 3), "no trace"], "one-step"),
        # The steps of the only rollout that earned more than the others are right, and all other steps are wrong.
        ([trace_text(2, 2, 2), trace_text(0, 1, 3), trace_text(3, 3, 0), "no trace"], "stepwise"),
    ],
)
def test_where_the_mask_keeps_all_tokens_the_gradient_is_grpo_s(
    bench: Bench,
    masked: GivenRollouts,
    unmasked: GivenRollouts,
    loss_type: str,
    texts: list[str],
    criteria: str,
) -> None:
    rollouts = [bench.encode(text, ended=index < 3) for index, text in enumerate(texts)]
    with_mask, without = (bench.batch(trainer, rollouts, criteria) for trainer in (masked, unmasked))
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
    with_mask, without = (bench.batch(trainer, rollouts) for trainer in (masked, unmasked))
    found, plain = gradient_by_token(masked, with_mask), gradient_by_token(unmasked, without)
    kept = torch.zeros_like(plain)
    for row, (rollout, wrong) in enumerate(zip(rollouts, (1, 1, None, None), strict=True)):
        kept[row, : len(rollout)] = 1
        read = bench.prompting.reader.read(rollout, STEPS)
        if wrong is not None and read.trace is not None:
            step = read.trace.steps[
                wrong
            ]  # the step that the mask leaves out: the answer is earned elsewhere
            for token, (start, end) in enumerate(read.spans):
                if any(start < last and end > first for first, last in (step.finding_span, step.grade_span)):
                    kept[row, token] = 0
    assert torch.equal(found, plain * kept)
    assert not with_mask["advantages"][with_mask["completion_mask"] == 0].any()
    assert 0 < (kept == 0).sum() - (with_mask["completion_mask"] == 0).sum() < kept.sum()


def test_sequence_level_ratios_change_masked_tokens(bench: Bench, masked: GivenRollouts) -> None:
    """This is why they are refused."""
    rollouts = [bench.encode(trace_text(grade, grade, 2)) for grade in (0, 1)] + [
        bench.encode("no trace")
    ] * 2
    batch = bench.batch(masked, rollouts)
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
    batch = bench.batch(masked, rollouts)
    assert batch["advantages"].shape == batch["completion_ids"].shape
    assert not batch["advantages"].any()
    loss, *gradients = loss_and_gradients(masked, batch)
    assert not loss
    assert not any(gradient.any() for gradient in gradients)


def test_texts_of_a_pair_never_become_control_tokens(bench: Bench, masked: GivenRollouts) -> None:
    bench.batch(masked, [bench.encode("Grade: 2")] * 4)
    assert list(masked.seen_prompts) == [bench.prompting.teacher_prompt(bench.pair)] * 4
    control = {
        bench.prompting.tokenizer.encode_template(token)[0] for token in ("<|im_start|>", "<|im_end|>")
    }
    assert not control.intersection(masked.seen_prompts[0])


def test_parse_rate_step_accuracy_and_unmasked_tokens_are_logged(bench: Bench, masked: GivenRollouts) -> None:
    masked._metrics["train"].clear()
    texts = [trace_text(2, 1, 2), trace_text(2, 2, 0), trace_text(3, 2, 2), "no trace"]
    bench.batch(masked, [bench.encode(text) for text in texts])
    metrics = masked._metrics["train"]
    assert metrics["parse_rate"] == [0.75]
    accuracy = {name: values for name, values in metrics.items() if name.startswith("step_accuracy/")}
    assert accuracy == {
        "step_accuracy/answer": pytest.approx([2 / 3]),
        "step_accuracy/topic": [1.0],  # none below gold: not proved wrong
        "step_accuracy/constraints": pytest.approx([2 / 3]),
    }
    assert 0 < metrics["unmasked_share"][0] < 1


@pytest.mark.parametrize("packs", [True, False], ids=["packed, as on a CPU", "padded"])
def test_shared_prompts_change_neither_log_probabilities_nor_gradients(bench: Bench, packs: bool) -> None:
    unmasked = bench.trainer(temperature=0.5)
    unmasked.packs = packs
    rollouts = [bench.encode(text) for text in (trace_text(2, 1, 2), "Grade: 0", "no trace", one_step(3, 3))]
    groups = [bench.batch(unmasked, rollouts, criteria) for criteria in ("stepwise", "plain")]
    widths = [group["prompt_ids"].shape[1] for group in groups]
    assert widths[0] != widths[1]
    # Padded to one width, and shuffled as TRL does, so that no group is in one place.
    prompts, masks = (
        torch.cat(
            [
                torch.nn.functional.pad(group[name], (max(widths) - group[name].shape[1], 0))
                for group in groups
            ]
        )
        for name in ("prompt_ids", "prompt_mask")
    )
    ids = torch.cat([prompts, groups[0]["completion_ids"].repeat(2, 1)], dim=1)
    mask = torch.cat([masks, groups[0]["completion_mask"].repeat(2, 1)], dim=1)
    order, width = torch.tensor([5, 0, 3, 6, 1, 7, 2, 4]), groups[0]["completion_ids"].shape[1]
    asked = (unmasked.model, ids[order], mask[order], width)
    weights = torch.linspace(-1, 1, 8)[:, None]

    def scored(method: Any, **others: Any) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        log_probs, entropies, _ = method(*asked, compute_entropy=True, **others)
        gradients = torch.autograd.grad((log_probs * weights).sum(), list(unmasked.model.parameters()))
        return log_probs.detach(), entropies.detach(), list(gradients)

    plain = scored(super(RlTrainer, unmasked)._get_per_token_logps_and_entropies)
    assert plain[0].abs().max() > 1
    for batch_size in (None, 3):
        torch.testing.assert_close(
            scored(unmasked._get_per_token_logps_and_entropies, batch_size=batch_size),
            plain,
            rtol=1e-5,
            atol=1e-4,  # of sums of up to 300 tokens
        )


def test_reference_model_scores_rollouts_as_the_policy_that_it_equals(bench: Bench) -> None:
    trainer = bench.trainer(beta=0.1)
    batch = bench.batch(trainer, [bench.encode(text) for text in (trace_text(2, 1, 2), "Grade: 0")] * 2)
    ids, mask = (
        torch.cat([batch[f"prompt_{kind}"], batch[f"completion_{kind}"]], dim=1) for kind in ("ids", "mask")
    )
    log_probs, entropies, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model, ids, mask, batch["completion_ids"].shape[1]
    )
    assert entropies is None
    torch.testing.assert_close(batch["ref_per_token_logps"], log_probs)


class Dice(GivenRollouts):
    """Samples for each prompt what a test has prepared for it, and records the prompts."""

    by_prompt: dict[tuple[int, ...], list[list[int]]]
    asked: list[int]

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any) -> Any:
        if self._sampled is not None:
            return RlTrainer._generate_single_turn(self, prompt_ids, *args)
        self.asked.append(len(prompt_ids))
        return [self.by_prompt[tuple(ids)].pop() for ids in prompt_ids], None


def test_group_that_agrees_gets_another_prompt(bench: Bench) -> None:
    trainer = bench.trainer(MASKED, kind=Dice, resamples=3)
    agreeing, other = (
        tuple(bench.prompting.teacher_prompt(trainer.pairs[name])) for name in ("stepwise", "plain")
    )
    good, bad = bench.encode("Grade: 2"), bench.encode("Grade: 0")
    trainer.asked = []
    trainer.by_prompt = {agreeing: [bad] * 4, other: [good, bad, bad, bad, *[good] * 4]}
    trainer._train_ids = ["plain"]
    made = trainer._generate_and_score_completions([{"prompt": "stepwise"}] * 4)
    assert trainer.asked == [4, 4, 4]  # the first other group agrees as well
    assert made["prompt_ids"][0][made["prompt_mask"][0] == 1].tolist() == list(other)
    assert sorted(
        row[mask == 1].tolist()
        for row, mask in zip(made["completion_ids"], made["completion_mask"], strict=True)
    ) == sorted([good, bad, bad, bad])
    assert made["advantages"].abs().max() > 0


def test_groups_that_always_agree_end_the_resampling(bench: Bench) -> None:
    trainer = bench.trainer(MASKED, kind=Dice, resamples=2)
    prompt = tuple(bench.prompting.teacher_prompt(trainer.pairs["stepwise"]))
    trainer.asked, trainer.by_prompt = [], {prompt: [bench.encode("Grade: 0")] * 12}
    made = trainer._generate_and_score_completions([{"prompt": "stepwise"}] * 4)
    assert trainer.asked == [4, 4, 4]
    assert not made["advantages"].any()
