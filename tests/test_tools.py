"""Missing programs that tests need are reported in one list, before any test runs."""

from collections.abc import Sequence

import pytest

from tests.tools import Tool, prepare, require

ABSENT = Tool("Absent", ("notegrade-absent",), "absent-package")
OTHER = Tool("Other", ("notegrade-other",), "other-package")


def refuse(packages: Sequence[str]) -> bool:
    """Install nothing, as for a user who may not."""
    return False


@pytest.fixture(autouse=True)
def outside_of_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)


def test_missing_tools_are_listed_with_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare([ABSENT, OTHER], refuse)
    printed = capsys.readouterr().out
    assert "skipped: Absent, Other\n" in printed
    assert "\n  sudo apt-get install absent-package other-package\n" in printed


@pytest.mark.parametrize(
    ("known", "calls"),
    [
        ({"absent-package", "other-package"}, [["absent-package", "other-package"]]),
        # One does not exist, so all are installed one by one.
        ({"other-package"}, [["absent-package", "other-package"], ["absent-package"], ["other-package"]]),
    ],
)
def test_packages_are_installed_at_once_or_one_by_one(known: set[str], calls: list[list[str]]) -> None:
    made: list[list[str]] = []

    def install(packages: Sequence[str]) -> bool:
        made.append([*packages])
        return set(packages) <= known

    prepare([ABSENT, OTHER], install)
    assert made == calls


def test_a_missing_tool_skips_its_tests() -> None:
    with pytest.raises(pytest.skip.Exception, match="no Absent here: sudo apt-get install absent-package"):
        require(ABSENT)


def test_in_ci_a_missing_tool_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    assert not prepare([ABSENT], refuse)
    with pytest.raises(pytest.fail.Exception, match="absent-package"):
        require(ABSENT)
