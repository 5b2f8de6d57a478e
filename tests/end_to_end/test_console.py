"""The console works in a real Chromium, with a real service."""

import asyncio

import httpx
import pytest
from playwright.async_api import Page, Route, expect

from tests.end_to_end.replicas import ADMIN_KEY, OTHER_ADMIN_KEY, PAIR, SCORE_KEY, Replicas

pytestmark = [pytest.mark.engine, pytest.mark.redis, pytest.mark.browser, pytest.mark.timeout(1800)]

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.fixture
async def page(replicas: Replicas, browser_page: Page) -> Page:
    """Open the console of the first replica, with the mode off."""
    await asyncio.to_thread(replicas.flip, "off")
    await browser_page.goto(f"{replicas.processes[0].url}/console")
    return browser_page


async def use_key(page: Page, key: str) -> None:
    await page.get_by_label("Key").fill(key)
    await page.get_by_role("button", name="Use").click()
    if key == ADMIN_KEY:  # until the page has read the mode, a flip is refused
        await expect(page.locator("#mode")).not_to_have_text("unknown")


async def flip(page: Page, mode: str, reason: str, minutes: str = "30", share: str = "1") -> None:
    await page.get_by_role("radio", name=mode, exact=True).check()
    if mode != "off":
        await page.get_by_label("Minutes").fill(minutes)
    if mode == "sample":
        await page.get_by_label("Share").fill(share)
    await page.get_by_label("Reason").fill(reason)
    await page.get_by_role("button", name="Set").click()


async def turn_on_explanations(page: Page) -> None:
    await use_key(page, ADMIN_KEY)
    await flip(page, "on request", "to try a pair")
    await expect(page.locator("#mode")).to_have_text("on request")


async def explain(page: Page, query: str, note: str, title: str = "") -> None:
    await page.get_by_label("Query").fill(query)
    await page.get_by_label("Title").fill(title)
    await page.get_by_label("Text of the note").fill(note)
    await page.get_by_role("button", name="Score and explain").click()


async def test_a_flip_counts_down_and_shows_who_made_it(page: Page) -> None:
    await use_key(page, ADMIN_KEY)
    await expect(page.locator("#mode")).to_have_text("off")
    await flip(page, "on request", "a note ranks high")
    await expect(page.locator("#flip-result")).to_have_text("The mode is now on request.")
    await expect(page.locator("#mode")).to_have_text("on request")
    await expect(page.locator("#countdown")).to_contain_text("00:29:5")
    await expect(page.locator("#last-flip")).to_contain_text("by ann: a note ranks high")
    await expect(page.locator("#history tbody tr").first).to_contain_text("a note ranks high")
    await expect(page.locator("#readiness")).to_have_text("ready")
    await flip(page, "off", "seen enough")
    await expect(page.locator("#mode")).to_have_text("off")


async def test_fields_of_another_mode_do_not_stop_a_flip(page: Page) -> None:
    await use_key(page, ADMIN_KEY)
    await page.get_by_role("radio", name="sample", exact=True).check()
    await page.get_by_label("Minutes").fill("0")
    await page.get_by_label("Share").fill("7000")
    await flip(page, "off", "typed nonsense first")
    await expect(page.locator("#last-flip")).to_contain_text("by ann: typed nonsense first")


async def test_the_rate_of_samples_is_a_plain_number(page: Page) -> None:
    await use_key(page, ADMIN_KEY)
    await flip(page, "sample", "a share", share="7")
    await expect(page.locator("#mode")).to_have_text("sample 7%")


async def test_the_countdown_reaches_zero_and_the_mode_is_off(page: Page) -> None:
    await use_key(page, ADMIN_KEY)
    await flip(page, "all", "for a moment", minutes="0.2")
    await expect(page.locator("#mode")).to_have_text("all")
    await expect(page.locator("#countdown")).to_contain_text("00:00:0")
    await expect(page.locator("#countdown")).to_have_text("expired")
    await expect(page.locator("#mode")).to_have_text("off")


async def test_somebody_else_s_flip_is_not_overwritten(page: Page, replicas: Replicas) -> None:
    await use_key(page, ADMIN_KEY)
    await expect(page.locator("#mode")).to_have_text("off")
    await page.get_by_label("Reason").fill("mine")

    def flip_as_bob() -> httpx.Response:
        mode = replicas.mode()
        return httpx.put(
            f"{replicas.processes[1].url}/admin/explanation-mode",
            json={"mode": "all", "ttl_s": 60, "reason": "his"},
            headers={"If-Match": mode["etag"], "Authorization": f"Bearer {OTHER_ADMIN_KEY}"},
        )

    assert (await asyncio.to_thread(flip_as_bob)).status_code == 200
    await expect(page.locator("#mode")).to_have_text("all")
    await page.get_by_role("button", name="Set").click()
    await expect(page.locator("#flip-result")).to_contain_text("Not changed")
    await expect(page.locator("#flip-result")).to_contain_text("by bob")
    await expect(page.locator("#mode")).to_have_text("all")
    # By now the page shows the other flip: the second click overwrites it knowingly.
    await page.get_by_role("button", name="Set").click()
    await expect(page.locator("#mode")).to_have_text("on request")


async def test_a_trace_is_streamed_into_the_page(page: Page) -> None:
    await turn_on_explanations(page)
    await explain(page, PAIR["query"], PAIR["body"], PAIR["title"])
    await expect(page.locator("#try-result")).to_contain_text("Grade")
    await expect(page.locator("#trace")).to_contain_text("=>")
    await expect(page.locator("#steps tbody tr").first).to_be_visible()
    await expect(page.locator("#checks li")).to_have_count(3)


async def test_a_pair_is_graded_by_the_chosen_criteria(page: Page) -> None:
    async def add_criteria(route: Route) -> None:
        response = await route.fetch()
        version = await response.json()
        version["model"]["criteria"].append("other-1")
        await route.fulfill(response=response, json=version)

    await page.route("**/version", add_criteria)
    await page.reload()
    await turn_on_explanations(page)
    criteria = page.get_by_label("Criteria")
    await expect(criteria).to_have_value("synthetic-1")
    await explain(page, PAIR["query"], PAIR["body"])
    await expect(page.locator("#try-result")).to_contain_text("(criteria synthetic-1)")
    await criteria.select_option("other-1")
    await page.get_by_role("button", name="Score and explain").click()
    await expect(page.locator("#try-result")).to_contain_text("no such criteria; it has synthetic-1")


async def test_hostile_text_stays_text(page: Page) -> None:
    await use_key(page, ADMIN_KEY)
    await flip(page, "on request", HOSTILE)
    await expect(page.locator("#last-flip")).to_contain_text("<img src=x")
    await expect(page.locator("#history tbody tr").first).to_contain_text("<script>")
    await explain(page, "<script>document.title='owned'</script>", HOSTILE, HOSTILE)
    await expect(page.locator("#try-result")).to_contain_text("Grade")
    await expect(page.locator("#checks li").first).to_be_visible()
    assert await page.title() == "Notegrade console"
    assert await page.locator("main img, main script").count() == 0


async def test_without_an_admin_key_nothing_is_shown_or_flipped(page: Page) -> None:
    await expect(page.locator("#problem")).to_contain_text("enter an admin key")
    await use_key(page, "mistyped")
    await expect(page.locator("#problem")).to_contain_text("this key is not known here")
    await use_key(page, SCORE_KEY)
    await expect(page.locator("#problem")).to_contain_text("role admin")
    await flip(page, "all", "let me")
    refused = "Not changed: this needs a key with the role admin"
    await expect(page.locator("#flip-result")).to_contain_text(refused)
    await expect(page.locator("#mode")).to_have_text("unknown")


async def test_foreign_scripts_do_not_run(page: Page, replicas: Replicas, complaints: list[str]) -> None:
    response = await page.request.get(f"{replicas.processes[0].url}/console")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    ran = await page.evaluate(
        """() => new Promise((resolve) => {
            document.addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
            const script = document.createElement("script");
            try { script.text = "document.title = 'owned'"; document.body.append(script); } catch { resolve("trusted-types"); }
        })"""
    )
    assert ran in ("script-src-elem", "trusted-types", "require-trusted-types-for")
    assert complaints
    complaints.clear()
    assert await page.title() == "Notegrade console"


async def test_the_console_works_with_the_keyboard_alone(page: Page) -> None:
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.className") == "skip"
    await page.keyboard.press("Tab")
    await page.keyboard.type(ADMIN_KEY)
    await page.keyboard.press("Enter")
    await expect(page.locator("#mode")).to_have_text("off")
    for _ in range(2):
        await page.keyboard.press("Tab")
    await page.keyboard.press("ArrowRight")  # from "on request" to "sample"
    await page.keyboard.press("ArrowRight")  # to "all"
    for text in ("5", "by keyboard"):
        await page.keyboard.press("Tab")
        await page.keyboard.press("Control+a")
        await page.keyboard.type(text)
    await page.keyboard.press("Enter")
    await expect(page.locator("#mode")).to_have_text("all")
    unnamed = await page.evaluate(
        "[...document.querySelectorAll('input, textarea, button')].filter(e => !(e.labels?.length || e.textContent.trim())).length"
    )
    assert unnamed == 0
