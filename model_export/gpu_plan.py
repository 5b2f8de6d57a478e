"""The large stages of a run on 1, 8 and 64 GPUs: memory of a GPU, hours, and disk."""

from collections.abc import Iterator, Sequence

from transformers import PreTrainedModel

from model_export.data.criteria import load_criteria, load_teacher_criteria
from model_export.gpu_costs import GIB, GPU_BYTES, WEIGHT, SampledStage, Size, Stage, Tokens, Training
from model_export.recipe import Recipe
from model_export.recipe_stages import TrainConfig
from model_export.training.learned_weights import learn_linears
from model_export.training.stage_job import TEACHER_STAGES

_GPUS = (1, 8, 64)
_CHARACTERS_A_TOKEN = 4
_TOKENS_A_CHARACTER = 2  # of Chinese, by SmolLM2's tokenizer
_TEMPLATE_TOKENS = 32


def large_stages(
    recipe: Recipe, student: PreTrainedModel, teacher: PreTrainedModel, train_pairs: int | None
) -> Iterator[Stage]:
    """Yield the stages that train, and those that sample paths, in the order of the run. Texts count with their limits.

    `train_pairs` is None where the data is not there: then a stage without a number of pairs is left out.
    """
    rl = recipe.rl
    yield _supervised(recipe, "label_only_sft", student, completion=0)
    if recipe.cot_sft.traces == "own":
        yield from _own_traces(recipe, teacher)
    if recipe.cot_sft.steps:
        yield _supervised(recipe, "cot_sft", teacher, completion=rl.max_tokens)
    if recipe.self_sft.steps:
        yield from _own_traces(recipe, teacher)
        yield _supervised(recipe, "self_sft", teacher, completion=rl.max_tokens)
    if rl.steps:
        yield _rl(recipe, teacher)
    samples = recipe.label.teacher != "label_only_sft" and recipe.label.folder is None
    if samples and (pairs := recipe.label.pairs or train_pairs):
        yield _sampled(recipe, "label", teacher, pairs * recipe.label.paths)
    yield _supervised(recipe, "distil", student, completion=rl.max_tokens)


def describe_on_gpus(stages: Sequence[Stage], processes: int) -> Iterator[str]:
    """Yield the lines of a table of the stages; states are saved by as many processes as the recipe has."""
    columns = [f"{gpus} GPU{'s' if gpus > 1 else ''}" for gpus in _GPUS]
    yield _row("", columns, "state, every", "result")
    for stage in stages:
        yield _row(stage.name, [_cell(stage, gpus) for gpus in _GPUS], *_on_disk(stage, processes))
    yield _row("all", [_total(stages, gpus) for gpus in _GPUS], "", _gib(_disk_bytes(stages)))
    yield ""
    yield f"!: more than the {GPU_BYTES / GIB:.1f} GiB of an H100 of 80 GB. 64 GPUs are eight machines; a run trains on one."
    yield "Disk: bases, results and RL's best weights in float32; two states of the stage with the largest, one being written."
    yield "Estimated from published throughput, in proportion to the parameters: 5,762 tokens trained a second on each H100 at"
    yield "8.03B (TorchTitan, FSDP2), 13,305 prompted or sampled at 8.19B (GPUStack, vLLM); each text as long as its limit."
    if any(isinstance(stage, SampledStage) and not stage.on_all for stage in stages):
        yield "Stages that take as long on any number of GPUs sample in one process, by transformers, which is slower than vLLM."
    yield "Not measured by Notegrade. Left out: predictions, explanations, gates, loading and writing."


def _supervised(recipe: Recipe, stage: str, model: PreTrainedModel, *, completion: int) -> Training:
    config: TrainConfig = getattr(recipe, stage)
    return Training(
        name=stage,
        size=_size(model, config.frozen_layers, config.lora_rank),
        tokens=Tokens(_longest_prompt(recipe, for_teacher=stage in TEACHER_STAGES), completion),
        steps=config.steps,
        batch=config.batch_size,
        micro_batch=config.micro_batch,
        sharded=stage in recipe.launch.fsdp,
        save_steps=config.save_steps,
    )


def _rl(recipe: Recipe, model: PreTrainedModel) -> Training:
    config, rollouts = recipe.rl, recipe.launch.rollouts
    served, colocated = (config.vllm and rollouts.mode == mode for mode in ("server", "colocate"))
    return Training(
        name="rl",
        size=_size(model, config.frozen_layers),
        tokens=Tokens(_longest_prompt(recipe, for_teacher=True), config.max_tokens),
        steps=config.steps,
        batch=config.prompts * config.rollouts,
        micro_batch=config.micro_batch,
        sharded="rl" in recipe.launch.fsdp,
        save_steps=config.save_steps,
        group=config.rollouts,
        # TRL computes the probabilities of vLLM's rollouts again, and those of the start for the KL term.
        passes=int(config.vllm) + int(config.beta > 0),
        sampled=True,
        server_gpus=rollouts.tensor_parallel if served else 0,
        engine_share=rollouts.memory_share if colocated else 0.0,
        engine_sleeps=rollouts.sleep,
    )


def _own_traces(recipe: Recipe, teacher: PreTrainedModel) -> Iterator[Stage]:
    yield _sampled(recipe, "own_traces", teacher, recipe.own_traces.pairs * recipe.own_traces.paths)


def _sampled(recipe: Recipe, name: str, model: PreTrainedModel, paths: int) -> SampledStage:
    tokens = Tokens(_longest_prompt(recipe, for_teacher=True), recipe.rl.max_tokens)
    return SampledStage(name, Size.of(model), tokens, paths, on_all=bool(recipe.launch.ray_workers))


def _size(model: PreTrainedModel, frozen_layers: int, lora_rank: int | None = None) -> Size:
    with learn_linears(model, frozen_layers, lora_rank):
        return Size.of(model)


def _longest_prompt(recipe: Recipe, *, for_teacher: bool) -> int:
    """Estimate the tokens of the longest prompt, whose tokenizer may not be there."""
    load = load_teacher_criteria if for_teacher and recipe.data.teacher_text else load_criteria
    texts = [
        (load(source.criteria).text, source.limits or recipe.model.limits) for source in recipe.data.sources
    ]
    longest = (
        _count_tokens(text) + limits.max_query_tokens + limits.max_note_tokens
        for text, limits in texts or [("", recipe.model.limits)]
    )
    return _TEMPLATE_TOKENS + max(longest)


def _count_tokens(text: str) -> int:
    unspaced = sum(not character.isascii() for character in text)
    return _TOKENS_A_CHARACTER * unspaced + (len(text) - unspaced) // _CHARACTERS_A_TOKEN


def _cell(stage: Stage, gpus: int) -> str:
    if isinstance(stage, SampledStage):
        return _time(stage.hours(gpus))
    if not stage.can_share(gpus):
        return "batch too small"
    found = stage.bytes_per_gpu(gpus)
    return f"{_gib(found)}{'!' if found > GPU_BYTES else ' '}{_time(stage.hours(gpus)):>9}"


def _total(stages: Sequence[Stage], gpus: int) -> str:
    can = all(stage.can_share(gpus) for stage in stages if isinstance(stage, Training))
    return _time(sum(stage.hours(gpus) for stage in stages)) if can else "-"


def _on_disk(stage: Stage, processes: int) -> tuple[str, str]:
    if isinstance(stage, SampledStage):
        return "-", "-"
    every = stage.hours_between_states(processes)
    state = "-" if every is None else f"{_gib(stage.size.state_bytes)}, {_time(every)}"
    return state, _gib(WEIGHT * stage.size.parameters)


def _disk_bytes(stages: Sequence[Stage]) -> int:
    trained = [stage for stage in stages if isinstance(stage, Training)]
    states = [stage.size.state_bytes for stage in trained if stage.save_steps]
    bases = {stage.size.parameters for stage in stages}
    # RL keeps the best weights beside the last ones.
    results = sum(stage.size.parameters * (2 if stage.sampled else 1) for stage in trained)
    return WEIGHT * (sum(bases) + results) + 2 * max(states, default=0)


def _row(name: str, cells: Sequence[str], state: str, result: str) -> str:
    return f"{name:<15}{''.join(f'{cell:>18}' for cell in cells)}{state:>17}{result:>10}".rstrip()


def _time(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"


def _gib(size: float) -> str:
    return f"{size / GIB:,.0f} GiB"
