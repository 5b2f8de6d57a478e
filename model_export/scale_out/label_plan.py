"""The inputs of a labelling job: the pairs, the teacher, its prompts, and how paths are sampled."""

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
from model_export.scale_out.trace_engine import PathRequest
from model_export.stages import hash_of
from service.contract.manifest import Criteria, hash_file
from service.errors import NotegradeError

_TEACHER_FILES = ("*.safetensors", "config.json", "tokenizer.json")


class LabelError(NotegradeError):
    """Raised when labelling can't start or continue."""


@dataclass(frozen=True, slots=True)
class PathSampling:
    """The number of paths per pair and their sampling parameters. `max_tokens` counts a whole path."""

    paths: int
    temperature: float
    max_tokens: int
    seed: int

    def __post_init__(self) -> None:
        if self.paths < 1 or self.temperature <= 0:
            raise LabelError(
                f"paths must be at least 1 and the temperature above 0; they are {self.paths} and {self.temperature}"
            )


@dataclass(frozen=True, slots=True)
class LabelPlan:
    """The pairs to label, the teacher and the sampling. `source` describes the pairs, `form` the teacher's prompts."""

    pairs: Path
    source: Source
    teacher: Path
    form: PromptForm
    sampling: PathSampling
    shard_size: int

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise LabelError(f"the shard size must be at least 1; it is {self.shard_size}")
        if not (self.teacher / "config.json").is_file():
            raise LabelError(f"{self.teacher} is not a transformers folder: it has no config.json")

    def inputs(self) -> dict[str, object]:
        """Return everything that the labels depend on, JSON-like. Raises OSError when a file can't be read."""
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
    """Return the recipe's sampling, with these paths and temperature where they are given."""
    return PathSampling(
        paths=recipe.label.paths if paths is None else paths,
        temperature=recipe.label.temperature if temperature is None else temperature,
        max_tokens=recipe.rl.max_tokens,
        seed=recipe.seed,
    )


def recipe_source(recipe: Recipe, name: str | None) -> Source:
    """Return the recipe's source of that name, or its only source. Raises LabelError listing its sources."""
    sources = _sources(recipe)
    if name is None and len(sources) == 1:
        return next(iter(sources.values()))
    if name is None or name not in sources:
        raise LabelError(f"--source must name the source that the pairs are like: {listed(list(sources))}")
    return sources[name]


def recipe_form(recipe: Recipe) -> PromptForm:
    """Return the form of the recipe's prompts. Raises TemplateError or CriteriaError."""
    return PromptForm(find_template(recipe.model.template), _criteria(recipe), recipe.model.limits)


def path_requests(pair: Pair, prompting: Prompting, sampling: PathSampling) -> list[PathRequest]:
    """Return the requests for a pair's paths. Their seeds depend only on the plan's seed and the pair's id."""
    prompt = prompting.teacher_prompt(pair)
    return [PathRequest(prompt, _seed_of(sampling.seed, pair.id, path)) for path in range(sampling.paths)]


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
    # 31 bits fit the seed of every engine.
    digest = hashlib.sha256(f"{seed} {path} {id_}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
