"""What labels of a whole file follow from: the pairs, the teacher, the prompts it reads, and how it is sampled."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

from model_export.data.criteria import load_criteria
from model_export.data.pairs import GRADES, Pair, Source, listed
from model_export.data.prompting import PromptForm, Prompting
from model_export.data.synthetic import CRITERIA as SYNTHETIC_CRITERIA
from model_export.data.synthetic import SOURCE as SYNTHETIC
from model_export.data.template import find_template
from model_export.recipe import Recipe
from model_export.scale_out.trace_engine import Asked
from model_export.stages import hash_of
from service.contract.manifest import Criteria, hash_file
from service.errors import NotegradeError

_TEACHER_FILES = ("*.safetensors", "config.json", "tokenizer.json")


class LabelError(NotegradeError):
    """Labelling that can't start or go on."""


@dataclass(frozen=True, slots=True)
class PathSampling:
    """How many paths of each pair, and how they are sampled; `max_tokens` is of a whole path."""

    paths: int
    temperature: float
    max_tokens: int
    seed: int

    def __post_init__(self) -> None:
        if self.paths < 1 or self.temperature <= 0:
            raise LabelError(
                f"paths must be at least 1 and the temperature above 0, not {self.paths} and {self.temperature}"
            )


@dataclass(frozen=True, slots=True)
class LabelPlan:
    """What is labelled, by whom and how. `source` is what the pairs have in common, `form` what prompts are made by."""

    pairs: Path
    source: Source
    teacher: Path
    form: PromptForm
    sampling: PathSampling
    shard_size: int

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise LabelError(f"a shard must hold at least 1 pair, not {self.shard_size}")
        if not (self.teacher / "config.json").is_file():
            raise LabelError(f"{self.teacher} is no transformers folder: it has no config.json")

    def inputs(self) -> dict[str, object]:
        """All that the labels follow from, JSON-like. Raises OSError when a file can't be read."""
        files = sorted(path for pattern in _TEACHER_FILES for path in self.teacher.glob(pattern))
        return {
            "pairs": hash_file(self.pairs),
            "source": hash_of(asdict(self.source)),
            "teacher": hash_of({path.name: hash_file(path) for path in files}),
            "form": hash_of(self.form.to_json()),
            "shard_size": self.shard_size,
            **asdict(self.sampling),
        }


def recipe_sampling(recipe: Recipe, paths: int | None, temperature: float | None) -> PathSampling:
    """The recipe's, with these two in place of its own where they are given."""
    return PathSampling(
        paths=recipe.label.paths if paths is None else paths,
        temperature=recipe.label.temperature if temperature is None else temperature,
        max_tokens=recipe.rl.max_tokens,
        seed=recipe.seed,
    )


def recipe_source(recipe: Recipe, name: str | None) -> Source:
    """The recipe's source of that name; where it has one alone, None names it. Raises LabelError naming those it has."""
    sources = _sources(recipe)
    if name is None and len(sources) == 1:
        return next(iter(sources.values()))
    if name is None or name not in sources:
        raise LabelError(f"state which source the pairs are like: {listed(list(sources))}")
    return sources[name]


def recipe_form(recipe: Recipe) -> PromptForm:
    """What the recipe's teacher reads its prompts by. Raises TemplateError or CriteriaError where it can't be found."""
    return PromptForm(find_template(recipe.model.template), _criteria(recipe), recipe.model.limits)


def ask_paths(pair: Pair, prompting: Prompting, sampling: PathSampling) -> list[Asked]:
    """Several paths of one prompt; seeds follow from the plan's seed and the pair's id, wherever it stands."""
    prompt = prompting.teacher_prompt(pair)
    return [Asked(prompt, _seed_of(sampling.seed, pair.id, path)) for path in range(sampling.paths)]


def _sources(recipe: Recipe) -> dict[str, Source]:
    if recipe.data.synthetic:
        return {SYNTHETIC: Source(SYNTHETIC, SYNTHETIC_CRITERIA.name, GRADES)}
    return {
        config.name: Source(config.name, load_criteria(config.criteria).name, config.grades)
        for config in recipe.data.sources
    }


def _criteria(recipe: Recipe) -> tuple[Criteria, ...]:
    if recipe.data.synthetic:
        return (SYNTHETIC_CRITERIA,)
    found: dict[str, Criteria] = {}
    for config in recipe.data.sources:
        stated = load_criteria(config.criteria)
        found.setdefault(stated.name, stated)
    return tuple(found.values())


def _seed_of(seed: int, id_: str, path: int) -> int:
    # 31 bits: every engine's seed takes as many.
    digest = hashlib.sha256(f"{seed} {path} {id_}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
