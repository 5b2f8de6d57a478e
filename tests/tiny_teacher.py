"""Makes the smallest recipe, and a teacher that memorised a few pairs of its data."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_export.data.pairs import Pair
from model_export.data.prepare import load_data, prepare_base, prepare_data
from model_export.data.prompting import PromptForm, Prompting
from model_export.recipe import Recipe
from model_export.training.stage_job import StageJob

MICRO = """
name = "micro"
seed = 3

[model]
teacher = "tiny"
template = "note-first-plain-1"
limits = { max_query_tokens = 96, max_note_tokens = 64 }
tiny = { vocabulary = 512, hidden = 64, layers = 2 }

[data.synthetic]
train_queries = 6
dev_queries = 4
notes_per_query = 4

[label_only_sft]
steps = 12
batch_size = 8
learning_rate = 1e-2
save_steps = 4

[cot_sft]
steps = 60
batch_size = 8
learning_rate = 5e-3
min_parse_rate = 0.0

[rl]
steps = 3
prompts = 2
rollouts = 4
learning_rate = 1e-3
max_tokens = 48
min_parse_rate = 0.0
dev_pairs = 8
save_steps = 1

[label]
pairs = 8
paths = 2
batch_size = 4

[distil]
steps = 12
batch_size = 8
learning_rate = 1e-2
save_steps = 5

[evaluate]
draws = 20
encoders = []

[export]
with_vllm = false
gate_pairs = 8
"""


def micro_recipe(**changes: Any) -> Recipe:
    """Return the smallest recipe; the changes to a section leave its other settings as they are."""
    return _changed(tomllib.loads(MICRO), changes)


def control_as_teacher(**changes: Any) -> Recipe:
    """Return the smallest recipe without generative teachers; changes as in `micro_recipe`."""
    stated = tomllib.loads(MICRO)
    for section in ("cot_sft", "rl", "label"):
        del stated[section]
    return _changed({**stated, "label": {"teacher": "label_only_sft"}}, changes)


def _changed(stated: dict[str, Any], changes: dict[str, Any]) -> Recipe:
    for name, value in changes.items():
        stated[name] = stated.get(name, {}) | value if isinstance(value, dict) else value
    return Recipe.model_validate(stated)


def micro_job(stage: str, start: Path, folder: Path, **changes: Any) -> StageJob:
    """Return a stage of the smallest recipe that works in `folder`, which is made if it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = micro_recipe(**changes)
    return StageJob(stage=stage, recipe=recipe, data=folder.parent / "data", start=start, folder=folder)


@dataclass(frozen=True, slots=True)
class TinyTeacher:
    """Holds the folders of an untrained base and of the teacher, the pairs that it memorised (two per grade), and other pairs."""

    base: Path
    folder: Path
    prompting: Prompting
    pairs: tuple[Pair, ...]
    others: tuple[Pair, ...]


def make_tiny_teacher(root: Path) -> TinyTeacher:
    """Train a teacher under `root` in a few seconds."""
    import torch

    from model_export.teacher.sft import train_cot

    torch.set_num_threads(1)  # as in conftest's tiny_base
    base, recipe = root / "base", micro_recipe()
    for made in (root / "data", base):
        made.mkdir()
    prepare_data(recipe, root, root / "data")
    data = load_data(root / "data")
    prepare_base("tiny", recipe, data, base)
    prompting = Prompting.load(PromptForm.of(recipe.model, data.criteria), base)
    job = micro_job("cot_sft", base, root / "teacher", cot_sft={"steps": 100})
    train_cot(data.train[:8], {}, prompting, job, lambda *_: None)
    return TinyTeacher(base, job.folder, prompting, data.train[:8], data.train[8:])
