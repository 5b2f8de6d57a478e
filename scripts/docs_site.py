"""What mkdocs can't take from docs/ as it lies there: README as the first page, the API from openapi.json, the list of decisions.

Loaded by mkdocs (`hooks` in mkdocs.yml).
"""

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
# A link in Markdown to a file, with its words.
LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    for name, content in (
        ("index.md", first_page()),
        ("api.md", api_page()),
        ("decisions/index.md", decisions_page()),
    ):
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Leave of links to what is not in docs/ the words and the path."""
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def told(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        is_here = target.is_relative_to(ROOT / "docs")
        return link[0] if is_here else f"{link[1]} (`{target.relative_to(ROOT)}`)"

    return LINK.sub(told, markdown)


def first_page() -> str:
    """README, with its links as seen from docs/."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace('src="docs/', 'src="')

    def seen(link: re.Match[str]) -> str:
        path = link[2].removeprefix("docs/") if link[2].startswith("docs/") else f"../{link[2]}"
        return f"[{link[1]}]({path}{link[3] or ''})"

    return LINK.sub(seen, text)


def decisions_page() -> str:
    """A line for each decision."""
    lines = ["# Decisions", "", "What was decided, and what was rejected with its numbers.", ""]
    for path in sorted((ROOT / "docs" / "decisions").glob("0*.md")):
        title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        lines.append(f"- [{title}]({path.name})")
    return "\n".join(lines)


def api_page() -> str:
    """Each operation and each schema of openapi.json, as tables."""
    document = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
    lines = [
        "# API",
        "",
        "From [openapi.json](openapi.json), which a running service serves too, with `/docs` to try it out.",
        "",
        document["info"]["description"],
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            lines += ["", f"## `{method.upper()} {path}`", "", operation["summary"]]
            body = (
                operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            )
            if body:
                lines += ["", f"Takes {_type(body)}."]
            lines += ["", "| status | |", "| --- | --- |"]
            for status, response in operation["responses"].items():
                content = response.get("content", {})
                kinds = [_type(each["schema"]) for each in content.values() if each.get("schema")]
                lines.append(f"| {status} | {response['description']} {' or '.join(kinds)} |")
    lines += ["", "## Schemas"]
    for name, schema in sorted(document["components"]["schemas"].items()):
        lines += [
            "",
            f"### {name}",
            "",
            schema.get("description", ""),
            "",
            "| field | type | |",
            "| --- | --- | --- |",
        ]
        required = set(schema.get("required", ()))
        for field, value in schema.get("properties", {}).items():
            told = value.get("description", "") + ("" if field in required else " *Optional.*")
            lines.append(f"| `{field}` | {_type(value)} | {told} |")
    return "\n".join(lines)


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_type(choice) for choice in choices)
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "any"))
