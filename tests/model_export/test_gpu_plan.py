from pathlib import Path

from model_export.data.criteria import load_criteria
from model_export.gpu_costs import Training
from model_export.gpu_plan import large_stages
from model_export.recipe_file import load_recipe
from tests.tiny_base import make_micro_model

RECIPES = Path(__file__).parent.parent.parent / "recipes"


def test_longest_prompt_has_the_limits_of_its_source_and_two_tokens_a_chinese_character() -> None:
    recipe, model = load_recipe(RECIPES / "multilingual.toml"), make_micro_model(layers=16)
    first = next(iter(large_stages(recipe, model, model, None)))
    assert isinstance(first, Training)
    chinese = sum(not character.isascii() for character in load_criteria("search-zh-1").text)
    assert 0 <= first.tokens.prompt - (32 + 256 + 144 + 2 * chinese) < 10
