"""Missing programs that tests need are reported in one list, before any test runs."""

import re
from collections.abc import Iterator, Sequence

import pytest

from tests import tools
from tests.tools import ROOT, TOOLS, Tool, prepare, require

ABSENT = Tool("Absent", ("notegrade-absent",), "absent-package", "tests/deploy/test_absent.py")
OTHER = Tool("Other", ("notegrade-other",), "other-package", "tests/test_other.py")


def refuse(packages: Sequence[str]) -> bool:
    """Install nothing, as for a user who may not."""
    return False


@pytest.fixture(autouse=True)
def outside_of_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)


def test_missing_tools_are_listed_with_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare([ABSENT, OTHER], refuse)
    printed = capsys.readouterr().out
    assert "  Absent          needed by tests/deploy/test_absent.py\n" in printed
    assert "\n  sudo apt-get install absent-package other-package\n" in printed


def test_all_packages_are_installed_at_once() -> None:
    calls: list[list[str]] = []

    def install(packages: Sequence[str]) -> bool:
        calls.append([*packages])
        return True

    prepare([ABSENT, OTHER], install)
    assert calls == [["absent-package", "other-package"]]


def test_other_packages_are_installed_if_one_does_not_exist() -> None:
    calls: list[list[str]] = []

    def install(packages: Sequence[str]) -> bool:
        calls.append([*packages])
        return packages == ["other-package"]

    prepare([ABSENT, OTHER], install)
    assert ["other-package"] in calls


def test_a_missing_tool_skips_its_tests() -> None:
    with pytest.raises(pytest.skip.Exception, match="no Absent here: sudo apt-get install absent-package"):
        require(ABSENT)


def test_in_ci_a_missing_tool_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    assert not prepare([ABSENT], refuse)
    with pytest.raises(pytest.fail.Exception, match="absent-package"):
        require(ABSENT)


def test_the_tests_that_a_tool_names_are_those_that_require_it() -> None:
    names = {name: tool for name, tool in vars(tools).items() if isinstance(tool, Tool)}
    found: dict[str, set[str]] = {name: set() for name in names}
    for file in (ROOT / "tests").rglob("test_*.py"):
        for name in re.findall(r"\brequire\((\w+)\)", file.read_text(encoding="utf-8")):
            if name in found:
                found[name].add(file.relative_to(ROOT).as_posix())
    for name, files in found.items():
        assert files <= set(_expanded(names[name].tests)), name


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_the_files_that_a_tool_names_exist(tool: Tool) -> None:
    assert [file for file in _expanded(tool.tests) if not (ROOT / file).exists()] == []


def _expanded(pattern: str) -> Iterator[str]:
    """Expand a shell's braces: `a_{b,c}` to `a_b`, `a_c`."""
    head, _, rest = pattern.partition("{")
    choices, _, tail = rest.partition("}")
    return (f"{head}{choice}{tail}" for choice in choices.split(","))
