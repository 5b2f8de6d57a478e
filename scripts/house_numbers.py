#!/usr/bin/env python3
"""Counts the figures in docs/decisions/0023-house-numbers.md: python scripts/house_numbers.py

Functions are counted without docstrings, and files of five lines or fewer are ignored. "No assert" and "sleeps" search the text of
tests, so an assertion in a helper is not found.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
CODE = ("service", "model_export", "clients/python/notegrade_client")
ASSERTS = re.compile(r"\bassert|\braises\b|\bwarns\b|\bfail\(")
SLEEPS = re.compile(r"\bsleep\(")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(*folders: str) -> list[str]:
    """Return the text of each Python file in the folders."""
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    texts = [path.read_text(encoding="utf-8") for path in paths]
    return [text for text in texts if text.count("\n") > 5]


def functions(texts: list[str]) -> Iterator[tuple[Function, str]]:
    """Yield every function with its text."""
    for text in texts:
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, Function):
                yield node, "\n".join(lines[node.lineno - 1 : node.end_lineno])


def length(node: Function, text: str) -> int:
    """Count the lines without the docstring."""
    first = node.body[0]
    docstring = 0
    if ast.get_docstring(node) is not None:
        docstring = (first.end_lineno or first.lineno) - first.lineno + 1
    return text.count("\n") + 1 - docstring


def parameters(node: Function) -> int:
    """Count the parameters, except self and cls."""
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return sum(each.arg not in ("self", "cls") for each in every)


def spread(values: list[int]) -> str:
    """Format the median and the 90th percentile."""
    return f"{median(values):.0f}/{sorted(values)[round(0.9 * (len(values) - 1))]}"


def main() -> None:
    """Print the figures of the code and of the tests."""
    code, tests = sources(*CODE), sources("tests")
    found = list(functions(code))
    lines = [text.count("\n") for text in code]
    comments = sum(line.lstrip().startswith("#") for text in code for line in text.splitlines())
    named = [(node, text) for node, text in functions(tests) if node.name.startswith("test_")]
    print(f"file lines {spread(lines)}")
    print(f"function lines {spread([length(*each) for each in found])}")
    print(f"parameters p90 {spread([parameters(node) for node, _ in found]).partition('/')[2]}")
    print(f"comment lines in 100: {100 * comments / sum(lines):.1f}")
    print(f"test:code {sum(text.count(chr(10)) for text in tests) / sum(lines):.2f}")
    print(f"{len(named)} tests, lines {spread([length(*each) for each in named])}")
    for what, pattern, wanted in (("no assert", ASSERTS, False), ("sleeps", SLEEPS, True)):
        share = sum(bool(pattern.search(text)) is wanted for _, text in named) / len(named)
        print(f"{what}: {100 * share:.1f} %")
    print(f"{sum(lines):,} lines of code, {sum(text.count(chr(10)) for text in tests):,} of tests")


if __name__ == "__main__":
    main()
