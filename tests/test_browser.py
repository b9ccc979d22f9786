"""The page in a real browser: nothing is clipped or scrolls, and every text can be read.

Needs a chromium; skipped where it is missing. A chromium without a window is at least 500 pixels wide, so the page is
in a frame of the width that is tested, and a script beside the frame measures it.
"""

from __future__ import annotations

import html
import json
import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.history import answer, register, stand
from tracker import database
from tracker.models import GAPS
from tracker.reports import page
from tracker.reports.overview import overview
from tracker.status import Cause, Kind

CHROMIUM = os.environ.get("TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is missing: install it, or name it in TEST_CHROMIUM"),
    pytest.mark.parametrize("dialect", ["sqlite"]),
]

MEASURE = """
const measure = (frame) => {
const inner = frame.contentWindow, page = inner.document;
const wide = [], scrolling = [], contrasts = {};
for (const element of page.querySelectorAll("body *")) {
  const box = element.getBoundingClientRect(), style = inner.getComputedStyle(element);
  const head = element.closest("thead"), is_hidden = head && inner.getComputedStyle(head).position === "absolute";
  if (!box.width || is_hidden || element.closest(".skip, .hidden, svg > *")) continue;
  const what = element.outerHTML.slice(0, 120);
  if (box.right > inner.innerWidth + 1 || box.left < -1) wide.push(what);
  if (element.scrollWidth > element.clientWidth + 1 && element.clientWidth && !element.closest("svg")) wide.push(what);
  if (style.overflowX !== "visible" && style.overflowX !== "hidden") scrolling.push(what);
}
const parse = (colour) => (colour.match(/[\\d.]+/g) || []).map(Number);
const luminance = (colour) => {
  const part = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  return 0.2126 * part(colour[0]) + 0.7152 * part(colour[1]) + 0.0722 * part(colour[2]);
};
const behind = (element) => {
  for (let one = element; one; one = one.parentElement) {
    const colour = parse(inner.getComputedStyle(one).backgroundColor);
    if (colour.length === 3) return colour;
  }
};
const contrast = (ink, element) => {
  const [a, b] = [luminance(parse(ink)), luminance(behind(element))].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
};
const note = (what, ratio, least) => {
  if (ratio < least) contrasts[what] = ratio;
};
const walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
let texts = 0;
for (let node = walker.nextNode(); node; node = walker.nextNode()) {
  const element = node.parentElement;
  if (!node.data.trim() || element.closest("title, desc, style")) continue;
  const style = inner.getComputedStyle(element);
  note(element.outerHTML.slice(0, 80), contrast(element.closest("svg") ? style.fill : style.color, element), 4.5);
  texts += 1;
}
for (const [select, property] of [[".edge", "stroke"], [".bar", "fill"], [".worry", "fill"]])
  for (const shape of page.querySelectorAll(`figure ${select}`))
    note(select, contrast(inner.getComputedStyle(shape)[property], shape.closest("figure")), 3);
return {wide, scrolling, contrasts, texts};
};
onload = () => {
  const results = [...document.querySelectorAll("iframe")].map(measure);
  document.body.textContent = "RESULT" + JSON.stringify(results) + "RESULT";
};
"""
"""What is beyond the window, what scrolls, and what has a contrast below that of WCAG 2.2, AA (1.4.3 and 1.4.11)."""


def content(engine: sa.Engine, is_full: bool) -> str:
    """Return a page, empty or with jobs of all kinds and the longest text that is allowed."""
    now = datetime.now(UTC)
    for i in range(40 if is_full else 0):
        at = now - timedelta(days=40 - i)
        jid = "x" * 255 if i == 37 else f"{i:08x}-34ab-406a-a4db-b30b0247837a"
        reference = "r" * 255 if i == 37 else f"R-{i // 2}"
        declared: dict[str, Any] = {"kind": list(Kind)[i % 3], "submitted_at": at, "reference": reference}
        job = register(engine, jid, "c" * 60 if i == 37 else "w1", at=at, received_at=at, **declared)
        words = [("waiting", at + timedelta(hours=1))]
        if i % 5 == 1:
            words.append(("W" * 255, at + timedelta(hours=2)))
        elif i % 5:
            words.append(("error" if i % 5 == 2 else "done", at + timedelta(hours=90 + i)))
        answer(engine, job, *words)
    if is_full:
        with database.writing(engine) as connection:
            gap = {"cluster": "w1", "began_at": now - timedelta(days=9), "ended_at": now - timedelta(days=8)}
            connection.execute(sa.insert(GAPS).values(**gap, cause=Cause.UNREACHABLE, detail="d" * 200))
        began = {"gap_began_at": now - timedelta(days=1), "gap_cause": Cause.KEY_REFUSED, "gap_detail": "d" * 200}
        stand(engine, "c" * 60, pause_cause=Cause.KEY_REFUSED, paused_until=now, **began)
    with database.reading(engine) as connection:
        return page.render(connection, overview=overview(connection, ["w1"], timedelta(hours=1)))


@pytest.mark.parametrize("scheme", [0, 1], ids=["dark", "light"])
def test_it_fits_and_can_be_read(engine: sa.Engine, tmp_path: Path, scheme: int) -> None:
    """At 1280 and 390 pixels nothing is beyond the window or scrolls, and every contrast is that of WCAG AA."""
    frames = [
        f'<iframe width="{width}" height="900" style="border:0" srcdoc="{html.escape(source)}"></iframe>'
        for source in (content(engine, False), content(engine, True))
        for width in (1280, 390)
    ]
    harness = tmp_path / "harness.html"
    harness.write_text(f"<body>{''.join(frames)}<script>{MEASURE}</script>", encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000", "--dump-dom"]
    options += [f"--blink-settings=preferredColorScheme={scheme}", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [str(CHROMIUM), *options, harness.as_uri()]
    made = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    results = json.loads(html.unescape(made.stdout.split("RESULT")[1]))
    assert len(results) == 4
    for result in results:
        assert result.pop("texts") > 10
        assert result == {"wide": [], "scrolling": [], "contrasts": {}}
