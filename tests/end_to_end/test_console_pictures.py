"""Makes the README's pictures of the console, with the default checkpoint. `make pictures` refreshes the committed ones."""

import asyncio
import hashlib
from io import BytesIO

import httpx
import pytest
from PIL import Image
from playwright.async_api import FloatRect, Page, expect

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
    turn_on = (
        "mode",
        "on_request",
        "--url",
        service.url,
        "--ttl",
        "30m",
        "--reason",
        "note 4711 ranks too high",
    )
    await asyncio.to_thread(output_of, ROOT / ".venv" / "bin" / "notegrade", *turn_on)
    await browser_page.goto(f"{service.url}/console")
    await expect(browser_page.get_by_label("Criteria")).to_have_value("product-2")
    for field, text in PAIR.items():
        await browser_page.get_by_label(field).fill(text)
    await browser_page.get_by_role("button", name="Score and explain").click()
    await expect(browser_page.locator("#checks li").first).to_be_visible(timeout=600_000)
    await asyncio.to_thread(score_some, service)
    await expect(browser_page.locator("#plots strong").first).not_to_contain_text("–")
    await browser_page.evaluate("document.activeElement.blur()")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for name, (width, height) in PICTURES.items():
        await browser_page.set_viewport_size({"width": width, "height": height})
        shown = await browser_page.locator("#try" if name == "phone" else "body").bounding_box()
        assert shown
        part = FloatRect(x=0, y=max(0, shown["y"] - 16), width=width, height=shown["height"] + 32)
        for scheme in ("light", "dark"):
            await browser_page.emulate_media(color_scheme=scheme)
            taken = await browser_page.screenshot(full_page=True, clip=part)
            # A palette makes the file a third as large, with no visible difference.
            small = Image.open(BytesIO(taken)).quantize(256, dither=Image.Dither.NONE)
            small.save(SCREENSHOTS / f"console-{name}-{scheme}.png", optimize=True)


def test_the_committed_pictures_show_the_page_as_it_is() -> None:
    """console.sha256 names the page's files and the pictures taken of them: after a change of either, run `make pictures`."""
    recorded = dict(line.split()[::-1] for line in (IMAGES / "console.sha256").read_text().splitlines())
    page = [
        path for path in (ROOT / "service/http/console").iterdir() if path.suffix in (".html", ".css", ".js")
    ]
    files = [*page, *IMAGES.glob("console-*.png")]
    found = {str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert recorded == found
    assert len(found) == len(page) + 2 * len(PICTURES)


def test_the_readme_shows_small_pictures() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for picture in IMAGES.glob("console-*.png"):
        with Image.open(picture) as opened:
            assert opened.width == PICTURES[picture.stem.split("-")[1]][0]
        assert picture.stat().st_size < 150_000
        assert f'="docs/images/{picture.name}"' in readme
