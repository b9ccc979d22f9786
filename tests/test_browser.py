"""The page in a real browser: it asks for nothing, says nothing, overflows nowhere and can be read.

Needs the extra ``browser`` (playwright) and a chromium; skipped where either is missing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from tests.history import answer, register, stand
from tracker import database
from tracker.models import Gap
from tracker.reports import page
from tracker.status import Cause, Kind

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install 'tracker[browser]'")

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = os.environ.get("TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is missing: install it, or name it in TEST_CHROMIUM"),
    pytest.mark.parametrize("dialect", ["sqlite"]),
    # What playwright's own threads and loops leave behind is not ours.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
]

OVERFLOWING = """() => {
  const wide = [];
  for (const element of document.querySelectorAll("body *")) {
    const box = element.getBoundingClientRect();
    const told = element.outerHTML.slice(0, 120);
    if (!box.width || element.closest(".scroll, .skip") !== null && !element.matches(".scroll")) continue;
    if (box.right > innerWidth + 1 || box.left < -1) wide.push(told);
    // Text that is wider than its box, where the box neither scrolls nor hides it.
    if (getComputedStyle(element).overflowX === "visible" && !element.closest("svg")
        && element.scrollWidth > element.clientWidth + 1 && element.clientWidth) wide.push(told);
  }
  if (document.documentElement.scrollWidth > innerWidth) wide.push("the page itself");
  return wide;
}"""
"""The elements that reach beyond the window; what is in a region that scrolls may."""

CONTRASTS = """() => {
  const parse = (colour) => (colour.match(/[\\d.]+/g) || []).map(Number);
  const luminance = (colour) => {
    const part = (value) => {
      value /= 255;
      return value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    };
    return 0.2126 * part(colour[0]) + 0.7152 * part(colour[1]) + 0.0722 * part(colour[2]);
  };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
      if (colour[3] > 0) throw new Error("a colour that is partly transparent: compute it");
    }
    return parse(getComputedStyle(document.documentElement).backgroundColor);
  };
  const found = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || element.closest("title, desc, style")) continue;
    const style = getComputedStyle(element);
    const ink = parse(element.closest("svg") ? style.fill : style.color);
    const ground = behind(element);
    const [a, b] = [luminance(ink), luminance(ground)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || size >= 18.66 && Number(style.fontWeight) >= 700;
    const key = `${element.tagName}.${element.className.baseVal ?? element.className}`;
    if (!found.has(key) || found.get(key).ratio > ratio) found.set(key, {ratio, least: large ? 3 : 4.5});
  }
  return [...found].map(([what, {ratio, least}]) => [what, ratio, least]);
}"""
"""What text is written in which contrast (WCAG 2.2, 1.4.3), and the least that level AA asks for."""

DRAWN = """() => {
  const parse = (colour) => (colour.match(/[\\d.]+/g) || []).map(Number);
  const luminance = (colour) => {
    const part = (value) => {
      value /= 255;
      return value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    };
    return 0.2126 * part(colour[0]) + 0.7152 * part(colour[1]) + 0.0722 * part(colour[2]);
  };
  const ground = luminance(parse(getComputedStyle(document.body).backgroundColor));
  const found = [];
  for (const [select, property] of [[".edge", "stroke"], [".bar", "fill"], [".gap", "fill"], [".stem", "stroke"]]) {
    const element = document.querySelector(`figure ${select}`);
    if (!element) continue;
    const [a, b] = [luminance(parse(getComputedStyle(element)[property])), ground].sort((x, y) => y - x);
    found.push([select, (a + 0.05) / (b + 0.05)]);
  }
  return found;
}"""
"""The contrast of what carries meaning in a picture (WCAG 2.2, 1.4.11: at least 3)."""

BROKEN = """() => {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (!node.parentElement.closest("td, th") || node.parentElement.closest("code, .long")) continue;
    for (const word of node.data.matchAll(/\\S+/g)) {
      const range = document.createRange();
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      const lines = new Set([...range.getClientRects()].map((box) => Math.round(box.top)));
      if (lines.size > 1 && !word[0].includes("--") && word[0].length < 30) found.push(word[0]);
    }
  }
  return found;
}"""
"""The words of tables, of dates whole ones, that stand on more than one line; what is shown letter by letter may."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        with suppress(Exception):
            browser.close()


def fill(engine: sa.Engine) -> None:
    """Make jobs of all kinds, with the longest and strangest text that is allowed."""
    now = datetime.now(UTC)
    for i in range(40):
        at = now - timedelta(days=40 - i)
        kind = list(Kind)[i % 3]
        jid = "x" * 255 if i == 7 else f"{i:08x}-34ab-406a-a4db-b30b0247837a"
        job = register(engine, jid, at=at, kind=kind, submitted_at=at, received_at=at, reference=f"R-{i // 2}")
        if i % 5 == 1:
            answer(engine, job, ("waiting", at + timedelta(hours=1)), ("W" * 255, at + timedelta(hours=2)))
        elif i % 5 == 2:
            answer(engine, job, ("waiting", at + timedelta(hours=1)), ("error", at + timedelta(days=3)))
        elif i % 5:
            answer(engine, job, ("waiting", at + timedelta(hours=1)), ("done", at + timedelta(hours=90 + i)))
    with database.writing(engine) as connection:
        gap = {"cluster": "w1", "began_at": now - timedelta(days=9), "ended_at": now - timedelta(days=8)}
        connection.execute(sa.insert(Gap).values(**gap, cause=Cause.UNREACHABLE, detail="d" * 200))
    stand(engine, "c" * 60, gap_began_at=now - timedelta(days=1), gap_cause=Cause.PAUSED, gap_detail="a reason " * 20)


@pytest.fixture
def file(engine: sa.Engine, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "page.html"
    if getattr(request, "param", "full") == "full":
        fill(engine)
    with database.reading(engine) as connection:
        page.write(path, connection)
    return path


def opened(browser: Browser, file: Path, width: int, scheme: Any) -> tuple[Page, list[str]]:
    """Return the page as it is shown, and what it said or asked for."""
    shown = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    told: list[str] = []
    shown.on("console", lambda message: told.append(f"console: {message.text}"))
    shown.on("pageerror", lambda error: told.append(f"error: {error}"))
    shown.on("request", lambda request: told.append(f"request: {request.url}"))
    shown.goto(file.as_uri())
    return shown, told


@pytest.mark.parametrize("file", ["full", "empty"], indirect=True)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_looks_right(browser: Browser, file: Path, width: int, scheme: str) -> None:
    """No message, no request but its own, nothing beyond the window, and every text in a contrast of WCAG AA."""
    shown, told = opened(browser, file, width, scheme)
    try:
        assert [line for line in told if line not in (f"request: {file.as_uri()}", "request: data:,")] == []
        assert shown.evaluate(OVERFLOWING) == []
        contrasts = shown.evaluate(CONTRASTS)
        assert len(contrasts) > 5
        assert [one for one in contrasts if one[1] < one[2]] == []
        assert [one for one in shown.evaluate(DRAWN) if one[1] < 3] == []
    finally:
        shown.close()


def test_the_keyboard_reaches_everything(browser: Browser, file: Path) -> None:
    """The first stop is the skip link, which leads to the reports; each link and table is a stop, and is seen to be."""
    shown, _ = opened(browser, file, 390, "light")
    try:
        shown.keyboard.press("Tab")
        skip = shown.evaluate("[document.activeElement.className, document.activeElement.getBoundingClientRect().top]")
        assert skip[0] == "skip"
        assert skip[1] >= 0
        shown.keyboard.press("Enter")
        assert shown.evaluate("document.activeElement.id") == "main"
        shown.reload()
        stops: list[str] = []
        for _ in range(60):
            shown.keyboard.press("Tab")
            name, outline = shown.evaluate(
                "[document.activeElement.getAttribute('aria-labelledby') || document.activeElement.textContent,"
                " getComputedStyle(document.activeElement).outlineStyle]"
            )
            if name in stops or shown.evaluate("document.activeElement === document.body"):
                break
            assert outline == "solid"
            stops.append(name)
        regions = shown.locator(".scroll").count()
        assert len([stop for stop in stops if stop.rpartition("-")[2].isdigit()]) == regions
        assert shown.locator("nav a").count() == 11
    finally:
        shown.close()


def test_in_print_nothing_is_cut_off(browser: Browser, file: Path) -> None:
    """On paper nothing scrolls: every region shows all of its table, black on white even where the screen is dark."""
    shown, _ = opened(browser, file, 1280, "dark")
    try:
        shown.emulate_media(media="print")
        cut = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollHeight > e.clientHeight + 1).length"
        assert shown.evaluate(cut) == 0
        assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert [one for one in shown.evaluate(CONTRASTS) if one[1] < one[2]] == []
    finally:
        shown.close()


def test_in_print_tables_read_well(browser: Browser, file: Path) -> None:
    """On a landscape sheet no word or date is broken, and a picture, of no great height, has its table beside it."""
    shown, _ = opened(browser, file, 1009, "light")  # A4, but for its margins
    try:
        shown.emulate_media(media="print")
        assert shown.evaluate(BROKEN) == []
        columns = "[...document.querySelectorAll('.side')].map(e => getComputedStyle(e).gridTemplateColumns)"
        assert {len(tracks.split()) for tracks in shown.evaluate(columns)} == {2}
        heights = "[...document.querySelectorAll('figure > svg')].map(e => e.getBoundingClientRect().height)"
        assert max(shown.evaluate(heights)) < 6 / 2.54 * 96 + 1
        assert shown.evaluate(OVERFLOWING) == []
    finally:
        shown.close()
