from pathlib import Path

import pytest

from model_export.data.criteria import (
    DEFAULT_CRITERIA,
    CriteriaError,
    criteria_names,
    load_criteria,
    load_teacher_criteria,
)


def test_packaged_criteria_are_named_like_their_file() -> None:
    assert DEFAULT_CRITERIA in criteria_names()
    assert all(load_criteria(name).name == name for name in criteria_names())


def test_general_criteria_define_each_grade_and_are_short() -> None:
    text = load_criteria("general-1").text
    assert [line[0] for line in text.splitlines() if line[:1].isdigit()] == ["0", "1", "2", "3"]
    assert len(text.split()) < 90  # every pair pays for them


@pytest.mark.parametrize("name", criteria_names())
def test_teacher_reads_each_grade_and_each_step_of_packaged_criteria(name: str) -> None:
    student, teacher = load_criteria(name), load_teacher_criteria(name)
    assert (
        (teacher.name, teacher.steps) == (student.name, student.steps) == (name, ("asked", "for", "against"))
    )
    lines = teacher.text.splitlines()
    assert [line[0] for line in lines if line[:1].isdigit()] == ["3", "2", "1", "0"]
    assert [line.split(":")[0] for line in lines[-3:]] == list(student.steps)
    assert len(teacher.text.split()) > len(student.text.split())


def test_steps_are_explained_in_the_language_of_the_criteria() -> None:
    english, chinese = (load_teacher_criteria(name).text for name in ("product-2", "search-zh-1"))
    assert "quote what is asked for" in english
    assert "引用搜索的要求" in chinese
    assert "quote" not in chinese


def test_own_file_s_teacher_text_is_for_the_teacher_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "mine-1"\ntext = "Short."\nsteps = ["any"]\nteacher_text = "Long.\\n"\n', encoding="utf-8"
    )
    assert load_criteria(str(path)).text == "Short."
    assert load_teacher_criteria(str(path)).text == "Long."
    path.write_text('name = "mine-1"\ntext = "Short."\n', encoding="utf-8")
    assert load_teacher_criteria(str(path)) == load_criteria(str(path))


def test_own_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine-1"\ntext = """\nGrade it: 品質 🎯\n"""\n', encoding="utf-8")
    criteria = load_criteria(str(path))
    assert (criteria.name, criteria.text) == ("mine-1", "Grade it: 品質 🎯")


def test_unknown_name_lists_the_known_names() -> None:
    with pytest.raises(CriteriaError, match="general-1"):
        load_criteria("strict")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"name = ", "valid TOML"),
        (b"\xff\xfe", "valid TOML"),
        (b'name = "a"', "text: "),
        (b'name = "a"\ntext = "  "', "text: "),
        (b'name = "a b"\ntext = "x"', "name: "),
        (b'name = "a"\ntext = "x"\nsteps = 3', "steps: "),
        (b'name = "a"\ntext = 3', "text: "),
    ],
)
def test_error_of_a_bad_file_names_the_fault(content: bytes, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(CriteriaError, match=complaint) as caught:
        load_criteria(str(path))
    assert "\n" not in str(caught.value)
