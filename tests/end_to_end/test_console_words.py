"""The console says in plain words what a score and an explanation are worth. A fake engine writes the traces."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from playwright.async_api import Locator, Page, expect

from service.contract.checkpoint import Checkpoint
from service.contract.prompt import Note
from tests.served import Served, served

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

QUERY, TITLE, BODY = "quiet cafes", "Cafes of Lisbon", "A quiet cafe near Graça, with sockets and good light."
FINDINGS = ("title has cafes", "little to read")


@pytest.fixture(scope="module")
def service(checkpoint: Checkpoint) -> Iterator[Served]:
    with served(checkpoint, guard_p99_ms=600_000, explanation_wait_s=120) as service:
        yield service


def set_mode(service: Served, mode: str) -> None:
    with httpx.Client(base_url=service.url) as client:
        etag = client.get("/admin/explanation-mode").headers["etag"]
        change = {"mode": mode, "reason": "a test", **({} if mode == "off" else {"ttl_s": 600})}
        client.put("/admin/explanation-mode", json=change, headers={"If-Match": etag}).raise_for_status()


def write_trace(service: Served, text: str) -> None:
    service.engine.trace = service.stack.checkpoint.tokenizer.encode_user_texts([text])[0].token_ids


def steps(findings: tuple[str, str], last_grade: int) -> str:
    return f"\nSteps:\ntopic: {findings[0]} => 3\nconstraints: {findings[1]} => {last_grade}\n"


async def explain(page: Page, service: Served, body: str = BODY, title: str = TITLE) -> None:
    await page.goto(f"{service.url}/console")
    await expect(page.get_by_label("Criteria")).to_have_value("general-1")
    await page.get_by_label("Query").fill(QUERY)
    await page.get_by_label("Title of the note").fill(title)
    await page.get_by_label("Text of the note").fill(body)
    await page.get_by_role("button", name="Score and explain").click()


def served_grade(service: Served) -> int:
    note = {"id": "n", "title": TITLE, "body": BODY}
    answer = httpx.post(
        f"{service.url}/score", json={"query": QUERY, "notes": [note], "deadline_ms": 60_000}
    ).json()
    grade: int = answer["results"][0]["grade"]
    return grade


async def marks(checks: Locator) -> list[str]:
    await expect(checks.first).to_be_visible()
    return [f"{await item.get_attribute('class')}: {await item.inner_text()}" for item in await checks.all()]


@dataclass(frozen=True)
class Case:
    """Findings, how far the last grade is from the served one, and what the page then says."""

    findings: tuple[str, str]
    grade_change: int
    worth: str
    truth: str
    column: list[str]


CASES = [
    Case(FINDINGS, 0, "passes all checks", "good: True:", ["yes", "yes"]),
    Case(FINDINGS, 1, "Do not rely", "good: True:", ["yes", "yes"]),
    Case(("title has quiet", "much to read"), 0, "Do not rely", "bad: Not true: 2 of 2", ["NO", "NO"]),
    Case(
        ("about <b>cafes</b>", "little to read"),
        0,
        "with care",
        "unsure: Perhaps not true: 1 of 2",
        ["?", "yes"],
    ),
]


async def test_a_well_formed_explanation_is_judged(browser_page: Page, service: Served) -> None:
    set_mode(service, "on_request")
    grade = await asyncio.to_thread(served_grade, service)
    for case in CASES:
        last = (grade + case.grade_change) % 4
        write_trace(service, steps(case.findings, last))
        await explain(browser_page, service)
        await expect(browser_page.locator("#worth")).to_contain_text(case.worth)
        form, truth, agreement = await marks(browser_page.locator("#checks li"))
        assert form == "good: Well-formed: it has all its steps."
        assert truth.startswith(case.truth)
        disagrees = f"bad: Disagrees: it ends on grade {last}, not on {grade}."
        agrees = f"good: Agrees: it ends on grade {last}, the grade above."
        assert agreement.startswith(disagrees if case.grade_change else agrees)
        cells = browser_page.locator("#steps td")
        assert (await cells.all_inner_texts())[1::4] == list(case.findings)
        assert (await cells.all_inner_texts())[2::4] == case.column
        assert await browser_page.locator("#raw").get_attribute("open") is None


async def test_a_malformed_explanation_is_shown_as_it_is(browser_page: Page, service: Served) -> None:
    set_mode(service, "on_request")
    write_trace(service, "the note <img src=x> is about cafes")
    await explain(browser_page, service)
    await expect(browser_page.locator("#worth")).to_have_text("Do not rely on this explanation.")
    [form] = await marks(browser_page.locator("#checks li"))
    assert form.startswith("bad: Not well-formed")
    await expect(browser_page.locator("#steps")).to_be_hidden()
    await expect(browser_page.locator("#trace")).to_be_visible()
    await expect(browser_page.locator("#trace")).to_have_text("the note <img src=x> is about cafes")


async def test_a_note_whose_end_was_not_read_is_marked(browser_page: Page, service: Served) -> None:
    set_mode(service, "on_request")
    await explain(browser_page, service, body="a cafe " * 200)
    await expect(browser_page.locator("#score-notes .bad")).to_contain_text(["has not read its end"])


async def test_an_engine_that_fails_is_named(browser_page: Page, service: Served) -> None:
    set_mode(service, "on_request")
    checkpoint = service.stack.checkpoint
    grade = await asyncio.to_thread(served_grade, service)
    [prompt] = checkpoint.renderer.render(QUERY, [Note(TITLE, BODY)], "general-1")
    service.engine.fail_on((*prompt.token_ids, checkpoint.manifest.label_token_ids[grade]))
    write_trace(service, steps(FINDINGS, grade))
    await explain(browser_page, service)
    await expect(browser_page.locator("#worth")).to_have_text(
        "No explanation: it failed, and the log says why."
    )


async def test_while_the_mode_is_off_the_page_says_what_to_do(browser_page: Page, service: Served) -> None:
    set_mode(service, "off")
    await explain(browser_page, service)
    await expect(browser_page.locator("#needs-mode")).to_be_visible()
    await expect(browser_page.locator("#try-result")).to_have_text("Not scored.")
    await expect(browser_page.locator("#worth")).to_have_text("")


async def test_nothing_is_wider_than_the_page(browser_page: Page, service: Served) -> None:
    set_mode(service, "on_request")
    write_trace(service, steps(FINDINGS, 1))
    await explain(browser_page, service, title="W" * 120, body="W" * 500)
    await expect(browser_page.locator("#checks li")).to_have_count(3)
    for width in (320, 390, 768, 1280):
        await browser_page.set_viewport_size({"width": width, "height": 800})
        assert await browser_page.evaluate("document.documentElement.scrollWidth") == width
