from pathlib import Path

import pytest

from model_export.recipe_file import RecipeError, load_recipe
from tests.tiny_teacher import MICRO

RECIPES = sorted((Path(__file__).parent.parent.parent / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_shipped_recipes_load_under_their_own_names(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    command = "experiment" if "experiment" in recipe.model_fields_set else "run"
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# notegrade-train {command} recipes/{path.name}")


def test_multilingual_recipe_is_the_default_one_with_two_more_sources() -> None:
    """Then the difference between their students is what Chinese costs."""
    default, multilingual = (
        load_recipe(Path(RECIPES[0].parent, f"{name}.toml")).model_dump()
        for name in ("default", "multilingual")
    )
    assert [source["name"] for source in multilingual["data"]["sources"][-2:]] == ["qbqtc", "kuake-qtr"]
    multilingual["data"]["sources"] = multilingual["data"]["sources"][:-2]
    for recipe in (default, multilingual):
        del recipe["name"], recipe["export"]["name"]
    assert multilingual == default


@pytest.fixture
def micro(tmp_path: Path) -> Path:
    path = tmp_path / "micro.toml"
    path.write_text(MICRO, encoding="utf-8")
    return path


def test_all_bad_fields_are_named_at_once_and_in_one_line(tmp_path: Path) -> None:
    text = MICRO.replace("steps = 60", "steps = -1\nstpes = 1").replace("seed = 3", 'seed = "x"')
    path = tmp_path / "bad.toml"
    path.write_text(text.replace("rollouts = 4", "rollouts = 1"), encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    message = str(error.value)
    assert message.startswith(f"the recipe {path} is not valid: ")
    for field in ("seed", "cot_sft.steps", "cot_sft.stpes", "rl.rollouts"):
        assert f"{field}: " in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"name = ", "is not valid TOML"),
        (b"", "name: Field required"),
        (b'name = "a b"', "name: "),
        ("name = 'é'".encode(), "name: "),
        (b"\xff\xfe", "is not valid"),
        (None, r"bad.toml can't be read: No such file"),
    ],
)
def test_invalid_or_missing_file_is_refused(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    path = tmp_path / "bad.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=complaint):
        load_recipe(path)


def test_changes_override_the_file(micro: Path) -> None:
    changes = ["label_only_sft.steps=7", "name=other", "distil.steps = 1", "model.precision=bfloat16"]
    found = load_recipe(micro, changes)
    assert (found.name, found.distil.steps, found.model.precision) == ("other", 1, "bfloat16")
    assert found.label_only_sft == load_recipe(micro).label_only_sft.model_copy(update={"steps": 7})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("seed", "'seed' is not KEY=VALUE, such as"),
        ("label_only_sft.stepps=3", "label_only_sft.stepps"),
        ("seed=many", "seed"),
        ("a b=1", "is not valid"),
    ],
)
def test_invalid_change_is_refused(micro: Path, change: str, complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        load_recipe(micro, [change])
