from collections.abc import Callable, Sequence

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from model_export.data.rollout_reader import RolloutReader
from model_export.models.model_io import load_model
from model_export.models.packing import Segment, split_rows
from model_export.models.reference_scorer import ReferenceScorer
from model_export.teacher import rollout
from model_export.teacher.rollout import ReasoningPath, Sampler, Sampling, read_path
from service.contract.trace import parse_trace, write_step
from tests.byte_tokens import TOKENIZER, byte_tokens, encode
from tests.model_export.training.test_frozen_outputs import make_micro_gemma
from tests.tiny_teacher import TinyTeacher

GREEDY = Sampling(max_tokens=40, temperature=0.0, batch_size=3)
CRITERIA = ("topic", "constraints")
[END] = TOKENIZER.encode_template("<|im_end|>")
READER = RolloutReader(TOKENIZER, END)


@pytest.fixture(scope="module")
def sampler(tiny_teacher: TinyTeacher) -> Sampler:
    return Sampler.load(tiny_teacher.folder, tiny_teacher.prompting)


@pytest.fixture(scope="module")
def prompts(tiny_teacher: TinyTeacher) -> list[list[int]]:
    """Prompts of pairs that the teacher has and has not learned, from long to short."""
    pairs = (*tiny_teacher.pairs[:4], *tiny_teacher.others[:4])
    prompts = [tiny_teacher.prompting.teacher_prompt(pair) for pair in pairs]
    return sorted((prompt[index:] for index, prompt in enumerate(prompts)), key=len, reverse=True)


def generate_alone(teacher: TinyTeacher, prompt: Sequence[int]) -> list[int]:
    return decode(load_model(teacher.folder), prompt, teacher.prompting.end_token_id)


def decode(model: PreTrainedModel, prompt: Sequence[int], end: int) -> list[int]:
    """Decode token by token from the whole sequence, without padding or cache."""
    sequence = list(prompt)
    with torch.inference_mode():
        while len(sequence) < len(prompt) + GREEDY.max_tokens and sequence[-1] != end:
            sequence.append(int(model(torch.tensor([sequence])).logits[0, -1].argmax()))
    return sequence[len(prompt) :]


def test_greedy_batches_equal_single_prompts(
    tiny_teacher: TinyTeacher, sampler: Sampler, prompts: list[list[int]]
) -> None:
    assert len({len(prompt) for prompt in prompts}) > 3
    reports: list[tuple[int, int]] = []
    found = sampler.sample(prompts, GREEDY, lambda *numbers: reports.append(numbers))
    assert found == [generate_alone(tiny_teacher, prompt) for prompt in prompts]
    assert reports == [(3, 8), (6, 8), (8, 8)]


def test_shared_prefixes_and_repeated_prompts_are_prefilled_once_and_give_the_same(
    tiny_teacher: TinyTeacher, sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = (*tiny_teacher.pairs[:4], *tiny_teacher.others[:4])
    prompts = [tiny_teacher.prompting.teacher_prompt(pair) for pair in pairs]
    computed: list[int] = []

    def split(rows: Sequence[Sequence[int]], shareable: Sequence[int]) -> list[Segment]:
        segments = split_rows(rows, shareable)
        computed.append(sum(segment.stop - segment.start for segment in segments))
        return segments

    monkeypatch.setattr(rollout, "split_rows", split)
    repeated = [prompt for prompt in prompts for _ in range(3)]
    alone = [generate_alone(tiny_teacher, prompt) for prompt in prompts]
    assert sampler.sample(repeated, Sampling(40, 0.0, 24)) == [each for each in alone for _ in range(3)]
    columns = enumerate(zip(*prompts, strict=False))
    criteria = next(place for place, tokens in columns if len(set(tokens)) > 1)
    assert 0 < criteria < min(map(len, prompts))
    assert computed == [sum(map(len, prompts)) - 8 - 7 * criteria]


def test_layers_that_see_a_window_begin_with_the_last_tokens_of_each_prompt() -> None:
    prompts = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 7], [9, 8, 7, 6, 5, 4, 3]]
    alone = [decode(make_micro_gemma(), prompt, 0) for prompt in prompts]
    assert Sampler(make_micro_gemma(), (), 0).sample(prompts, GREEDY) == alone
    assert len({tuple(completion) for completion in alone}) == len(prompts)


def test_completion_is_cut_at_its_length(sampler: Sampler, prompts: list[list[int]]) -> None:
    found = sampler.sample(prompts, Sampling(5, 0.0, 8))
    assert [len(completion) for completion in found] == [5] * 8


def test_samples_differ_and_the_seed_repeats_them(sampler: Sampler, prompts: list[list[int]]) -> None:
    def sample(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return sampler.sample(prompts[:1] * 4, Sampling(20, 1.5, 4))

    assert sample(1) == sample(1) != sample(2)
    assert len({tuple(completion) for completion in sample(1)}) > 1


def test_base_s_generation_settings_are_ignored(
    tiny_teacher: TinyTeacher, sampler: Sampler, prompts: list[list[int]]
) -> None:
    model, prompting = load_model(tiny_teacher.folder), tiny_teacher.prompting
    model.generation_config = GenerationConfig(
        repetition_penalty=9.0, do_sample=True, temperature=0.6, top_k=1
    )
    biased = Sampler(model, prompting.label_token_ids, prompting.end_token_id)
    assert biased.sample(prompts, GREEDY) == sampler.sample(prompts, GREEDY)


@pytest.mark.parametrize("in_order", [False, True])
def test_distributions_equal_those_of_the_reference(
    tiny_teacher: TinyTeacher, sampler: Sampler, prompts: list[list[int]], in_order: bool
) -> None:
    reference = ReferenceScorer.load(tiny_teacher.folder, tiny_teacher.prompting.label_token_ids)
    probabilities, mass = sampler.distributions(prompts, batch_size=3, in_order=in_order)
    for row, each, expected in zip(probabilities, mass, reference.distributions(prompts), strict=True):
        assert row.tolist() == pytest.approx(expected.probabilities, abs=1e-5)
        assert each.item() == pytest.approx(expected.label_mass, abs=1e-5)
        assert row.sum().item() == pytest.approx(1)


def test_no_sequences_are_no_error(sampler: Sampler) -> None:
    assert sampler.sample([], GREEDY) == []
    probabilities, mass = sampler.distributions([], 3)
    assert (tuple(probabilities.shape), tuple(mass.shape)) == ((0, 4), (0,))


STEPS = write_step("topic", "🎧 茶", 3) + write_step("constraints", "", 0)


@pytest.mark.parametrize("tokens", [encode, lambda text: byte_tokens(text.encode())])
@pytest.mark.parametrize(("steps", "criteria"), [(STEPS, CRITERIA), ("", ())])
def test_path_ends_right_before_the_answer_s_digit(
    tokens: Callable[[str], list[int]], steps: str, criteria: tuple[str, ...]
) -> None:
    before = [*tokens(steps), *tokens("Grade: ")]
    path = read_path([1, 2], [*before, *tokens("2"), END], READER, criteria)
    trace = parse_trace(f"{steps}Grade: 2", criteria, 3)
    assert trace
    assert path == ReasoningPath(trace, steps, [1, 2, *before])


@pytest.mark.parametrize("text", ["", "Grade: 2", STEPS, f"{STEPS}Grade: 4", f"{STEPS}Grade: 2 or so"])
def test_unparsed_completion_has_no_path(text: str) -> None:
    assert read_path([1], [*encode(text), END], READER, CRITERIA) is None


def test_truncated_completion_has_no_path() -> None:
    assert read_path([1], encode(f"{STEPS}Grade: 2"), READER, CRITERIA) is None
