"""Adds the pages that docs/ lacks: the first page from README, the runbooks, the API from openapi.json, the list of decisions.

mkdocs loads this module (`hooks` in mkdocs.yml).
"""

import json
import re
from os.path import relpath
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
RUNBOOKS = "deploy/runbooks"
# A Markdown link to a file, with its text.
LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and the runbooks."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, content in (
        ("index.md", re.sub(r'(src|srcset)="docs/', r'\1="', readme)),
        ("api.md", api_page()),
        ("decisions/index.md", decisions_page()),
    ):
        files.append(File.generated(config, name, content=content))
    for path in sorted((ROOT / RUNBOOKS).glob("*.md")):
        name = f"{RUNBOOKS}/{path.name}"
        # A folder with the file's name: so an alert's `runbook_url` leads to the page in the repository and on the site.
        files.append(
            File(name, str(ROOT), config.site_dir, use_directory_urls=False, dest_uri=f"{name}/index.html")
        )
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links between the repository's files into links between pages; of a file that is no page, name the path."""
    here = page.file.src_uri
    folder = _in_repository(here).parent

    def between_pages(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        name = _on_site(target)
        if name is None:
            return f"{link[1]} (`{target.relative_to(ROOT)}`)"
        return f"[{link[1]}]({relpath(name, Path(here).parent)}{link[3] or ''})"

    return LINK.sub(between_pages, markdown)


def _in_repository(name: str) -> Path:
    if name == "index.md":
        return ROOT / "README.md"
    return ROOT / name if name.startswith(RUNBOOKS) else ROOT / "docs" / name


def _on_site(path: Path) -> str | None:
    if path == ROOT / "README.md":
        return "index.md"
    if path.is_relative_to(ROOT / "docs"):
        return str(path.relative_to(ROOT / "docs"))
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT / RUNBOOKS) else None


def decisions_page() -> str:
    """List the decisions, one per line."""
    lines = [
        "# Decisions",
        "",
        "Each page gives a decision, its reasons, and the rejected alternatives with their numbers.",
        "",
    ]
    for path in sorted((ROOT / "docs" / "decisions").glob("0*.md")):
        title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        lines.append(f"- [{title}]({path.name})")
    return "\n".join(lines)


def api_page() -> str:
    """Format each operation and schema of openapi.json as a table."""
    document = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
    lines = [
        "# API",
        "",
        "This page is generated from [openapi.json](openapi.json). A running service serves it too, with `/docs` to try it out.",
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
            description = value.get("description", "") + ("" if field in required else " *Optional.*")
            lines.append(f"| `{field}` | {_type(value)} | {description} |")
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
