"""The page: what is on it, that it is sound HTML, and that nothing on it comes from elsewhere."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.history import answer, record, register, stand
from tracker import cli, database
from tracker.models import GAPS, JOBS
from tracker.reports import as_of, page, pictures, tables
from tracker.reports.about import Filters
from tracker.reports.overview import overview
from tracker.reports.survival import Curve
from tracker.status import Cause, Kind, withdraw

T0 = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
DAY = timedelta(days=1)
VOID = {"meta", "link", "path", "line", "rect", "br"}
SECTIONS = ["deadlines", "requests", "changes", "durations", "statuses", "monthly", "anomalies", "gaps", "coverage"]


class Outline(HTMLParser):
    """What is in a page: its elements with their attributes, its headings, its text, and whether tags match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def is_sound(html: str) -> Outline:
    """Check what is true of every page, and return its outline."""
    outline = Outline(html)
    tags = Counter(tag for tag, _ in outline.elements)
    assert not {"script", "img", "iframe", "object", "embed", "form", "base", "foreignobject"} & set(tags)
    for tag, attributes in outline.elements:
        assert not {"src", "srcset", "style", "action"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
        if "href" in attributes:
            assert (attributes["href"] or "")[0] == "#" or (tag, attributes["href"]) == ("link", "data:,")
    style = html[html.index("<style>") : html.index("</style>")]
    assert not re.search("url\\(|@import", style)
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in outline.elements:
        targets = (attributes.get("aria-labelledby") or "").split() + re.findall("^#(.*)", attributes.get("href") or "")
        assert set(targets) <= set(ids)
    assert tags["h1"] == tags["main"] == tags["header"] == tags["footer"] == tags["nav"] == 1
    assert tags["h2"] == tags["section"]
    assert tags["table"] == tags["caption"]
    assert all(attributes.get("scope") in ("col", "row") for attributes in outline.all("th"))
    drawn = [attributes for attributes in outline.all("svg") if "aria-hidden" not in attributes]
    assert all(attributes["role"] == "img" for attributes in drawn)
    assert tags["desc"] == tags["figure"] == len(drawn)
    return outline


def cells(html: str) -> str:
    """Return the text of a page, with ``|`` where tags are."""
    return re.sub(r"[|\s]*\|[|\s]*", "|", re.sub(r"<[^>]*>", "|", html))


@pytest.fixture
def render(engine: sa.Engine) -> Callable[..., str]:
    def render(filters: Filters = Filters(), *, is_now: bool = False, **more: Any) -> str:  # noqa: B008 - it is frozen
        with database.reading(engine) as connection:
            seen = overview(connection, ["w1", "w2"], timedelta(hours=1)) if is_now else None
            return page.render(connection, filters, overview=seen, **more)

    return render


@pytest.fixture
def scene(engine: sa.Engine) -> None:
    """Jobs of each kind and in several states, a closed and an open gap, and no daemon."""
    for i in range(6):
        at = T0 + i * timedelta(hours=5)
        kind = Kind.EXPORT if i % 2 else Kind.REMOVAL
        declared: dict[str, Any] = {"kind": kind, "submitted_at": at, "reference": f"R-{i // 2}"}
        job = register(engine, f"jid-{i}", at=at + timedelta(minutes=i), **declared)
        answer(engine, job, ("waiting", at + timedelta(hours=1)), ("running", at + 4 * DAY))
        if i < 4:
            answer(engine, job, ("done", at + 4 * DAY + timedelta(hours=1 + i)))
    lost = register(engine, "jid-lost", at=T0, submitted_at=T0)
    answer(engine, lost, ("not_found", T0 + DAY), ("not_found", T0 + 2 * DAY))
    gone = register(engine, "jid-gone", "w2", at=T0)
    record(engine, gone, lambda job, past: withdraw(job, at=T0 + DAY, actor="bob", reason="a test"))
    register(engine, "jid-new", "w2")
    with database.writing(engine) as connection:
        gap = {"cluster": "w1", "began_at": T0 + DAY, "ended_at": T0 + 2 * DAY}
        connection.execute(sa.insert(GAPS).values(**gap, cause=Cause.UNREACHABLE, detail="timeout"))
    began = {"gap_began_at": T0 + 3 * DAY, "gap_cause": Cause.KEY_REFUSED, "gap_detail": "401"}
    stand(engine, "w2", pause_cause=Cause.KEY_REFUSED, paused_until=T0 + 4 * DAY, **began)


@pytest.mark.usefixtures("scene")
def test_a_page_begins_with_what_needs_a_person(engine: sa.Engine, render: Callable[..., str]) -> None:
    """A refused key and a missing daemon come first, then daemons and clusters, then every report; three pictures."""
    html = render(is_now=True)
    outline = is_sound(html)
    assert [attributes["id"] for attributes in outline.all("section")] == ["needs", "clusters", *SECTIONS]
    first = outline.text[outline.text.index("What needs a person") : outline.text.index("Daemons and clusters")]
    assert "Urgent: w2: Elevate refuses the API key (401, since 2026-03-05 08:00 UTC)." in first
    assert "Urgent: No daemon is running" in first
    assert "No daemon has run on this database." in outline.text
    assert "|w2|1|0|–|2026-03-06 08:00:00 (key_refused)|2026-03-05 08:00:00 (key_refused: 401)|" in cells(html)
    assert "9 jobs: 3 open, 4 done, 1 lost, 1 withdrawn." in outline.text
    assert "It does not show that the person was informed" in outline.text
    drawn = [a["aria-labelledby"] for a in outline.all("svg") if "aria-labelledby" in a]
    assert drawn == [f"{name}-title {name}-desc" for name in ("ahead", "curve", "flight")]


@pytest.mark.usefixtures("scene")
def test_what_is_unknown_of_another_time_is_not_shown(render: Callable[..., str]) -> None:
    """A page of an earlier time, or of some jobs, says that needs and daemons are not on it."""
    for outline in (is_sound(render(as_of=T0 + 9 * DAY)), is_sound(render(Filters(clusters=("w2",))))):
        assert [attributes["id"] for attributes in outline.all("section")] == ["needs", *SECTIONS]
        assert "tracker status shows what needs a person now" in outline.text


@pytest.mark.usefixtures("scene")
def test_the_figures_are_those_of_the_views(engine: sa.Engine, render: Callable[..., str]) -> None:
    """Verdicts, quantiles, lateness, open jobs, deadlines and the rows of each report are what the views say."""
    html = render()
    text = cells(html)
    with database.reading(engine) as connection:
        counted = connection.exec_driver_sql("SELECT verdict, state, count(*) FROM report_jobs GROUP BY 1, 2").all()
        rows = {name: list(tables.read(connection, name).rows) for name in SECTIONS}
        since = database.now(connection) - page.RECENT
        for name in ("gaps", "coverage"):
            rows[name] = list(tables.read(connection, name, Filters(since=since)).rows)
        last_day = Filters(since=database.now(connection) - timedelta(days=1))
        rows["changes"] = list(tables.read(connection, "changes", last_day).rows)
    assert len(counted) >= 4
    for verdict, state, number in counted:
        assert f"|{verdict}|{state}|{number}|" in text
    for name in set(SECTIONS) - {"durations"}:
        table = html[html.index(f'<section id="{name}"') :].partition("</section>")[0].rpartition("<table")[2]
        assert table.count('<th scope="row"') == len(rows[name])
    # All three were seen running at 4 days; the first was done an hour and a second later, rounded up; the last ran on.
    assert "|w1|removal|3|4d to 4d 2h|" in text
    assert "3 open at the end; at most 7 at once." in text
    assert "3 past, 1 within the next 31 days, 0 later." in text


@pytest.mark.usefixtures("scene")
def test_filters_and_one_report(render: Callable[..., str]) -> None:
    """Only what was asked for is on the page, and the page says what that was."""
    outline = is_sound(render(Filters(clusters=("w2",)), names=["durations"]))
    assert [attributes["id"] for attributes in outline.all("section")] == ["durations"]
    for text in ("GDPR jobs: durations", "2 jobs: 1 open, 1 withdrawn.", "Only: cluster w2."):
        assert text in outline.text
    assert "w1" not in outline.text
    gaps = is_sound(render(Filters(clusters=("w2",)), names=["gaps"]))
    assert "401" in gaps.text
    assert "timeout" not in gaps.text
    assert "in the last 90 days; tracker report gaps has all." in gaps.text
    assert "timeout" in is_sound(render(Filters(since=T0), names=["gaps"])).text


def test_an_empty_database_has_a_page(render: Callable[..., str]) -> None:
    """Nothing is drawn, each section says that there is nothing, and the page says how to begin."""
    outline = is_sound(render(is_now=True))
    assert "0 jobs." in outline.text
    assert "Nothing needs a person. No job is registered yet: tracker add JID registers one." in outline.text
    assert outline.text.count("There is nothing to report.") == len(SECTIONS)
    assert outline.all("figure") == []


HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "</title></svg></style></table><h1>",
    "<!-- x -->",
    "{{ 7 * 7 }}",
    "&lt;b&gt; & 'x' `y`",
]


def test_hostile_text_stays_text(engine: sa.Engine, render: Callable[..., str]) -> None:
    """A jid, reference, cluster, status or detail that is markup is shown as it is written, wherever it is."""
    at = datetime.now(UTC) - 3 * DAY
    for text in HOSTILE:
        jid = text.replace(" ", "")
        job = register(engine, jid, text, at=at, reference=text, submitted_at=at)
        answer(engine, job, (text, at + timedelta(hours=1)))
        job = register(engine, f"{jid}2", text, at=at, kind=Kind.EXPORT, submitted_at=at)
        answer(engine, job, ("waiting", at + timedelta(hours=1)), ("done", at + DAY))
        stand(engine, text, gap_began_at=at, gap_cause=Cause.UNREACHABLE, gap_detail=text)
    outline = is_sound(render(is_now=True))
    for text in HOSTILE[:-1]:
        assert outline.text.count(text) >= 8
    assert "Only: cluster <script>" in is_sound(render(Filters(clusters=(HOSTILE[0],)))).text


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
@pytest.mark.usefixtures("scene")
def test_a_reader_without_rights_gets_the_same_page(engine: sa.Engine) -> None:
    """The jobs of an earlier time are kept in a temporary table meanwhile; an auditor cannot, and nothing is left."""
    pages = []
    for temporary in (True, False):
        with database.reading(engine, temporary=temporary) as connection:
            with as_of.kept(connection, T0, as_of.LEGAL_ZONE) as is_kept:
                assert is_kept is temporary
            pages.append(page.render(connection, as_of=T0 + 100 * DAY))
            assert sa.inspect(connection).get_temp_table_names() == []
    assert pages[0] == pages[1]


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_long_table_is_cut_and_says_so(engine: sa.Engine, render: Callable[..., str]) -> None:
    """Of more jobs than are shown the most urgent are, and the page names the command that lists all."""
    jobs = [
        {"cluster": "w1", "jid": f"jid-{i:03}", "registered_at": T0, "registered_by": "alice"}
        | {"reference": f"R-{i:03}", "deadline_on": (T0 + i * DAY).date(), "deadline_at": T0 + i * DAY}
        for i in range(page.LIMIT + 5)
    ]
    with database.writing(engine) as connection:
        connection.execute(sa.insert(JOBS), jobs)
    text = is_sound(render(names=["deadlines"])).text
    assert f"Only the first {page.LIMIT} rows are shown. tracker report deadlines --format csv has all." in text
    assert ("jid-000" in text, f"jid-{page.LIMIT:03}" in text) == (True, False)


@pytest.mark.usefixtures("scene")
def test_the_command_writes_the_page(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All reports, with needs where they are known, or one; the settings say which clusters there should be."""
    monkeypatch.setenv("TRACKER_DATABASE_URL", url)
    assert cli.main(["report", "-o", "all.html"]) == 0
    assert "Urgent: w2: Elevate refuses" in is_sound((tmp_path / "all.html").read_text(encoding="utf-8")).text
    assert cli.main(["report", "-o", "all.html", "--cluster", "w1", "--as-of", "2026-03-05"]) == 0
    outline = is_sound((tmp_path / "all.html").read_text(encoding="utf-8"))
    assert "As of 2026-03-05 23:00:00 UTC: what could be known then. 7 jobs: " in outline.text
    assert cli.main(["report", "gaps", "-o", "gaps.html"]) == 0
    outline = is_sound((tmp_path / "gaps.html").read_text(encoding="utf-8"))
    assert [attributes["id"] for attributes in outline.all("section")] == ["gaps"]


def test_pictures_of_extremes() -> None:
    """A picture of no span, of huge numbers, or of years is drawn, with ticks that are few."""
    flat = Curve([], [])
    assert "<path" in pictures.completion("a", "t", "d", flat, flat, 0.0)
    drawn = pictures.layers("b", "t", "d", [T0, T0 + 4000 * DAY], [("s0", [0, 12_345_678])])
    assert "10M" in drawn
    assert 2 <= len(re.findall(r">\d{4}-\d\d-\d\d<", drawn)) <= 9
    for days in (0.02, 1, 2, 10, 60, 90, 700):
        labels = re.findall(r"<text[^>]*>([^<]*)", pictures.layers("c", "t", "d", [T0, T0 + days * DAY], []))
        assert 3 <= len(labels) <= 12
    assert "<rect" not in pictures.bars("d", "t", "d", [("x", 0, False)])
