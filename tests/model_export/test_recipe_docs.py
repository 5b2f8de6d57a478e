"""docs/recipe.md lists every field of the recipe's models with its default, and nothing else."""

import json
import re
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from model_export.recipe import (
    EvaluateConfig,
    ExperimentConfig,
    ExportConfig,
    LaunchConfig,
    ModelConfig,
    Recipe,
    RolloutsConfig,
    TinyConfig,
)
from model_export.recipe_data import DataConfig, SourceConfig, SyntheticConfig
from model_export.recipe_stack import EndpointConfig, StackConfig
from model_export.recipe_stages import (
    CotConfig,
    CrossEncoderConfig,
    DistilConfig,
    EncodeConfig,
    EvidenceConfig,
    LabelConfig,
    LabelOnlyConfig,
    OwnTracesConfig,
    RlConfig,
    SelfConfig,
    UnlabelledConfig,
)

DOCS = Path(__file__).parent.parent.parent / "docs"
SECTIONS: dict[str, type[BaseModel]] = {
    "": Recipe,
    "[model]": ModelConfig,
    "[model.tiny]": TinyConfig,
    "[data]": DataConfig,
    "[data.synthetic]": SyntheticConfig,
    "[[data.sources]]": SourceConfig,
    "[label_only_sft]": LabelOnlyConfig,
    "[cross_encoder]": CrossEncoderConfig,
    "[evidence]": EvidenceConfig,
    "[cot_sft]": CotConfig,
    "[own_traces]": OwnTracesConfig,
    "[self_sft]": SelfConfig,
    "[rl]": RlConfig,
    "[label]": LabelConfig,
    "[stack]": StackConfig,
    "[stack.endpoint]": EndpointConfig,
    "[unlabelled]": UnlabelledConfig,
    "[distil]": DistilConfig,
    "[encode]": EncodeConfig,
    "[evaluate]": EvaluateConfig,
    "[experiment]": ExperimentConfig,
    "[export]": ExportConfig,
    "[launch]": LaunchConfig,
    "[launch.rollouts]": RolloutsConfig,
}


def default_of(model: type[BaseModel], name: str) -> str:
    """Format a field's default as the page shows it, in TOML if it is a value."""
    default = model.model_fields[name].default
    if default is PydanticUndefined:
        return "must be stated"
    if default is None or default == ():
        return "unset"
    if not isinstance(default, BaseModel):
        return f"`{json.dumps(default)}`"
    return f"`{inline_table(default)}`" if name == "limits" else "its own"


def inline_table(value: BaseModel) -> str:
    fields = (f"{name} = {json.dumps(field)}" for name, field in value.model_dump().items())
    return f"{{ {', '.join(fields)} }}"


def documented(title: str) -> list[tuple[str, str]]:
    """Field and default of each row of a section."""
    page = (DOCS / "recipe.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^##? (.*)\n((?:(?!## ).*\n?)*)", page, re.MULTILINE))
    section = sections[f"`{title}`" if title else "Recipes"]
    return re.findall(r"^\| `(\w+)` \| (.*?) \| .+ \|$", section, re.MULTILINE)


@pytest.mark.parametrize("title", SECTIONS)
def test_section_lists_the_fields_and_defaults_of_the_code(title: str) -> None:
    model = SECTIONS[title]
    assert documented(title) == [(name, default_of(model, name)) for name in model.model_fields]


def test_no_section_is_missing_or_too_many() -> None:
    page = (DOCS / "recipe.md").read_text(encoding="utf-8")
    assert re.findall(r"^## `(.*)`$", page, re.MULTILINE) == [title for title in SECTIONS if title]
