import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

from model_export.data.pairs import GRADES, Pair, Source, write_pairs
from model_export.data.prompting import PromptForm, Prompting
from model_export.data.synthetic import CRITERIA, SOURCE, generate
from model_export.data.template import find_template
from model_export.models.model_io import load_model
from model_export.models.tiny_model import make_tiny_model
from model_export.recipe import CotConfig, TinyConfig
from model_export.scale_out.label_at_scale import label_file
from model_export.scale_out.label_plan import LabelError, LabelPlan, PathSampling
from model_export.scale_out.ray_engine import RayOptions, reason_of, start_ray_engine
from model_export.scale_out.trace_engine import Completion, EngineSetup, MakeRequests, TraceEngine
from model_export.teacher.label import SoftLabel, average, read_soft_labels
from model_export.teacher.rollout import Sampler, read_path
from model_export.teacher.sft import StageContext, train_cot
from service.contract.manifest import Limits

FORM = PromptForm(
    find_template("note-first-plain-1"), (CRITERIA,), Limits(max_query_tokens=32, max_note_tokens=64)
)
PAIRS = generate(0, 3, 2, 4).train[:10]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train, in seconds, a model that memorises the traces of ten pairs, with some errors at temperature 1."""
    torch.set_num_threads(1)
    base, taught = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("taught")
    texts = [f" {p.query} {p.note.title} {p.note.body} {f.text}" for p in PAIRS for f in p.findings.values()]
    make_tiny_model([CRITERIA.text, *texts], TinyConfig(vocabulary=400, hidden=64, layers=2), 0, base)
    prompting = Prompting.load(FORM, base)
    config = CotConfig(steps=80, batch_size=10, learning_rate=1e-2)
    train_cot(PAIRS, prompting, config, StageContext("cot_sft", base, taught, 0, True, lambda *_: None))
    return taught


@pytest.fixture
def plan(teacher: Path, tmp_path: Path) -> LabelPlan:
    write_pairs(tmp_path / "pairs.jsonl", PAIRS)
    source = Source(SOURCE, CRITERIA.name, GRADES)
    return LabelPlan(tmp_path / "pairs.jsonl", source, teacher, FORM, PathSampling(3, 1.0, 64, 0), 4)


class Listener:
    """Passes an engine's completions on and records them."""

    def __init__(self, engine: TraceEngine) -> None:
        self._engine = engine
        self.heard: list[list[Completion]] = []

    def complete(self, pairs: Sequence[Pair], make_requests: MakeRequests) -> Iterator[list[Completion]]:
        for completions in self._engine.complete(pairs, make_requests):
            self.heard.append(completions)
            yield completions


# Ray and the libraries that it and vLLM import warn of themselves, under Python's warnings as errors.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
@pytest.mark.engine
@pytest.mark.timeout(900)  # several processes import vLLM, on a machine that may be busy
def test_labels_equal_those_of_transformers_on_the_same_paths(plan: LabelPlan, tmp_path: Path) -> None:
    listeners: list[Listener] = []

    @contextmanager
    def start(setup: EngineSetup) -> Iterator[TraceEngine]:
        with start_ray_engine(setup, RayOptions()) as engine:
            listeners.append(Listener(engine))
            yield listeners[0]

    summary = label_file(plan, tmp_path / "out", start, lambda *_: None)
    found: dict[str, SoftLabel] = {}
    for shard in sorted((tmp_path / "out").glob("labels-*.jsonl")):
        found |= read_soft_labels(shard)

    prompting = Prompting.load(FORM, plan.teacher)
    sampler = Sampler(load_model(plan.teacher), prompting.label_token_ids, prompting.end_token_id)
    reader = prompting.reader
    distinct = 0
    for pair, completions in zip(PAIRS, listeners[0].heard, strict=True):
        assert len(completions) == plan.sampling.paths
        distinct += len({tuple(each.token_ids) for each in completions}) > 1
        prompt = prompting.teacher_prompt(pair)
        read = (read_path(prompt, each.token_ids, reader, CRITERIA.steps) for each in completions)
        paths = [path for path in read if path]
        if not paths:
            assert pair.id not in found
            continue
        answers, _ = sampler.distributions([path.before_answer for path in paths], batch_size=8)
        expected = average(
            pair.id, [(path.steps, row) for path, row in zip(paths, answers.tolist(), strict=True)]
        )
        assert found[pair.id].distribution == pytest.approx(expected.distribution, abs=1e-3)
        assert found[pair.id].paths == expected.paths
        # Two paths are equally near to their mean, and rounding picks one.
        assert found[pair.id].steps in {path.steps for path in paths}
    assert summary.labelled == len(found) >= 5  # traces parse, so that there was something to compare
    assert distinct >= 3  # each path has a seed of its own


def test_missing_vllm_is_one_line(plan: LabelPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(LabelError, match="vLLM is not installed here"):
        label_file(plan, tmp_path / "out", partial(start_ray_engine, options=RayOptions()), lambda *_: None)


def test_reason_is_the_exception_at_the_end_of_the_tracebacks() -> None:
    text = """Traceback (most recent call last):
  File "engine.py", line 1, in start
ray.exceptions.RayTaskError(ValueError): ray::MapWorker.__init__()
  File "config.py", line 2, in check
pydantic.ValidationError: 1 validation error
  Value error, no such model
"""
    assert (
        reason_of(RuntimeError(text))
        == "pydantic.ValidationError: 1 validation error Value error, no such model"
    )
    assert reason_of(RuntimeError("two\nlines")) == "lines"
    assert reason_of(RuntimeError()) == ""
