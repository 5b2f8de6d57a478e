"""Makes the README's pictures of the console, with the default checkpoint. `make pictures` refreshes the committed ones."""

import asyncio
import hashlib
from collections.abc import Mapping
from io import BytesIO
from random import Random

import httpx
import pytest
from PIL import Image
from playwright.async_api import FloatRect, Page, expect

from model_export.evaluation.failures import read_cases
from tests.end_to_end.service_process import ServiceProcess
from tests.processes import ROOT, output_of

# make copies them from here to docs/images.
SCREENSHOTS = ROOT / "runs" / "screenshots"
IMAGES = ROOT / "docs" / "images"
PICTURES = {"wide": (1280, 900), "phone": (390, 844)}
PAIR = {
    "Query": "night trains to vienna",
    "Title of the note": "Day trains",
    "Text of the note": "A list of day trains in Austria, with times.",
}
# One of the project's own pairs for each criteria, drawn once: the pictures show what explanations are like, good or bad.
CRITERIA = ("product-2", "substitute-1", "passage-1", "forum-1", "comment-1")
DRAWN = {name: Random(name).choice([case.pair for case in read_cases([name])]) for name in CRITERIA}


def score_some(service: ServiceProcess) -> None:
    """Send requests, so that the page has figures to show."""
    for query in ("quiet cafes", "night trains", "surf beaches", "quiet cafes"):
        body = {"query": query, "notes": [{"id": "n", "body": "A quiet cafe."}], "deadline_ms": 60_000}
        httpx.post(f"{service.url}/score", json=body, timeout=90).raise_for_status()


@pytest.mark.engine
@pytest.mark.redis
@pytest.mark.browser
@pytest.mark.timeout(900)
async def test_the_console_has_its_pictures_taken(browser_page: Page, service: ServiceProcess) -> None:
    await turn_on(service)
    await browser_page.goto(f"{service.url}/console")
    await expect(browser_page.get_by_label("Criteria")).to_have_value("product-2")
    await explain(browser_page, PAIR)
    await asyncio.to_thread(score_some, service)
    await expect(browser_page.locator("#plots strong").first).not_to_contain_text("–")
    await browser_page.evaluate("document.activeElement.blur()")
    for name, (width, height) in PICTURES.items():
        await browser_page.set_viewport_size({"width": width, "height": height})
        shown = await browser_page.locator("#try" if name == "phone" else "body").bounding_box()
        assert shown
        part = FloatRect(x=0, y=max(0, shown["y"] - 16), width=width, height=shown["height"] + 32)
        for scheme in ("light", "dark"):
            await browser_page.emulate_media(color_scheme=scheme)
            save(await browser_page.screenshot(full_page=True, clip=part), f"console-{name}-{scheme}")


@pytest.mark.engine
@pytest.mark.redis
@pytest.mark.browser
@pytest.mark.timeout(900)
async def test_an_explanation_under_each_criteria_has_its_picture_taken(
    browser_page: Page, service: ServiceProcess
) -> None:
    await turn_on(service)
    await browser_page.goto(f"{service.url}/console")
    await browser_page.set_viewport_size({"width": 900, "height": 900})
    for criteria, pair in DRAWN.items():
        await browser_page.get_by_label("Criteria").select_option(criteria)
        texts = (pair.query, pair.note.title, pair.note.body)
        await explain(browser_page, dict(zip(PAIR, texts, strict=True)))
        save(await browser_page.locator("#try").screenshot(), f"trace-{criteria}")


async def turn_on(service: ServiceProcess) -> None:
    mode = ("on_request", "--url", service.url, "--ttl", "30m", "--reason", "note 4711 ranks too high")
    await asyncio.to_thread(output_of, ROOT / ".venv" / "bin" / "notegrade", "mode", *mode)


async def explain(page: Page, texts: Mapping[str, str]) -> None:
    """Fill in the fields, ask, and wait for the explanation."""
    for field, text in texts.items():
        await page.get_by_label(field).fill(text)
    await page.get_by_role("button", name="Score and explain").click()
    await expect(page.locator("#checks li").first).to_be_visible(timeout=600_000)


def save(taken: bytes, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    # A palette makes the file a third as large, with no visible difference.
    small = Image.open(BytesIO(taken)).quantize(256, dither=Image.Dither.NONE)
    small.save(SCREENSHOTS / f"{name}.png", optimize=True)


def test_the_committed_pictures_show_the_page_as_it_is() -> None:
    """console.sha256 names the page's files and the pictures taken of them: after a change of either, run `make pictures`."""
    recorded = dict(line.split()[::-1] for line in (IMAGES / "console.sha256").read_text().splitlines())
    page = [
        path for path in (ROOT / "service/http/console").iterdir() if path.suffix in (".html", ".css", ".js")
    ]
    files = [*page, *IMAGES.glob("console-*.png"), *IMAGES.glob("trace-*.png")]
    found = {str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert recorded == found
    assert len(found) == len(page) + 2 * len(PICTURES) + len(CRITERIA)


def test_the_readme_shows_small_pictures() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for picture in IMAGES.glob("console-*.png"):
        with Image.open(picture) as opened:
            assert opened.width == PICTURES[picture.stem.split("-")[1]][0]
        assert picture.stat().st_size < 150_000
        assert f'="docs/images/{picture.name}"' in readme
