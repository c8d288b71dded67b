"""The dashboard in a real Chromium: it loads, follows a gang, goes back in time, acts, and logs no errors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

import spoke
from spoke.cli.embedded import EmbeddedServer
from tests.dashboards import dashboard
from tests.fakes import FakeAgent, eventually, real_allocator
from tests.integration.agent_harness import pool_at

GPU = spoke.Resources(gpus=1)
T_S = 20
TOKEN = "a-token-that-nobody-guesses"
SHOTS = os.environ.get("SPOKE_SCREENSHOTS", "")


@pytest.fixture
def client(shared_server: EmbeddedServer, pool: str) -> Iterator[spoke.Client]:
    with (
        real_allocator(shared_server.url, pool),
        FakeAgent(shared_server.url, pool, gpus=4),
        FakeAgent(shared_server.url, pool, "n2", gpus=4),
        spoke.Client(shared_server.url, pool=pool) as client,
    ):
        yield client


@pytest.fixture
def page(
    browser: Browser, client: spoke.Client, shared_server: EmbeddedServer, pool: str, tmp_path: Path
) -> Iterator[Page]:
    """The dashboard of the pool."""
    with watched(browser, shared_server.url, pool, tmp_path) as page:
        yield page


@contextmanager
def watched(browser: Browser, url: str, pool: str, directory: Path) -> Iterator[Page]:
    """A dashboard in the browser; at the end nothing may stand in its console."""
    with dashboard(url, pool, directory, TOKEN) as address:
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.set_default_timeout(T_S * 1000)
        expect.set_options(timeout=T_S * 1000)
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(address)
        yield page
        page.close()
        assert problems == []


def test_a_live_gang_is_seen_and_the_slider_goes_back_before_it(page: Page, client: spoke.Client, pool: str) -> None:
    nodes, tickets = page.locator("#nodes tbody tr"), page.locator("#tickets tbody tr")
    expect(nodes).to_have_count(2)
    expect(page.locator("#pool")).to_have_text(pool)
    expect(tickets).to_have_count(0)
    first = client.gang_allocate(1, 2, GPU, name="train", preferred_node="n1").result(T_S)
    expect(tickets).to_have_count(1)
    expect(nodes.first.locator(".cell.c1")).to_have_count(2)
    waiting = client.gang_allocate(2, 4, GPU, name="big", timeout=300)
    expect(page.locator("#queue tbody tr")).to_contain_text("big")
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/web.png")
    slider = page.locator("#moment")
    slider.evaluate("(slider) => { slider.value = 0; slider.dispatchEvent(new Event('input')); }")
    expect(tickets).to_have_count(0)
    expect(page.locator("#live")).to_have_attribute("aria-pressed", "false")
    page.locator("#live").click()
    expect(tickets).to_have_count(1)
    first.release().result(T_S)
    expect(tickets.first).to_contain_text(waiting.result(T_S).ticket_id)
    expect(page.locator("#events tbody")).to_contain_text("gang.released")


def test_a_ticket_has_a_page_with_its_explanation_and_its_release(page: Page, client: spoke.Client) -> None:
    gang = client.gang_allocate(1, 2, GPU, name="train", detached=True).result(T_S)
    page.locator("#tickets").get_by_text(gang.ticket_id).click()
    expect(page.locator("#page h2").first).to_contain_text(f"ticket {gang.ticket_id}")
    page.get_by_role("button", name="explain").click()
    expect(page.locator("#why")).to_contain_text("placed by")
    expect(page.locator("button.release")).to_have_count(0)  # the token is not given yet
    page.locator("#unlock").click()
    page.locator("#secret").fill(TOKEN)
    page.get_by_role("button", name="yes").click()
    page.locator("button.release").click()
    expect(page.locator("#question")).to_contain_text(f"Release ticket {gang.ticket_id}?")
    page.get_by_role("button", name="no").click()
    assert [ticket.ticket_id for ticket in client.status().tickets] == [gang.ticket_id]
    page.locator("button.release").click()
    page.get_by_role("button", name="yes").click()
    expect(page.locator("#told")).to_contain_text(f"{gang.ticket_id} is released")
    eventually(lambda: not client.status().tickets)
    expect(page.locator("#page")).to_contain_text("does not hold or wait")


def test_names_of_users_are_text_and_never_code(page: Page, client: spoke.Client) -> None:
    client.cordon_node("n2", "<img src=x onerror=alert(1)>").result(T_S)
    expect(page.locator("#nodes tbody")).to_contain_text("<img src=x onerror=alert(1)>")
    assert page.locator("img").count() == 0
    page.locator("#filter").fill("onerror")
    expect(page.locator("#nodes tbody tr")).to_have_count(1)


def test_a_tickets_page_shows_what_its_actors_print_as_it_comes(
    browser: Browser, shared_server: EmbeddedServer, pool: str, tmp_path: Path
) -> None:
    script = f"echo '<b>hello</b> from' $RANK; until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo goodbye from $RANK"
    with (
        real_allocator(shared_server.url, pool),
        pool_at(shared_server.url, pool, tmp_path) as agents,
        spoke.Client(shared_server.url, pool=pool) as client,
        watched(browser, shared_server.url, pool, tmp_path) as page,
    ):
        agents.start_agent("n1", gpus=2)
        gang = client.gang_allocate(1, 2, GPU, timeout=T_S).result(T_S)
        gang.launch_command(["sh", "-c", script]).result(T_S)
        page.locator("#tickets").get_by_text(gang.ticket_id).click()
        lines = page.locator("#output div")
        expect(lines).to_have_count(2)
        expect(page.locator("#output")).to_contain_text("[0] <b>hello</b> from 0")
        assert page.locator("#output b").count() == 0
        if SHOTS:
            page.screenshot(path=f"{SHOTS}/web-output.png")
        page.locator("#rank").select_option("1")
        expect(lines).to_have_count(1)
        expect(lines.first).to_have_text("<b>hello</b> from 1")
        client.cordon_node("n1", "so that the page is drawn anew").result(T_S)
        (tmp_path / "go").touch()
        expect(lines).to_have_count(2)
        expect(lines.last).to_have_text("goodbye from 1")
        expect(page.locator("#output-note")).to_have_text("the actors have ended")
        page.locator("h1 a").click()
        expect(page.locator("#output")).to_have_count(0)
