"""checks.sql, in the sqlite3 shell, says of a pack's CSV files what the live database says, from both databases."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests import checks_sql, lives
from tests.history import ZONE
from tracker import database
from tracker.audit import lines
from tracker.audit.pack import _UNKNOWN
from tracker.models import SEALS
from tracker.reports import tables, views
from tracker.reports.about import Filters
from tracker.reports.as_of import Sealed, legal_days, shadows

SHELL = shutil.which("sqlite3")


def test_it_is_made_of_todays_sql() -> None:
    """`python -m tests.checks_sql` would write the file that is there."""
    assert checks_sql.FILE.read_text(encoding="utf-8") == checks_sql.text()


def field(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%dT%H:%M:%S.%fZ}"
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, float):
        return f"{value:.6f}"
    if isinstance(value, int):
        return str(int(value))
    return '"' + str(value).replace('"', '""') + '"'


def write(path: Path, columns: list[str], rows: Sequence[Sequence[Any]]) -> None:
    written = [",".join(columns), *(",".join(map(field, row)) for row in rows)]
    path.write_text("".join(f"{line}\n" for line in written), encoding="utf-8")


def export(engine: sa.Engine, folder: Path) -> None:
    """Write the CSV files of a pack up to the last checkpoint."""
    with database.reading(engine) as connection:
        seals = connection.execute(sa.select(SEALS).order_by(SEALS.c.id)).all()
        last = seals[-1]
        upto = Sealed(len(seals), last.sealed_at, last.last_transition_id, last.last_gap_id, last.last_source_id)
        for table, last_id in zip(lines.TABLES, (upto.transition_id, upto.gap_id, upto.source_id), strict=True):
            written = [line for _, line in lines.stream(connection, table, 0, last_id)]
            Path(folder, f"{table}.csv").write_bytes(lines.header(table) + b"".join(written))
        closed = [
            [number, seal.sealed_at, seal.last_transition_id, seal.last_gap_id, seal.last_source_id]
            for number, seal in enumerate(seals, 1)
        ]
        write(folder / "seals.csv", list(checks_sql.SEALS), closed)
        write(folder / "zone.csv", list(checks_sql.ZONE), legal_days(connection, upto, ZONE))
        for view in views.VIEWS:
            relation = tables.typed(connection, view)
            query = sa.select(relation).add_cte(*shadows(connection, Filters(), upto, ZONE, view))
            columns, empty = list(relation.c.keys()), _UNKNOWN if view == "report_jobs" else ()
            rows = [dict(row) | dict.fromkeys(empty) for row in connection.execute(query).mappings()]
            write(folder / f"{view}.csv", columns, [list(row.values()) for row in rows])


def run(folder: Path) -> list[str]:
    assert SHELL is not None
    imports = [f".import --csv {path.name} csv_{path.stem}" for path in sorted(folder.glob("*.csv"))]
    script = "\n".join((".bail on", *imports, f".read {checks_sql.FILE}"))
    done = subprocess.run([SHELL, ":memory:"], input=script, capture_output=True, text=True, cwd=folder, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.fixture
def pack(engine: sa.Engine, tmp_path: Path) -> Path:
    if SHELL is None:
        pytest.skip("this machine has no sqlite3 shell")
    lives.write(engine, 1, [*lives.told(), *lives.drawn(1, 30)])
    folder = tmp_path / "pack"
    folder.mkdir()
    export(engine, folder)
    return folder


def test_an_honest_pack_has_no_findings(pack: Path) -> None:
    """Its reports are the views over the replay; what the last line counts was there."""
    *notes, last = run(pack)
    assert [line for line in notes if "server_date is" not in line] == []
    transitions = len((pack / "transitions.csv").read_bytes().splitlines()) - 1
    assert f", {transitions} transitions, " in last
    assert last.startswith("checked ")
    assert last.endswith(f", {len(views.VIEWS)} reports")


def rewrite(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    lines_before = path.read_text(encoding="utf-8").splitlines()
    lines_after = change(lines_before)
    assert lines_after != lines_before
    path.write_text("".join(f"{line}\n" for line in lines_after), encoding="utf-8")


def swap(old: str, new: str) -> Callable[[list[str]], list[str]]:
    """Return what replaces *old* in the first line that has it."""

    def change(before: list[str]) -> list[str]:
        place = next(n for n, line in enumerate(before) if old in line)
        return [*before[:place], before[place].replace(old, new, 1), *before[place + 1 :]]

    return change


FORGED = {
    "a hole": ("transitions", lambda rows: [*rows[:30], *rows[31:]], "NOT OK: transitions id "),
    "a row twice": ("transitions", lambda rows: [*rows, rows[-1]], "2 rows have this id"),
    "a row that nothing closes": (
        "sources",
        lambda rows: [*rows, '99,"w1","https://x","/x","UTC",5,2,0,"UTC","1",2025-01-07T09:00:00.000000Z'],
        "no checkpoint closes this row",
    ),
    "a wrong end": ("transitions", swap('"running","done"', '"running","waiting"'), "observed with status waiting"),
    "another cluster": ("transitions", swap('"w2"', '"w1"'), "NOT OK: "),
    "a row of the future": (
        "transitions",
        lambda rows: [*rows[:-1], rows[-1].replace(",2025-", ",2026-")],
        "but its checkpoint closes",
    ),
    "a gap that ends before it begins": ("gaps", swap(",2025-", ",2026-"), "but began_at is"),
    "a checkpoint that runs backwards": ("seals", swap("4,2025-", "4,2024-"), "NOT OK: seals id 4: sealed_at is"),
    "another deadline": ("zone", lambda rows: [row.replace("T22:", "T21:") for row in rows], "report_deadlines.csv"),
    "another verdict": ("report_jobs", swap('"undecidable"', '"met"'), "report_jobs.csv has a row that does not"),
    "a report's row less": ("report_gaps", lambda rows: rows[:-1], "report_gaps.csv lacks a row"),
    "a report's row twice": ("report_coverage", lambda rows: [*rows, rows[-1]], "report_coverage.csv has"),
    "a line for the terminal": ("report_jobs", swap('"done', '"\x1b[2Jdone'), "?[2Jdone"),
}


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_forged_pack_has_findings(pack: Path) -> None:
    """Each is a line that begins with NOT OK, and the last line still says what was read."""
    for name, (table, change, words) in FORGED.items():
        before = (pack / f"{table}.csv").read_bytes()
        rewrite(pack / f"{table}.csv", change)
        *found, last = run(pack)
        assert any(line.startswith("NOT OK: ") and words in line for line in found), (name, found)
        assert last.startswith("checked ")
        (pack / f"{table}.csv").write_bytes(before)
