"""The console says in plain words what a score and an explanation are worth. A fake engine writes the traces."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from playwright.async_api import Locator, Page, Route, expect

from service.contract.prompt import Note
from service.contract.text import canonicalize
from tests.checkpoints import explained_by, load_tiny
from tests.served import Served, served

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

QUERY, TITLE, BODY = "quiet cafes", "Cafes of Lisbon", "A quiet  cafe near\nGraça, with sockets (good light)."
FINDINGS = ('query "cafes"', 'title "cafes of", body "Quiet cafe"', 'body "near Graça"')
STEPS = {"asked": "What the query asks for", "for": "For the note", "against": "Against the note"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    criteria = [{"name": "general-1", "text": "Grade the note.", "steps": list(STEPS)}]
    checkpoint = load_tiny(tmp_path_factory.mktemp("checkpoint"), criteria=criteria)
    with served(
        checkpoint, guard_p99_ms=600_000, explanation_wait_s=120, explanation_max_tokens=400
    ) as service:
        yield service


def set_mode(service: Served, mode: str) -> None:
    with httpx.Client(base_url=service.url) as client:
        etag = client.get("/admin/explanation-mode").headers["etag"]
        change = {"mode": mode, "reason": "a test", **({} if mode == "off" else {"ttl_s": 600})}
        client.put("/admin/explanation-mode", json=change, headers={"If-Match": etag}).raise_for_status()


def write_trace(service: Served, text: str) -> None:
    service.engine.trace = service.stack.checkpoint.tokenizer.encode_user_texts([text])[0].token_ids


def steps(findings: tuple[str, ...], last_grade: int) -> str:
    grades = (3, 3, last_grade)
    lines = zip(STEPS, findings, grades, strict=True)
    return "".join(f"{name}: {finding} => {grade}\n" for name, finding, grade in lines)


async def explain(
    page: Page, service: Served, body: str = BODY, title: str = TITLE, query: str = QUERY
) -> None:
    await page.goto(f"{service.url}/console")
    await expect(page.get_by_label("Criteria")).to_have_value("general-1")
    await page.get_by_label("Query").fill(query)
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

    findings: tuple[str, str, str]
    grade_change: int
    worth: str
    truth: str


UNTRUE = "This explanation is not true. Do not rely on it."
FALSE = ('query "cafes"', 'title "quiet"', 'missing "quiet"')
CASES = [
    Case(FINDINGS, 0, "passes all checks", "good: True: every quoted text is where it says"),
    Case(FINDINGS, 1, "Do not rely on this explanation.", "good: True:"),
    Case((*FINDINGS[:2], "nothing"), 0, "Read this explanation with care.", "good: True:"),
    Case(FALSE, 0, UNTRUE, "bad: Not true: 2 of its 3 quotes are wrong"),
    Case(
        ("about <b>cafes</b>", "title has cafes", "nothing"),
        0,
        "Read this explanation with care.",
        "unsure: It quotes nothing, so it can't be checked.",
    ),
]


async def test_a_well_formed_explanation_is_judged(browser_page: Page, service: Served) -> None:
    set_mode(service, "on_request")
    grade = await asyncio.to_thread(served_grade, service)
    assert grade < 3, "no step of the traces lets the grade fall"
    for case in CASES:
        last = (grade + case.grade_change) % 4
        write_trace(service, steps(case.findings, last))
        await explain(browser_page, service)
        await expect(browser_page.locator("#worth")).to_contain_text(case.worth)
        form, truth, agreement, *fall = await marks(browser_page.locator("#checks li"))
        is_unexplained = case.truth.startswith("good") and case.findings[-1] == "nothing"
        incomplete = f"unsure: Incomplete: the grade falls from 3 to {last} at a step that quotes nothing."
        assert fall == [incomplete] * is_unexplained
        assert form == "good: Well-formed: it has all its steps."
        assert truth.startswith(case.truth)
        disagrees = f"bad: Disagrees: it ends on grade {last}, not on {grade}."
        agrees = f"good: Agrees: it ends on grade {last}, the grade above."
        assert agreement.startswith(disagrees if case.grade_change else agrees)
        assert await browser_page.locator("#raw").get_attribute("open") is None
        assert await browser_page.locator("#cited").is_visible() == (case is not CASES[-1])
        cells = await browser_page.locator("#steps td").all_inner_texts()
        assert cells[::3] == list(STEPS.values())
        if case.findings != FALSE:
            assert cells[1::3] == list(case.findings)


async def test_cited_words_are_marked_in_the_query_and_the_note(browser_page: Page, service: Served) -> None:
    set_mode(service, "on_request")
    for_note = 'title "BY the", body "(good light)", body "東京"'
    write_trace(service, steps(('query "cafes to"', for_note, 'missing "work decaf"'), 1))
    query = "decaf in cafes to work"
    body = "Of 東京都: A<b>B</b> [good]\n(Good  light)."
    await explain(browser_page, service, body, "Standby by  the sea", query)
    await expect(browser_page.locator("#cited")).to_be_visible()
    marked = ["missing: decaf", "found: cafes to", "missing: work"]
    assert await cited(browser_page, "query") == (query, marked)
    assert await cited(browser_page, "title") == ("Standby by the sea", ["found: by the"])
    shown = "Of 東京都: A<b>B</b> [good] (Good light)."
    assert await cited(browser_page, "body") == (shown, ["found: 東京", "found: (Good light)"])
    assert await browser_page.locator("#steps del").count() == 0
    assert await browser_page.locator("#steps mark").all_inner_texts() == [
        "cafes to", "BY the", "(good light)", "東京", "work decaf",
    ]  # fmt: skip


async def test_citations_that_are_not_true_are_struck_out(browser_page: Page, service: Served) -> None:
    set_mode(service, "on_request")
    asked, for_note = 'query "cafe" and query "cafes"', 'title "<img src=x>", body "quiet"'
    write_trace(service, steps((asked, for_note, 'missing "quiet cafes"'), 1))
    await explain(browser_page, service)
    found = browser_page.locator("#steps td:nth-child(2)")
    await expect(found).to_have_text([
        'query "cafe" (not true: it is not in the query) and query "cafes"',
        'title "<img src=x>" (not true: it is not in the title), body "quiet"',
        'missing "quiet cafes" (not true: a word of it is in the note, or not in the query)',
    ])  # fmt: skip
    struck = await browser_page.locator("#steps del").all_inner_texts()
    assert struck == ["cafe", "<img src=x>", "quiet cafes"]
    assert await cited(browser_page, "query") == (QUERY, ["found: cafes"])
    assert await cited(browser_page, "title") == (TITLE, [])
    await explain(browser_page, service, title="")
    await expect(browser_page.locator("#cited-title")).to_be_empty()


async def cited(page: Page, field: str) -> tuple[str, list[str]]:
    """Return the field's text as it is shown, and what is marked in it."""
    shown = page.locator(f"#cited-{field}")
    marked = [
        f"{await mark.get_attribute('class')}: {await mark.text_content()}"
        for mark in await shown.locator("mark").all()
    ]
    return (await shown.text_content() or "", marked)


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
    [prompt] = checkpoint.renderer.render(QUERY, [Note(TITLE, canonicalize(BODY))], "general-1")
    service.engine.fail_on(explained_by(checkpoint, prompt, grade))
    write_trace(service, steps(FINDINGS, grade))
    await explain(browser_page, service)
    await expect(browser_page.locator("#worth")).to_have_text(
        "No explanation: it failed, and the log says why."
    )


async def test_an_answer_that_breaks_off_leaves_the_score(browser_page: Page, service: Served) -> None:
    async def break_off(route: Route) -> None:
        score = {"grade": 2, "score": 0.5, "distribution": [0, 0, 1, 0], "label_mass": 1, "truncated": False}
        event = f"event: score\ndata: {json.dumps({**score, 'criteria': 'general-1'})}\n\n"
        await route.fulfill(body=event, content_type="text/event-stream")

    await browser_page.route("**/explain", break_off)
    await explain(browser_page, service)
    await expect(browser_page.locator("#worth")).to_contain_text("the answer broke off")
    await expect(browser_page.locator("#try-result")).to_contain_text("Grade 2, score 0.500")
    await browser_page.unroute("**/explain")


async def test_while_the_mode_is_off_the_page_says_what_to_do(browser_page: Page, service: Served) -> None:
    set_mode(service, "off")
    await explain(browser_page, service)
    await expect(browser_page.locator("#needs-mode")).to_be_visible()
    await expect(browser_page.locator("#try-result")).to_have_text("Not scored.")
    await expect(browser_page.locator("#worth")).to_have_text("")


async def test_nothing_is_wider_than_the_page(browser_page: Page, service: Served) -> None:
    set_mode(service, "on_request")
    write_trace(service, steps((FINDINGS[0], f'body "{"W" * 250}"', f'missing "{"W" * 40}"'), 1))
    await explain(browser_page, service, title="W" * 120, body="W" * 500)
    await expect(browser_page.locator("#checks li")).to_have_count(3)
    await expect(browser_page.locator("#cited")).to_be_visible()
    for width in (320, 390, 768, 1280):
        await browser_page.set_viewport_size({"width": width, "height": 800})
        assert await browser_page.evaluate("document.documentElement.scrollWidth") == width
