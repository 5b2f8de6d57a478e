"""Makes the smallest recipe, and a teacher that memorised a few pairs of its data."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from model_export.data.pairs import Pair
from model_export.data.prepare import load_data, prepare_base, prepare_data
from model_export.data.prompting import PromptForm, Prompting
from model_export.data.template import find_template
from model_export.recipe import CotConfig, Recipe

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

[export]
with_vllm = false
gate_pairs = 8
"""


@dataclass(frozen=True, slots=True)
class TinyTeacher:
    """Folders of an untrained base and of the teacher, the pairs that it memorised (two per grade), and other pairs."""

    base: Path
    folder: Path
    prompting: Prompting
    pairs: tuple[Pair, ...]
    others: tuple[Pair, ...]


def make_tiny_teacher(root: Path) -> TinyTeacher:
    """Train a teacher under `root` in a few seconds."""
    import torch

    from model_export.teacher.sft import StageContext, train_cot

    torch.set_num_threads(1)  # as in conftest's tiny_base
    data_folder, base, folder = root / "data", root / "base", root / "teacher"
    for made in (data_folder, base, folder):
        made.mkdir(parents=True)
    recipe = Recipe.model_validate(tomllib.loads(MICRO))
    prepare_data(recipe, root, data_folder)
    data = load_data(data_folder)
    prepare_base("tiny", recipe, data, base)
    form = PromptForm(find_template(recipe.model.template), data.criteria, recipe.model.limits)
    prompting, pairs = Prompting.load(form, base), data.train[:8]
    place = StageContext("cot_sft", base, folder, seed=3, from_scratch=True, on_step=lambda *_: None)
    train_cot(pairs, prompting, CotConfig(steps=100, batch_size=8, learning_rate=5e-3), place)
    return TinyTeacher(base, folder, prompting, pairs, data.train[8:])
