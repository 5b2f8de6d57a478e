"""The data section of a recipe: the pairs that a run trains on and measures on."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.contract.manifest import Limits
from service.contract.template import Name

Positive = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    """A section of a recipe. Unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SyntheticConfig(Strict):
    """Sizes of the data that the project generates itself, see data/synthetic.py."""

    task: Literal["three", "six"] = "three"
    train_queries: Positive
    dev_queries: Positive
    notes_per_query: Positive


class SourceConfig(Strict):
    """A source of judged pairs: JSON-lines files under the data folder."""

    name: Name
    train: str
    dev: str
    criteria: str = "general-1"
    limits: Limits | None = None
    grades: tuple[Annotated[int, Field(ge=0, le=3)], ...] = (0, 1, 2, 3)
    long_tail: str | None = None
    test: str | None = None
    test_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    licence: str = "licence not stated"
    max_train: Positive | None = None
    max_dev: Positive | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files of the source."""
        return tuple(name for name in (self.train, self.dev, self.long_tail, self.test) if name)

    @model_validator(mode="after")
    def _one_kind_of_test(self) -> Self:
        if self.test is not None and self.test_share is not None:
            raise ValueError(f"{self.name}: set test or test_share, not both")
        return self


class DataConfig(Strict):
    """Either `synthetic` or at least one source. The first source's criteria become the checkpoint's default."""

    synthetic: SyntheticConfig | None = None
    leaking_dev: Literal["refuse", "drop"] = "refuse"
    fold: Annotated[int, Field(ge=0)] | None = None
    folds: Annotated[int, Field(ge=2)] | None = None
    teacher_text: bool = True
    sources: tuple[SourceConfig, ...] = ()

    @property
    def has_test(self) -> bool:
        """Whether a source has a test split."""
        return any(source.test or source.test_share for source in self.sources)

    @model_validator(mode="after")
    def _fold_is_one_of_the_folds(self) -> Self:
        if (self.fold is None) != (self.folds is None):
            raise ValueError("fold: set both fold and folds, or neither")
        if self.fold is not None and self.folds is not None and self.fold >= self.folds:
            raise ValueError(f"fold: {self.fold} is out of range 0..{self.folds - 1}")
        return self

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Self:
        if (self.synthetic is None) == (not self.sources):
            raise ValueError("set either [data.synthetic] or at least one [[data.sources]]")
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"sources must have distinct names, not {names}")
        limits = {source.criteria: source.limits for source in self.sources}
        if torn := [source.name for source in self.sources if source.limits != limits[source.criteria]]:
            raise ValueError(f"{', '.join(torn)}: sources with the same criteria must have the same limits")
        return self
