"""The section of a recipe about the teachers of the stack, whose grades the student learns."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from model_export.recipe_data import Positive, Strict


class EndpointConfig(Strict):
    """A model behind an OpenAI-compatible endpoint. The key is read from an environment variable, never from a recipe."""

    url: str | None = None
    model: str = ""
    key_variable: str = "OPENAI_API_KEY"
    in_flight: Positive = 8
    timeout_s: Annotated[float, Field(gt=0)] = 60.0

    @model_validator(mode="after")
    def _names_a_model(self) -> Self:
        if self.url is not None and not self.model:
            raise ValueError("model: name the model that the endpoint serves")
        return self


class StackConfig(Strict):
    """Settings of the stack; without teachers there is none."""

    teachers: tuple[
        Literal["lexical", "cosine", "label_only", "cross_encoder", "reasoning", "endpoint"], ...
    ] = ()
    folds: Annotated[int, Field(ge=2)] = 5
    pairs: Positive | None = None
    source_exponent: Annotated[float, Field(ge=0, le=1)] = 1.0
    encoders: tuple[str, ...] = ("minilm",)
    label_only_steps: Positive | None = None
    strength: Annotated[float, Field(gt=0)] = 1.0
    endpoint: EndpointConfig = EndpointConfig()

    @model_validator(mode="after")
    def _can_be_made(self) -> Self:
        if len(set(self.teachers)) < len(self.teachers):
            raise ValueError("teachers: name each teacher once")
        if "endpoint" in self.teachers and self.endpoint.url is None:
            raise ValueError("endpoint.url: the teacher 'endpoint' needs the address of its server")
        if "cosine" in self.teachers and not self.encoders:
            raise ValueError("encoders: the teacher 'cosine' needs one or more")
        return self
