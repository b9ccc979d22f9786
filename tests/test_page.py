"""The page: what is on it, that it is sound HTML, and that nothing on it comes from elsewhere."""

from __future__ import annotations

import re
import stat
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
from tracker.errors import InvalidField, Refused
from tracker.models import JOBS, Gap
from tracker.reports import as_of, page, pictures
from tracker.reports.about import Filters
from tracker.reports.survival import Curve
from tracker.status import Cause, Kind, withdraw

T0 = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
DAY = timedelta(days=1)
VOID = {"meta", "link", "path", "line", "rect", "circle", "br", "img"}


class Outline(HTMLParser):
    """What is in a page: its elements with their attributes, its headings, its text, and whether tags match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.headings: list[int] = []
        self.comments: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def is_sound(html: str) -> Outline:
    """Check what holds of every page, and return its outline."""
    outline = Outline(html)
    tags = Counter(tag for tag, _ in outline.elements)
    for tag in ("script", "img", "iframe", "object", "embed", "form", "base", "foreignobject"):
        assert tag not in tags
    for tag, attributes in outline.elements:
        assert not {"src", "srcset", "style", "action"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
        if "href" in attributes:
            assert (attributes["href"] or "")[0] == "#" or (tag, attributes["href"]) == ("link", "data:,")
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style

    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in outline.elements:
        for target in (attributes.get("aria-labelledby") or "").split():
            assert target in ids
        if (attributes.get("href") or "").startswith("#"):
            assert (attributes["href"] or "")[1:] in ids
    assert tags["h1"] == tags["main"] == tags["header"] == tags["footer"] == tags["nav"] == 1
    assert outline.headings[0] == 1
    assert all(later - before <= 1 for before, later in zip(outline.headings, outline.headings[1:], strict=False))
    assert tags["table"] == tags["caption"]
    assert all(attributes.get("scope") in ("col", "row") for attributes in outline.all("th"))
    drawn = [attributes for attributes in outline.all("svg") if "aria-hidden" not in attributes]
    assert all(attributes["role"] == "img" for attributes in drawn)
    assert tags["desc"] == len(drawn)
    assert tags["figure"] == len(drawn)
    regions = [a for a in outline.all("div") if a.get("class") == "scroll"]
    assert len(regions) == tags["table"]
    assert all(a["tabindex"] == "0" and a["role"] == "region" for a in regions)
    assert outline.all("html") == [{"lang": "en"}]
    assert outline.comments == ["note"]
    return outline


@pytest.fixture
def render(engine: sa.Engine) -> Callable[..., str]:
    def render(filters: Filters | None = None, **more: object) -> str:
        with database.reading(engine) as connection:
            return page.render(connection, filters, **more)  # type: ignore[arg-type]

    return render


@pytest.fixture
def scene(engine: sa.Engine) -> None:
    """Jobs of each kind and in several states, a closed and an open gap."""
    for i in range(6):
        kind = Kind.EXPORT if i % 2 else Kind.REMOVAL
        at = T0 + i * timedelta(hours=5)
        declared: dict[str, Any] = {"kind": kind, "submitted_at": at, "reference": f"R-{i // 2}"}
        job = register(engine, f"jid-{i}", at=at + timedelta(minutes=i), **declared)
        answer(engine, job, ("waiting", at + timedelta(hours=1)), ("running", at + 4 * DAY))
        if i < 4:
            answer(engine, job, ("done", at + 4 * DAY + timedelta(hours=1 + i)))
    lost = register(engine, "jid-lost", at=T0, submitted_at=T0)
    answer(engine, lost, ("not_found", T0 + DAY), ("not_found", T0 + 2 * DAY))
    gone = register(engine, "jid-gone", "w2", at=T0)
    record(engine, gone, lambda job, past: withdraw(job, at=T0 + DAY, actor="bob", reason="a test"))
    with database.writing(engine) as connection:
        connection.execute(
            sa.insert(Gap).values(
                cluster="w1", began_at=T0 + DAY, ended_at=T0 + 2 * DAY, cause=Cause.UNREACHABLE, detail="timeout"
            )
        )
    stand(engine, "w2", gap_began_at=T0 + 3 * DAY, gap_cause=Cause.KEY_REFUSED, gap_detail="401")


@pytest.mark.usefixtures("scene")
def test_a_page_has_every_report_and_nothing_from_elsewhere(render: Callable[..., str]) -> None:
    """All sections are there, each picture with its figures beside it, and the page is sound, with no outside word."""
    outline = is_sound(render())
    sections = [attributes["id"] for attributes in outline.all("section")]
    assert sections == [
        "person",
        "deadlines",
        "durations",
        "registrations",
        "statuses",
        "stays",
        "monthly",
        "requests",
        "anomalies",
        "gaps",
        "coverage",
    ]
    assert "8 jobs, as of" in outline.text
    assert "That the person was informed of it is not shown" in outline.text
    assert "received declared" in outline.text
    names = {(a.get("aria-labelledby") or "").split("-title")[0] for a in outline.all("svg")} - {""}
    assert names == {"ahead", "curve", "flight", "gaps-line"}


@pytest.mark.usefixtures("scene")
def test_the_figures_are_those_of_the_views(engine: sa.Engine, render: Callable[..., str]) -> None:
    """Verdicts, quantiles, lateness, open jobs and gaps on the page are what the rows say."""
    text = re.sub(r"<[^>]*>", "|", render())
    text = re.sub(r"[|\s]*\|[|\s]*", "|", text)
    with database.reading(engine) as connection:
        counted = connection.exec_driver_sql("SELECT verdict, state, count(*) FROM report_jobs GROUP BY 1, 2").all()
    assert len(counted) >= 4
    for verdict, state, number in counted:
        assert f"|{verdict}|{state}|{number}|" in text
    # All three were seen running at 4 days; the first was done an hour and a second later, rounded up; the last ran on.
    assert "|w1|removal|3|4d to 4d 2h|" in text
    assert "|w1|export|3|3m|5m|5m|" in text  # registered 1, 3 and 5 minutes late
    assert "|w1|removal|3|2m|4m|4m|" in text
    assert "Registered more than a day after submission: 0. Without a declared submission: 1." in text
    assert "2 open at the end" in text
    assert "2 gaps" in text
    assert "1 still open" in text


@pytest.mark.usefixtures("scene")
def test_the_time_in_each_status_is_told(render: Callable[..., str]) -> None:
    """On the page of statuses, too: as jobs go through them, how many stays there are and how long those lasted."""
    html = render(names=["statuses"])
    assert [attributes["id"] for attributes in is_sound(html).all("section")] == ["statuses", "stays"]
    text = re.sub(r"[|\s]*\|[|\s]*", "|", re.sub(r"<[^>]*>", "|", html))
    # Each was seen waiting once, and running once, four days after its submission; four were done soon after.
    assert "|waiting|6|6|6|0s to 4d 1h|0s to 4d 1h|running|6|4|4|0s to 4d 2h|0s to 4d 4h|done|4|0|0|–|–|" in text


def test_of_many_statuses_the_most_frequent_are_told(
    engine: sa.Engine, render: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elevate may say anything: the page does not grow with it, and says how many there are."""
    monkeypatch.setattr(page, "LIMIT", 2)
    for number, words in enumerate((["waiting", "a"], ["waiting", "b"], ["created", "waiting"])):
        job = register(engine, f"jid-{number}", at=T0)
        answer(engine, job, *((word, T0 + place * DAY) for place, word in enumerate(words, 1)))
    html = render(names=["statuses"])
    assert "The first 2 of 4, those with the most stays. All of them: tracker report statuses --format csv" in html


@pytest.mark.usefixtures("scene")
def test_the_jobs_of_a_request_stand_side_by_side(engine: sa.Engine, render: Callable[..., str]) -> None:
    """Which of them is open is told, not only how many; the same twice is counted."""
    for number in range(2):
        register(engine, f"jid-more-{number}", at=T0, kind=Kind.EXPORT, reference="R-2")
    text = re.sub("(<[^>]*>)+", "|", render(names=["requests"]))
    assert "|R-0|export done, removal done|2|" in text
    assert "|R-2|3 export open, removal open|4|" in text


@pytest.mark.usefixtures("scene")
def test_filters_and_one_report(render: Callable[..., str]) -> None:
    """Only what was asked for is on the page, and the page says what that was."""
    html = render(Filters(clusters=("w2",)), names=["durations"])
    outline = is_sound(html)
    assert [attributes["id"] for attributes in outline.all("section")] == ["durations", "registrations"]
    assert "GDPR jobs: durations" in outline.text
    assert "1 job, as of" in outline.text
    assert "Only: cluster w2." in outline.text
    assert "w1" not in outline.text
    gaps = is_sound(render(Filters(clusters=("w2",)), names=["gaps"]))
    assert "401" in gaps.text
    assert "timeout" not in gaps.text
    with pytest.raises(InvalidField, match=r"'speed' is none of .*durations"):
        render(names=["speed"])


@pytest.mark.usefixtures("scene")
def test_gaps_that_overlap_count_once(engine: sa.Engine, render: Callable[..., str]) -> None:
    """The sum beside the picture is the time in which nothing was observed; a gap is over before a future since."""
    more = [(T0 + DAY + timedelta(hours=12), T0 + 3 * DAY), (T0 + 3 * DAY, T0 + 3 * DAY + timedelta(hours=1))]
    with database.writing(engine) as connection:
        for began_at, ended_at in more:
            gap = {"cluster": "w1", "began_at": began_at, "ended_at": ended_at, "cause": Cause.PAUSED}
            connection.execute(sa.insert(Gap).values(**gap))
    html = render(Filters(clusters=("w1",)), names=["gaps"])
    assert "3 gaps, 2d 1h in all; 0 still open." in html
    assert "1 gap," in render(Filters(clusters=("w2",)), names=["gaps"])
    later = Filters(clusters=("w2",), since=datetime.now(UTC) + DAY)
    assert "No gap is on record." in render(later, names=["gaps"])


def test_a_share_of_the_curve_is_called_an_estimate(engine: sa.Engine, render: Callable[..., str]) -> None:
    """Failed jobs leave the curve: it says 100 % where one of four is done, and the page says what that is."""
    for number in range(4):
        job = register(engine, f"jid-{number}", at=T0, submitted_at=T0)
        words = [("done", T0 + DAY)] if number == 0 else [("waiting", T0), ("error", T0 + timedelta(hours=number))]
        answer(engine, job, *words)
    outline = is_sound(render(names=["durations"]))
    assert "Estimated share of jobs done by then (Kaplan–Meier)" in outline.text
    assert "100.0 %" in outline.text
    assert "leaves the curve there, also a failed, lost or attested one" in outline.text
    assert not re.search("(?<!Estimated s)hare of jobs done", outline.text)


def test_a_share_is_rounded_away_from_what_was_not_seen(engine: sa.Engine, render: Callable[..., str]) -> None:
    """No table says 100 % while one of many is left, nor 0 % where one is done."""
    at = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
    nearly_all, few, hardly_any = (Curve([3600.0] * number, [9000.0] * (10_000 - number)) for number in (9996, 2900, 4))
    table = page._curve_table(nearly_all, nearly_all, 7200.0)
    assert {row[0].text: (row[1].text, row[2].text) for row in table.rows}["1h"] == ("99.9 %", "100.0 %")
    table = page._curve_table(few, hardly_any, 3600.0)
    assert [cell.text for cell in table.rows[-1]] == ["1h", "0.0 %", "29.0 %"]
    register(engine, "a", at=at)
    with database.writing(engine) as connection:
        gap = {"cluster": "w1", "began_at": at + DAY, "ended_at": at + DAY + timedelta(seconds=1)}
        connection.execute(sa.insert(Gap).values(**gap, cause=Cause.PAUSED))
    assert '<td class="number">99.99 %</td>' in render(names=["coverage"])


def test_a_deadline_is_past_when_its_legal_day_is_over(engine: sa.Engine, render: Callable[..., str]) -> None:
    """Which day it is, the legal time zone says: a day over there is past, and one that has not ended is not."""
    job = register(engine, "a", at=T0, received_at=datetime(2026, 2, 5, 12, 0, tzinfo=UTC))  # until 5 March, 23:00 UTC
    answer(engine, job, ("not_found", T0 + DAY), ("not_found", T0 + 2 * DAY))  # lost: undecidable from then on
    at = datetime(2026, 3, 5, 22, 59, 59, tzinfo=UTC)
    assert "0 past, 1 within the next 31 days" in render(as_of=at, names=["deadlines"])
    assert "1 past, 0 within the next 31 days" in render(as_of=at + timedelta(seconds=1), names=["deadlines"])


def test_an_empty_database_has_a_page(render: Callable[..., str]) -> None:
    """Nothing is drawn, and each section says that there is nothing."""
    outline = is_sound(render())
    assert "0 jobs, as of" in outline.text
    assert "Nothing to report" in outline.text
    assert outline.all("table") == []
    assert outline.all("figure") == []


@pytest.mark.parametrize("asked", [False, True])
def test_one_job_has_a_page(engine: sa.Engine, render: Callable[..., str], asked: bool) -> None:
    """A lone job, asked about or not, makes curves and tables of one, and no division by zero."""
    job = register(engine, "jid-1")
    if asked:
        answer(engine, job, ("waiting", datetime.now(UTC)))
    outline = is_sound(render())
    assert "1 job, as of" in outline.text
    assert "The estimate does not reach half." in outline.text
    assert ("waiting" if asked else "not answered yet") in outline.text


HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "</title></svg></style></table><h1>",
    "<!--note-->",
    "{{ 7 * 7 }}",
    "&lt;b&gt; & 'x'",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(engine: sa.Engine, render: Callable[..., str], text: str) -> None:
    """A jid, reference, cluster or status that is markup is shown as it is written, wherever it stands."""
    at = datetime.now(UTC) - 3 * DAY
    job = register(engine, text, text, at=at, reference=text, submitted_at=at)
    answer(engine, job, (text, at + timedelta(hours=1)))
    job = register(engine, f"{text}2", text, at=at, kind=Kind.EXPORT, submitted_at=at)
    answer(engine, job, ("waiting", at + timedelta(hours=1)), ("done", at + DAY))
    with database.writing(engine) as connection:
        gap = {"cluster": text, "began_at": at, "ended_at": at + DAY, "cause": Cause.PAUSED, "detail": text}
        connection.execute(sa.insert(Gap).values(**gap))
    html = render(Filters(clusters=(text,)))
    outline = is_sound(html)
    assert outline.text.count(text) >= 8


@pytest.mark.usefixtures("scene")
def test_the_same_as_of_gives_the_same_bytes(engine: sa.Engine, render: Callable[..., str]) -> None:
    """A page as of a time says the same whatever was observed since."""
    then = T0 + 3 * DAY
    before = render(as_of=then)
    is_sound(before)
    assert "what could be known then" in before
    job = register(engine, "jid-new")
    answer(engine, job, ("surprise", datetime.now(UTC)))
    assert render(as_of=then) == before


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
@pytest.mark.usefixtures("scene")
def test_who_may_make_nothing_gets_the_same_page(engine: sa.Engine) -> None:
    """The jobs of an earlier time are kept in a temporary table meanwhile; an auditor cannot, and nothing is left."""
    pages = []
    for temporary in (True, False):
        with database.reading(engine, temporary=temporary) as connection:
            with as_of.kept(connection, T0, as_of.LEGAL_ZONE) as is_kept:
                assert is_kept is temporary
            pages.append(page.render(connection, as_of=T0 + 100 * DAY))
            assert sa.inspect(connection).get_temp_table_names() == []
    assert pages[0] == pages[1]


def test_a_long_table_is_cut_and_says_so(engine: sa.Engine, render: Callable[..., str]) -> None:
    """Of more jobs than are shown the most urgent are, and the page says how many there are and how to see all."""
    jobs = [
        {
            "cluster": "w1",
            "jid": f"jid-{i:03}",
            "reference": f"R-{i:03}",
            "registered_at": T0,
            "registered_by": "alice",
            "deadline_on": (T0 + i * DAY).date(),
            "deadline_at": T0 + i * DAY,
        }
        for i in range(page.LIMIT + 5)
    ]
    with database.writing(engine) as connection:
        connection.execute(sa.insert(JOBS), jobs)
    html = render(names=["deadlines", "requests"])
    outline = is_sound(html)
    assert "The first 200 of 205, the most urgent first. All of them: tracker report deadlines" in outline.text
    assert "The first 200 of 205, unfinished ones first. All of them: tracker report requests" in outline.text
    deadlines = html[html.index("Legal deadlines") : html.index("The first 200")]
    assert deadlines.count('<th scope="row"') == 200
    assert "jid-000" in deadlines
    assert "jid-204" not in deadlines


def test_it_is_written_whole_or_not_at_all(engine: sa.Engine, tmp_path: Path) -> None:
    """The file is replaced at once, can be read by others, and what cannot be written leaves the old one alone."""
    path = tmp_path / "page.html"
    path.write_text("old")
    with database.reading(engine) as connection:
        page.write(path, connection)
        assert path.read_text().startswith("<!DOCTYPE html>")
        assert stat.S_IMODE(path.stat().st_mode) & 0o444
        assert [p.name for p in tmp_path.glob("*.html")] == ["page.html"]
        with pytest.raises(Refused, match="cannot be written"):
            page.write(tmp_path / "nowhere" / "page.html", connection)


@pytest.fixture
def run(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Return a function that runs ``tracker report`` and returns exit code, output and messages."""
    monkeypatch.setenv("TRACKER_DATABASE_URL", url)

    def run(*args: str) -> tuple[int, str, str]:
        code = cli.main(["report", *args])
        return code, *capsys.readouterr()

    return run


@pytest.mark.usefixtures("scene")
@pytest.mark.parametrize("options", [["--format", "html", "-o", "all.html"], ["-o", "all.html"]])
def test_the_command_writes_all_reports(run: Callable[..., Any], tmp_path: Path, options: list[str]) -> None:
    """Without the name of a report they are all on the page, filters and as-of time included."""
    assert run(*options, "--cluster", "w1", "--as-of", "2026-03-05") == (0, "", "")
    outline = is_sound((tmp_path / "all.html").read_text(encoding="utf-8"))
    assert len(outline.all("section")) == 11
    assert "7 jobs, as of 2026-03-05 23:00:00 UTC: what could be known then" in outline.text
    assert "Only: cluster w1." in outline.text


@pytest.mark.usefixtures("scene")
def test_the_command_writes_one_report(run: Callable[..., Any]) -> None:
    """One report is a page of its own, on standard output where no file is named."""
    code, out, err = run("gaps", "--format", "html")
    assert (code, err) == (0, "")
    assert [attributes["id"] for attributes in is_sound(out).all("section")] == ["gaps"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "csv"], "name a report (durations"),
        (["--cluster", "w1"], "name a report (durations"),
        (["--format", "html", "durations"], "options stand after the report's name"),
        (["--format", "html", "-o", "nowhere/page.html"], "cannot write 'nowhere/page.html'"),
        (["--format", "html", "--cluster", "wx"], "there is no cluster 'wx'"),
        (["--format", "html", "--as-of", "2999-01-01T00:00Z"], "is in the future"),
        (["deadlines", "--working-days", "SE", "--format", "html"], "a page has no place for --working-days"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(run: Callable[..., Any], arguments: list[str], said: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert said in err.replace("\n", " ")


def test_pictures_of_extremes() -> None:
    """A picture of no span, of huge numbers, or of years is drawn, with ticks that are few and within it."""
    flat = pictures.Steps([], float)
    band = pictures.Band(flat, flat, 0.0)
    assert "<path" in pictures.completion("a", "t", "d", band)
    years = [T0, T0 + 4000 * DAY]
    drawn = pictures.layers("b", "t", "d", years, [(0, [0, 12_345_678])])
    assert "10M" in drawn
    assert 2 <= drawn.count('class="tick"') <= 9
    assert "<rect" not in pictures.bars("d", "t", "d", [("x", 0, False)])
    spans = [pictures.Span(i / 10, i / 10 + 0.01, False, f"gap {i}") for i in range(1000)]
    line = pictures.timeline("e", "t", "d", T0, T0 + 30 * DAY, [("w1", spans)])
    assert line.count('class="gap"') == 1
    assert "1000 gaps" in line
