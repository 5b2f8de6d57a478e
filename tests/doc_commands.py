"""Finds errors in the commands that docs show, without running them.

A block is a whole fenced block of bash. A mention is a command in backticks within a sentence, which may be cut short.
Here documents and `if` or `for` are not understood: docs show plain commands.
"""

import functools
import importlib.util
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer.main
from typer.exceptions import TyperException

from model_export.__main__ import app as train_app
from service.__main__ import app as serve_app
from service.settings import FOR_COMMANDS, PREFIX, Settings
from tests.processes import ROOT, run

FENCE = re.compile(r"^ *```(\S*)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
SHELLS = ("bash", "console", "sh", "shell")
# Commands create these folders and git ignores them, so docs may name files in them that do not exist.
MADE = {"build", "checkpoints", "dist", "runs"}
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
REPOSITORY_PATH = re.compile(r"(?:\./)?([\w.-]+)/[\w./*-]+")
# A comment, or a quoted text, in which a # does not start a comment.
COMMENT = re.compile(r"""('[^']*'|"(?:\\.|[^"\\])*")|(?:^|(?<=\s))#[^\n]*""", re.MULTILINE)

# HAProxy's condition on whether a variable is set, with both branches.
HAPROXY_CHOICE = re.compile(
    r"^\.if defined\((\w+)\)\n(.*?)(?:^\.else\n(.*?))?^\.endif$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Shown:
    """Holds a block or a mention, and the line of the page where it begins."""

    line: int
    code: str
    is_block: bool


@dataclass(frozen=True, slots=True)
class Command:
    """Holds a simple command: the variables set for it, its program without the folder, and its arguments."""

    variables: dict[str, str]
    program: str
    arguments: list[str]
    is_whole: bool = True


def blocks(page: str) -> list[Shown]:
    """Return the fenced blocks of shell commands."""
    return [
        Shown(_line(page, fence.start(2)), _typed(fence[1], textwrap.dedent(fence[2])), True)
        for fence in FENCE.finditer(page)
        if fence[1] in SHELLS
    ]


def mentions(page: str) -> list[Shown]:
    """Return the texts in backticks outside fenced blocks."""
    prose = FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), page)
    return [Shown(_line(prose, span.start()), span[1], False) for span in re.finditer(r"`([^`\n]+)`", prose)]


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _typed(language: str, code: str) -> str:
    """Return what the reader types: in a console block only what follows a prompt, otherwise everything."""
    if language != "console":
        return code
    return "".join(f"{line[2:]}\n" for line in code.splitlines() if line.startswith("$ "))


def commands(shown: Shown) -> list[Command]:
    """Return every simple command, including those in pipes and lists. Raises ValueError for an unclosed quote."""
    code = COMMENT.sub(lambda match: match[1] or "", shown.code.replace("\\\n", " "))
    lexer = shlex.shlex(code, posix=True, punctuation_chars="();<>|&\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    found, words = [], []
    for word in [*lexer, "\n"]:
        if not re.fullmatch(r"[();|&\n]+", word):
            words.append(word)
        elif words:
            found.append(_command(_without_redirections(words), shown.is_block))
            words = []
    return found


def _without_redirections(words: list[str]) -> list[str]:
    """Remove redirections: `2 > file` has three words, `> file` has two."""
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if not re.fullmatch(r"[<>&]*[<>][<>&]*", word):
            kept.append(word)
        elif next(rest, "") and kept and kept[-1].isdigit():
            kept.pop()
    return kept


def _command(words: list[str], is_whole: bool) -> Command:
    assigned = 0
    while assigned < len(words) and ASSIGNMENT.fullmatch(words[assigned]):
        assigned += 1
    variables = dict(word.split("=", 1) for word in words[:assigned])
    program, *arguments = words[assigned:] or [""]
    return Command(variables, program.removeprefix(".venv/bin/"), arguments, is_whole)


def problems(page: str) -> list[str]:
    """Return the errors in a page's commands, each with its line."""
    found = [f"{line}: {name} is no setting" for line, name in unknown_settings(page)]
    made: set[str] = set()
    for shown in blocks(page):
        found += [f"{shown.line}: {problem}" for problem in [*_syntax(shown.code), *_of_code(shown, made)]]
    for shown in mentions(page):
        found += [f"{shown.line}: {problem}" for problem in _of_mention(shown, made)]
    return found


def unknown_settings(page: str) -> Iterator[tuple[int, str]]:
    """Return names on the page that look like settings but do not exist; `NOTEGRADE_ENGINE_*` names several."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | set(FOR_COMMANDS)
    for match in re.finditer(rf"\b({PREFIX}[A-Z0-9_]+)(\*?)", page):
        is_known = any(name.startswith(match[1]) for name in known) if match[2] else match[1] in known
        if not is_known:
            yield _line(page, match.start()), match[0]


def _syntax(code: str) -> list[str]:
    done = subprocess.run(["bash", "-n"], input=code, capture_output=True, text=True, timeout=60, check=False)
    return done.stderr.splitlines()


def _of_code(shown: Shown, made: set[str]) -> Iterator[str]:
    try:
        found = commands(shown)
    except ValueError as error:
        yield f"{error}: {shown.code}"
        return
    for command in found:
        yield from _of_command(command, made)


def _of_mention(shown: Shown, made: set[str]) -> Iterator[str]:
    words = [word for word in shown.code.split() if not ASSIGNMENT.fullmatch(word)]
    if re.fullmatch(rf"{REPOSITORY_PATH.pattern}(::\w+)?", shown.code):
        yield from missing_paths([shown.code.partition("::")[0]], made)
    elif len(words) > 1 and _is_known(words[0].removeprefix(".venv/bin/")):
        yield from _of_code(shown, made)


def _is_known(program: str) -> bool:
    return program in CHECKS or program in OTHER_PROGRAMS or REPOSITORY_PATH.fullmatch(program) is not None


def _of_command(command: Command, made: set[str]) -> Iterator[str]:
    if command.program == "cp":
        made.add(command.arguments[-1])
    yield from missing_paths([command.program, *command.arguments], made)
    if command.program in CHECKS:
        yield from CHECKS[command.program](command)
    # An empty name is a line that only sets variables.
    elif not _is_known(command.program) and not (Path(sys.executable).parent / command.program).exists():
        yield f"no check knows the program {command.program}"


def missing_paths(words: Sequence[str], made: set[str]) -> Iterator[str]:
    """Return the paths, also those after a =, that point into the repository but do not exist; NNNN is any number."""
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()} - MADE
    for path in (word.rpartition("=")[2] for word in words):
        match = REPOSITORY_PATH.fullmatch(path)
        if not match or match[1] not in folders or path in made:
            continue
        if not any(ROOT.glob(re.sub("NNNN.*", "*", path))):
            yield f"there is no {path}"


def _of_make(command: Command) -> Iterator[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    scripts = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "scripts").glob("*.sh")))
    for word in (word for word in command.arguments if not word.startswith("-")):
        name = word.partition("=")[0]
        if "=" not in word and not re.search(rf"^{re.escape(word)}:", makefile, re.MULTILINE):
            yield f"make has no target {word}"
        elif "=" in word and not re.search(rf"\b{name}\b", makefile + scripts):
            yield f"make reads no variable {name}"
    for name in command.variables:
        if not name.startswith(PREFIX) and not re.search(rf"\b{name}\b", makefile + scripts):
            yield f"make reads no variable {name}"


def _of_app(app: typer.Typer, command: Command) -> Iterator[str]:
    """Check the sub-command, its options, the required ones, and the number of arguments."""
    group: Any = typer.main.get_command(app)
    name, *rest = [word for word in command.arguments if word != "--help"] or [""]
    if (called := group.commands.get(name)) is None:
        if command.arguments and name:
            yield f"{command.program} has no command {name}"
        return
    try:
        given, left, _ = called.make_parser(called.context_class(called)).parse_args(rest)
    except TyperException as error:
        yield f"{command.program} {name}: {error}"
        return
    missing = [param.opts[0] for param in called.params if param.required and not given.get(param.name)]
    if left:
        yield f"{command.program} {name} takes no {' '.join(left)}"
    if missing and command.is_whole and "--help" not in command.arguments:
        yield f"{command.program} {name} requires {', '.join(missing)}"


@functools.cache
def _help_of(module: str) -> str:
    done = run(sys.executable, "-m", module, "--help", within_s=120, COLUMNS="200")
    return done.stdout if done.returncode == 0 else ""


def _of_python(command: Command) -> Iterator[str]:
    """Check that a module exists and, for our own, that its --help names the options. A file is checked as a path."""
    if command.arguments[:1] != ["-m"]:
        return
    _, module, *rest = command.arguments
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        yield f"there is no module {module}"
    elif (ROOT / module.partition(".")[0]).is_dir():
        if not (help_text := _help_of(module)):
            yield f"python -m {module} --help says nothing"
        known = set(re.findall(r"--[\w-]+", help_text))
        given = [word.partition("=")[0] for word in rest if word.startswith("--") and word != "--"]
        yield from (f"{module} has no option {word}" for word in given if word not in known and help_text)


def _of_kustomize(command: Command) -> Iterator[str]:
    """Check that the folder after -k or `build` is a kustomization."""
    for flag, folder in zip(command.arguments, command.arguments[1:], strict=False):
        if flag in ("-k", "--kustomize", "build") and not (ROOT / folder / "kustomization.yaml").is_file():
            yield f"{folder} is no kustomization"


def _of_haproxy(command: Command) -> Iterator[str]:
    """Check that the command sets every variable that the files read, and no other."""
    files = [ROOT / path for path in command.arguments if path.endswith(".cfg") and (ROOT / path).is_file()]
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    text = HAPROXY_CHOICE.sub(lambda choice: choice[2 if choice[1] in command.variables else 3] or "", text)
    read = set(re.findall(r"\$\{(\w+)\}", re.sub(r"#.*", "", text)))
    yield from (f"haproxy's files read no {name}" for name in sorted(command.variables.keys() - read))
    if command.is_whole:
        yield from (f"haproxy's files want {name}" for name in sorted(read - command.variables.keys()))


CHECKS: dict[str, Callable[[Command], Iterator[str]]] = {
    "make": _of_make,
    "notegrade": functools.partial(_of_app, serve_app),
    "notegrade-train": functools.partial(_of_app, train_app),
    "python": _of_python,
    "python3": _of_python,
    "kubectl": _of_kustomize,
    "kustomize": _of_kustomize,
    "haproxy": _of_haproxy,
}
# Only their paths, settings and syntax are checked.
OTHER_PROGRAMS = {
    "alertmanager",
    "cp",
    "curl",
    "docker",
    "export",
    "mkdir",
    "pip",
    "prometheus",
    "promtool",
    "sudo",
}
