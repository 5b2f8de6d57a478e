import io

from rich.console import Console

from service.cli.offline import read_notes, to_json_line, to_table
from service.contract.judgement import Judgement
from service.http.schemas import RequestLimits
from service.scoring.types import PairResult, ScoringNote

LIMITS = RequestLimits(max_body_chars=100)


def test_unreadable_lines_are_reported_by_number_and_the_others_are_read() -> None:
    text = (
        '{"id": "a", "body": "x"}\n\nnonsense\n{"id": "a", "body": "y"}\n{"id": "b", "body": "'
        + "z" * 101
        + '"}\n'
    )
    notes, unreadable = read_notes(io.StringIO(text), LIMITS)
    assert [note.id for note in notes] == ["a"]
    assert [bad.field for bad in unreadable] == ["line 3", "line 4", "line 5"]
    assert "limit 100" in unreadable[2].message
    assert "zzz" not in unreadable[2].message


def test_results_are_written_as_json_lines_and_as_a_table() -> None:
    judgement = Judgement(grade=3, score=0.9, distribution=(0.1, 0.9), margin=0.8, label_mass=0.99)
    results = [PairResult("a", "failed"), PairResult("b", "scored", judgement, "engine", truncated=True)]
    notes = [ScoringNote("a", None, "body of [a]"), ScoringNote("b", "[red] title", "")]
    assert to_json_line(results[0]) == '{"id": "a", "outcome": "failed"}'
    assert '"score": 0.9, "grade": 3' in to_json_line(results[1])
    console = Console(width=100, file=io.StringIO())
    console.print(to_table("q [bold]", notes, results))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "2 notes answer “q [bold]”" in shown
    assert shown.index("[red] title (cut)") < shown.index("failed: body of [a]")
