from dataclasses import replace

from model_export.data.pairs import Finding, Pair
from model_export.data.prompting import PromptForm, Prompting
from model_export.data.template import find_template
from model_export.recipe_stages import OwnTracesConfig
from model_export.teacher.own_traces import sample_own_traces
from service.contract.manifest import Criteria, Limits
from service.contract.prompt import Note
from service.contract.trace import write_step
from tests.byte_tokens import TOKENIZER
from tests.word_model import WordModel

[END] = TOKENIZER.encode_template("<|im_end|>")
FORM = PromptForm(
    find_template("note-first-plain-1"),
    (Criteria(name="two", text="x", steps=("asked", "for")),),
    Limits(max_query_tokens=100, max_note_tokens=100),
)
PROMPTING = Prompting(FORM, TOKENIZER, END)
PAIR = Pair("1", "green tea", Note("Tea", "green leaves"), 2, "made", "two")


def trace(title: str, last: int = 2, answer: int = 2, first: int = 3) -> str:
    steps = write_step("asked", 'query "green tea"', first) + write_step("for", title, last)
    return f"{steps}Grade: {answer}"


GOOD = trace('title "tea"')


def kept(*texts: str, pairs: tuple[Pair, ...] = (PAIR,)) -> dict[str, str]:
    config = OwnTracesConfig(paths=len(texts) // len(pairs), batch_size=4)
    model = WordModel(completions=texts, end=[END])
    found = sample_own_traces(pairs, PROMPTING, model, config, 99, lambda *_: None)
    assert all(list(each.traces) == [2] for each in found)
    return {each.id: each.traces[2] for each in found}


def test_first_trace_that_is_true_and_reaches_gold_is_kept() -> None:
    bad = [
        trace('title "coffee"'),
        trace('title "tea"', 1, 1),
        trace('title "tea"', 3),
        trace('title "tea"', answer=3),
        trace('title "tea"', first=1),
        "no trace",
    ]
    assert kept(*bad, GOOD, trace('body "green"')) == {"1": GOOD.removesuffix("Grade: 2")}
    assert kept(*bad) == {}


def test_trace_that_quotes_nothing_is_not_kept() -> None:
    steps = write_step("asked", "tea", 3) + write_step("for", "nothing", 2)
    assert kept(f"{steps}Grade: 2") == {}


def test_trace_whose_findings_are_not_the_data_s_is_not_kept() -> None:
    known = replace(PAIR, findings={"for": Finding("leaves", 2)})
    assert kept(GOOD, trace("leaves"), pairs=(known,)) == {"1": trace("leaves").removesuffix("Grade: 2")}


def test_traces_go_to_their_pairs() -> None:
    other = replace(PAIR, id="2", note=Note("Green tea", ""))
    texts = (GOOD, GOOD, trace('body "green"'), trace('title "green tea"'))
    assert list(kept(*texts, pairs=(PAIR, other))) == ["1", "2"]
