"""The inputs of a labelling job, and the interface of an engine that samples reasoning paths for it."""

import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from model_export.data.pairs import Pair, Source, listed
from model_export.data.prepare import recipe_criteria, recipe_sources, recipe_teacher_criteria
from model_export.data.prompting import PromptForm, Prompting
from model_export.models.base_model import hash_model
from model_export.recipe import Precision, Recipe
from model_export.recipe_stages import LabelConfig, OwnTracesConfig
from model_export.stages import hash_of
from service.contract.manifest import hash_file
from service.errors import NotegradeError


class LabelError(NotegradeError):
    """Raised when labelling can't start or continue."""


@dataclass(frozen=True, slots=True)
class TraceJob:
    """The teacher in its folder, with its prompts, and how many reasoning paths of a pair it samples and how."""

    teacher: Path
    prompting: Prompting
    paths: int
    temperature: float
    max_tokens: int
    precision: Precision
    seed: int

    @classmethod
    def of(
        cls, recipe: Recipe, config: LabelConfig | OwnTracesConfig, teacher: Path, prompting: Prompting
    ) -> "TraceJob":
        """Return the job of a stage of the recipe."""
        return cls(
            teacher,
            prompting,
            config.paths,
            config.temperature,
            recipe.rl.max_tokens,
            recipe.model.precision,
            recipe.seed,
        )


@dataclass(frozen=True, slots=True)
class LabelPlan:
    """The pairs to label, what they are like, the teacher, and the recipe that trained it and sets the sampling."""

    recipe: Recipe
    pairs: Path
    source: Source
    teacher: Path
    shard_size: int

    def __post_init__(self) -> None:
        if not (self.teacher / "config.json").is_file():
            raise LabelError(f"{self.teacher} is not a transformers folder: it has no config.json")

    @property
    def form(self) -> PromptForm:
        """Return the form of the recipe's prompts. Raises TemplateError or CriteriaError."""
        return PromptForm.of(
            self.recipe.model, recipe_criteria(self.recipe.data), recipe_teacher_criteria(self.recipe.data)
        )

    def job(self) -> TraceJob:
        """Load the teacher's tokenizer and return the job. Raises as `form` and `Prompting.load` do."""
        prompting = Prompting.load(self.form, self.teacher)
        return TraceJob.of(self.recipe, self.recipe.label, self.teacher, prompting)

    def inputs(self) -> dict[str, object]:
        """Return everything that the labels depend on, JSON-like. Raises OSError when a file can't be read."""
        return {
            "pairs": hash_file(self.pairs),
            "source": hash_of(asdict(self.source)),
            "teacher": hash_of(hash_model(self.teacher)),
            "form": hash_of(self.form.to_json()),
            "shard_size": self.shard_size,
            "paths": self.recipe.label.paths,
            "temperature": self.recipe.label.temperature,
            "precision": self.recipe.model.precision,
            "max_tokens": self.recipe.rl.max_tokens,
            "seed": self.recipe.seed,
        }


@dataclass(frozen=True, slots=True)
class Completion:
    """A sampled path: its tokens, with the end token if it reached one.

    `label_logprobs` holds, for each token, the logprobs of the labels at its position, lowest grade first: natural log, over
    the whole vocabulary, before the temperature.
    """

    token_ids: list[int]
    label_logprobs: list[list[float]]


# An engine samples the job's paths and yields the completions of each pair, in the order of the pairs. It stops when the
# generator is closed, and raises LabelError when it fails.
TraceEngine = Callable[[Sequence[Pair], TraceJob], Generator[list[Completion]]]


def path_seed(seed: int, pair_id: str, path: int) -> int:
    """Return the seed of one path of a pair, so that a rerun samples the same path. 31 bits fit every engine."""
    digest = hashlib.sha256(f"{seed} {path} {pair_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def recipe_source(recipe: Recipe, name: str | None) -> Source:
    """Return the recipe's source of that name, or its only source. Raises LabelError listing its sources."""
    sources = recipe_sources(recipe.data)
    if name is None and len(sources) == 1:
        return next(iter(sources.values()))
    if name is None or name not in sources:
        raise LabelError(f"--source must name the source that the pairs are like: {listed(list(sources))}")
    return sources[name]
