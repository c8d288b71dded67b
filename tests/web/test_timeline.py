"""The page of `spoke timeline` in a real Chromium: what it shows of bars and of cells, and how it is used."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from bench.synthetic import events
from spoke.cli.timeline_chart import chart_of, html
from spoke.events.state import PoolState

T_S = 20
COUNT = """(() => {
  const chart = document.getElementById("chart");
  const data = chart.getContext("2d").getImageData(160, 24, chart.width - 160, chart.height - 24).data;
  let found = 0;
  for (let at = 0; at < data.length; at += 4)
    found += data[at] === 136 && data[at + 1] === 136 && data[at + 2] === 136 && data[at + 3] === 255;
  return found;
})()"""
"""The opaque pixels in the colour of cells."""


def opened(browser: Browser, directory: Path, bars_max: int) -> tuple[Page, list[str]]:
    """The page of a made-up log, from a file, and what its console says."""
    log = list(events(20_000, nodes=2))
    file = directory / "timeline.html"
    file.write_text(html(chart_of("p", PoolState(), log, 0, log[-1].ms, bars_max)))
    page = browser.new_page(viewport={"width": 1200, "height": 600})
    page.set_default_timeout(T_S * 1000)
    problems: list[str] = []
    ours = "Multiple readback operations"  # it is this test that reads pixels
    page.on("console", lambda message: problems.append(message.text) if ours not in message.text else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(file.as_uri())
    expect(page.locator("body[data-ready=yes]")).to_be_visible()
    return page, problems


def grey_pixels(page: Page) -> int:
    """How much of the chart is grey, when what is to be drawn is drawn."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    found: int = page.evaluate(COUNT)
    return found


def point_at(page: Page, row: int, until: str) -> None:
    """Move along a row until the tip says this."""
    chart, tip = page.locator("#chart").bounding_box(), page.locator("#tip")
    assert chart is not None
    for x in range(200, 1150, 7):
        page.mouse.move(x, chart["y"] + 24 + row * 14 + 11)
        if tip.is_visible() and until in tip.inner_text():
            return
    expect(tip).to_contain_text(until)


def test_a_chart_of_few_bars_shows_each(browser: Browser, tmp_path: Path) -> None:
    page, problems = opened(browser, tmp_path, 100_000)
    expect(page.locator("#note")).to_have_count(0)
    expect(page.locator("#count")).to_have_text("16 of 16 GPUs")
    point_at(page, row=3, until="user user-")
    page.locator("#filter").fill("node-0001:3")
    expect(page.locator("#count")).to_have_text("1 of 16 GPUs")
    page.close()
    assert problems == []


def test_what_is_drawn_together_is_grey_says_so_and_is_no_tickets(browser: Browser, tmp_path: Path) -> None:
    page, problems = opened(browser, tmp_path, 200)
    expect(page.locator("#note")).to_contain_text("drawn together; a shorter range shows and filters each")
    assert grey_pixels(page) > 10_000
    point_at(page, row=3, until="% held by what was short")
    expect(page.locator("#tip")).to_contain_text("of them began here")
    page.locator("#filter").fill("user-1")
    assert grey_pixels(page) == 0
    page.close()
    assert problems == []


@pytest.mark.parametrize("key", ["+", "-", "ArrowRight", "0"])
def test_keys_move_it(browser: Browser, tmp_path: Path, key: str) -> None:
    page, problems = opened(browser, tmp_path, 200)
    page.locator("#chart").focus()
    page.keyboard.press(key)
    assert grey_pixels(page) > 0
    page.close()
    assert problems == []
