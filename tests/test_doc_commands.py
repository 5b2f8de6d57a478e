"""Commands in the docs are valid, and links lead to existing files and headings.

README's and the runbooks' commands are also run, by tests/end_to_end/test_readme.py, test_runbooks.py and
tests/deploy/test_dashboards.py; mkdocs checks the links of the generated pages (tests/test_docs.py).
"""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.prometheus_rig import rules, runbook_of
from tests.doc_commands import FENCE, SHELLS, blocks, commands, mentions, problems
from tests.processes import ROOT, output_of

# Except the changelog and the decisions: they describe past states.
OUTSIDE = [
    *(page for page in sorted(ROOT.glob("*.md")) if page.name != "CHANGELOG.md"),
    *(page for folder in ("clients", "deploy", "locks") for page in sorted((ROOT / folder).rglob("*.md"))),
]
PAGES = [*OUTSIDE, *sorted((ROOT / "docs").glob("*.md"))]
LINKING = [*OUTSIDE, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {*SHELLS, "haproxy", "json", "python", "text", "toml", "yaml"}
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_the_docs_are_right(page: Path) -> None:
    assert problems(text_of(page)) == []


def test_every_fenced_block_names_its_language() -> None:
    """A block without a language may hide commands from the check."""
    found = {page.name: {fence[1] for fence in FENCE.finditer(text_of(page))} - LANGUAGES for page in PAGES}
    assert {page: languages for page, languages in found.items() if languages} == {}


def test_shellcheck_finds_nothing_in_the_docs(tmp_path: Path) -> None:
    files: list[Path] = []
    for page in PAGES:
        for block in blocks(text_of(page)):
            files.append(tmp_path / f"{page.parent.name}-{page.stem}-{block.line}.sh")
            files[-1].write_text(block.code, encoding="utf-8")
    # SC2154: the page tells the reader to set these variables.
    shellcheck = str(Path(sys.executable).parent / "shellcheck")
    output_of(shellcheck, "--shell=bash", "--exclude=SC2154", *files, within_s=120)
    assert len(files) > 40


def test_commands_are_parsed() -> None:
    page = """
```bash
A=1 B="two words" make serve \\
  PORT=1   # isn't part of it
notegrade key | kubectl apply -f - && curl -d '{
  "query": "a # in a text"}' > answer 2>&1
```
```console
$ make test
1 passed
```
"""
    found = [(c.program, c.arguments, c.variables) for block in blocks(page) for c in commands(block)]
    assert found == [
        ("make", ["serve", "PORT=1"], {"A": "1", "B": "two words"}),
        ("notegrade", ["key"], {}),
        ("kubectl", ["apply", "-f", "-"], {}),
        ("curl", ["-d", '{\n  "query": "a # in a text"}'], {}),
        ("make", ["test"], {}),
    ]


def test_mentions_are_found_only_outside_fenced_blocks() -> None:
    page = "Say `make test`,\n```bash\necho `date`\n```\nor `make check`."
    assert [(shown.line, shown.code) for shown in mentions(page)] == [(1, "make test"), (5, "make check")]


RIGHT = [
    "make clean test-fast",
    "NOTEGRADE_CHECKPOINT=checkpoints/mine make serve PORT=8001",
    ".venv/bin/notegrade mode on_request --ttl 30m --reason 'a # and more'   # until it's over",
    ".venv/bin/notegrade-train run recipes/tiny.toml --dry-run",
    "cp recipes/small.toml recipes/mine.toml\n.venv/bin/notegrade-train run recipes/mine.toml",
    "python -m load_tests.soak --seconds 60",
    "kubectl apply -k deploy/kubernetes/overlays/cpu",
    "shellcheck scripts/*.sh",
    "entry=made-before",
]
WRONG = {
    "make srve": "make has no target srve",
    "make image TARGETS=gpu": "make reads no variable TARGETS",
    "WITH_GPUS=1 make serve": "make reads no variable WITH_GPUS",
    "NOTEGRADE_CHECKPOINTS=here make serve": "NOTEGRADE_CHECKPOINTS is no setting",
    "make test && make srve": "make has no target srve",
    ".venv/bin/notegrade scor --query q": "notegrade has no command scor",
    "notegrade key --rol score": "No such option: --rol",
    "notegrade mode off --reason": "'--reason' requires an argument",
    "notegrade score --query q": "notegrade score requires --notes",
    "notegrade check one two": "notegrade check takes no two",
    "notegrade-train verify": "notegrade-train verify requires",
    "python -m load_tests.sook": "python -m load_tests.sook --help says nothing",
    "python -m load_tests.soak --second 60": "load_tests.soak has no option --second",
    "python -m no_such_module": "there is no module no_such_module",
    "python scripts/no_such.py": "there is no scripts/no_such.py",
    "scripts/no_such.sh --all": "there is no scripts/no_such.sh",
    "promtool check rules --file=deploy/prometheus/rulez/slo.yaml": "there is no deploy/prometheus/rulez/slo.yaml",
    "kubectl apply -k deploy/kubernetes/base/..": "deploy/kubernetes/base/.. is no kustomization",
    "kustomize build deploy/routing": "deploy/routing is no kustomization",
    "LISTEN=:1 haproxy -f deploy/routing/defaults.cfg": "haproxy's files want METRICS_LISTEN",
    "CONTROL_DNS=a:1 haproxy -f deploy/routing/experiment.cfg": "haproxy's files want TREATMENT_1",
    "LISTN=:1 haproxy -f deploy/routing/defaults.cfg": "haproxy's files read no LISTN",
    "notegrad key": "no check knows the program notegrad",
    "curl -d '{": "unexpected EOF",
    "make serve |": "syntax error",
}


@pytest.mark.parametrize("code", RIGHT)
def test_valid_commands_pass(code: str) -> None:
    assert problems(f"```bash\n{code}\n```\n") == []


@pytest.mark.parametrize("code", WRONG)
def test_errors_are_found(code: str) -> None:
    found = problems(f"A page.\n\n```bash\n{code}\n```\n")
    assert any(WRONG[code] in problem for problem in found), found
    assert all(re.match(r"\d+: ", problem) for problem in found)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("`make srve`", "1: make has no target srve"),
        ("`NOTEGRADE_PROT` says where", "1: NOTEGRADE_PROT is no setting"),
        ("all of\n`NOTEGRADE_ENGIN_*`", "2: NOTEGRADE_ENGIN_* is no setting"),
        ("`notegrade mod`", "1: notegrade has no command mod"),
        ("`tests/no_such.py::test_it`", "1: there is no tests/no_such.py"),
        ("`deploy/no_such.sh | kubectl apply -f -`", "1: there is no deploy/no_such.sh"),
    ],
)
def test_mentions_are_checked_like_blocks(words: str, problem: str) -> None:
    assert problems(words) == [problem]


def test_a_mention_may_be_cut_short() -> None:
    page = (
        "`notegrade-train evaluate`, `NOTEGRADE_ENGINE_*`, `docs/decisions/NNNN-title.md`, `tests/served.py`"
    )
    assert problems(page) == []


def headings(page: Path) -> set[str]:
    """Return the anchors of the file's headings: words in lower case, joined by -."""
    prose = FENCE.sub("", text_of(page))
    titles = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def is_dead(target: Path, anchor: str) -> bool:
    return not target.exists() or bool(anchor and anchor not in headings(target))


def dead_links(page: Path) -> list[str]:
    return [
        f"{path}#{anchor}" if anchor else path
        for path, anchor in LINK.findall(FENCE.sub("", text_of(page)))
        if is_dead(page.parent / path if path else page, anchor)
    ]


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_have_a_target(page: Path) -> None:
    assert dead_links(page) == []


@pytest.mark.parametrize("alert", rules("alert").values(), ids=lambda alert: alert["alert"])
def test_an_alert_s_runbook_exists(alert: dict[str, Any]) -> None:
    path, anchor = runbook_of(alert)
    assert not is_dead(ROOT / path, anchor)


def test_dead_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# Other `page`, too\n", encoding="utf-8")
    page.write_text(
        "# Top\n[a](other.md#other-page-too) [b](#top) [c](none.md) [d](other.md#none) [e](#bottom)\n"
        "[f](https://example.org/none)\n```text\n# none\n[g](none.md)\n```\n",
        encoding="utf-8",
    )
    assert dead_links(page) == ["none.md", "other.md#none", "#bottom"]
