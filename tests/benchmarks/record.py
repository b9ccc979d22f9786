"""How long a whole record takes to read, report and audit, at a million transitions, on both databases.

    .venv/bin/python -m tests.benchmarks.record [--jobs N] [--only sqlite|postgresql]

Builds N jobs (200,000 by default) with five transitions each over three years, with gaps, guards and CHECKs at work,
and seals them with a key. Then measures, each in a process of its own: the transitions streamed with SQLAlchemy Core,
each view read whole, `report durations`, the page, `audit verify` and `audit export`; last verify.sh on the pack.
Prints seconds, the multiple of the stream's time, and the most memory. Exit status 1: a bound was missed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tests.benchmarks.apart import measure
from tests.conftest import serve_postgres
from tracker import cli, database
from tracker.audit import pack
from tracker.audit.keys import SigningKey, keygen
from tracker.audit.seal import seal
from tracker.audit.verify import verify
from tracker.models import TRANSITIONS
from tracker.reports import views

MEGABYTES = 300
"""At most, of each."""
BEGAN = 1_693_526_400  # 2023-09-01, in epoch seconds
SPAN = 3 * 365 * 86400
GAPS = 300  # for each cluster, a hundred minutes each


class Sql:
    """What the two databases say differently, for building rows out of the number ``i``."""

    def __init__(self, dialect: str, jobs: int) -> None:
        self.sqlite = dialect == "sqlite"
        self.jobs = jobs

    def instant(self, seconds: str, micros: str = "i * 7919 % 1000000") -> str:
        """Return the instant at *seconds* of the epoch and *micros*."""
        if self.sqlite:
            return f"(strftime('%Y-%m-%d %H:%M:%S', {seconds}, 'unixepoch') || printf('.%06d', {micros}))"
        return f"(to_timestamp({seconds}) + ({micros}) * interval '1 microsecond')"

    def day(self, seconds: str) -> str:
        if self.sqlite:
            return f"strftime('%Y-%m-%d', {seconds}, 'unixepoch')"
        return f"CAST(to_timestamp({seconds}) AS date)"

    def numbers(self, count: int) -> str:
        """Return a FROM item with the column i from 1 to *count*."""
        if self.sqlite:
            counted = f"SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}"
            return f"(WITH RECURSIVE n(i) AS ({counted}) SELECT i FROM n)"
        return f"(SELECT i FROM generate_series(CAST(1 AS bigint), {count}) AS n(i)) AS n"


class Histories(Sql):
    """Legal histories: created, waiting, running, then done (90 of 100 jobs), error or withdrawn; 2 never asked."""

    @property
    def submitted_on(self) -> str:
        """The day of submission: none after the 28th, so that its deadline is the same day a month later."""
        if self.sqlite:
            return "date('2023-09-01', '+' || (i % 36) || ' months', '+' || (i % 28) || ' days')"
        return "(timestamp '2023-09-01' + (i % 36) * interval '1 month' + (i % 28) * interval '1 day')"

    @property
    def submitted(self) -> str:
        epoch = f"CAST(strftime('%s', {self.submitted_on}) AS INTEGER)"
        if not self.sqlite:
            epoch = f"CAST(extract(epoch FROM {self.submitted_on}) AS bigint)"
        return f"({epoch} + i * CAST(7919 AS bigint) % 86400)"

    def deadline(self) -> tuple[str, str]:
        if self.sqlite:
            day = f"date({self.submitted_on}, '+1 month')"
            return day, f"(date({day}, '+1 day') || ' 00:00:00.000000')"
        day = f"CAST({self.submitted_on} + interval '1 month' AS date)"
        return day, f"(CAST({day} + 1 AS timestamp) AT TIME ZONE 'UTC')"

    def seen(self, step: int) -> str:
        """Return the epoch seconds of transition *step*, in 1 to 4."""
        waits = ("2", "90000 + i % 7919", "450000 + i * 31 % 86400", "600000 + i * 17 % 600000")
        return f"({self.submitted} + 60 + i % 900 + {waits[step - 1]})"

    def last_seen(self, step: int) -> str:
        return f"({self.seen(step)} - 30 - i * 13 % 3600)"

    def statements(self) -> Iterator[str]:
        """Yield the statements that build everything but the seals."""
        for name in ("wa", "wb", "wc"):
            yield (
                "INSERT INTO sources (cluster, base_url, path, timezone, archive_days, lost_after_polls,"
                f" lost_after_seconds, legal_timezone, version, recorded_at) VALUES ('{name}', 'https://{name}.example',"
                f" '/p', 'UTC', 5, 5, 172800, 'UTC', '1', {self.instant(str(BEGAN), '0')})"
            )
            yield (
                "INSERT INTO gaps (cluster, began_at, ended_at, cause, detail)"
                f" SELECT '{name}', {self.instant(f'{BEGAN} + i * {SPAN // GAPS}')},"
                f" {self.instant(f'{BEGAN} + i * {SPAN // GAPS} + 6000')}, 'unreachable', 'timeout'"
                f" FROM {self.numbers(GAPS)}"
            )
        jid = "printf('%08x-34ab-406a-a4db-b30b0247837a', i)"
        if not self.sqlite:
            jid = "lpad(to_hex(i), 8, '0') || '-34ab-406a-a4db-b30b0247837a'"
        on, at = self.deadline()
        yield (
            "INSERT INTO jobs (cluster, jid, kind, reference, submitted_at, registered_at, registered_by, deadline_on,"
            f" deadline_at) SELECT CASE i % 3 WHEN 0 THEN 'wa' WHEN 1 THEN 'wb' ELSE 'wc' END, {jid},"
            f" CASE i % 2 WHEN 0 THEN 'export' ELSE 'removal' END, 'case-' || ((i + 1) / 2),"
            f" {self.instant(self.submitted)}, {self.instant(self.submitted + ' + 60 + i % 900')}, 'benchmark', {on},"
            f" {at} FROM {self.numbers(self.jobs)} ORDER BY i"
        )
        columns = (
            "job_id, seq, action, from_status, to_status, from_state, to_state, last_seen_at, observed_at, server_date,"
            " source_id, polls, actor, reason"
        )
        words = ("created", "waiting", "running")
        for step in (1, 2, 3, 4):
            before = f"'{words[step - 2]}'" if step > 1 else "NULL"
            seen = self.instant(self.last_seen(step)) if step > 1 else "NULL" if self.sqlite else "NULL::timestamptz"
            acted, word, state = "1 = 0", f"'{words[min(step, 3) - 1]}'", "'open'"
            if step == 4:
                acted = "i % 100 >= 95"
                word = f"CASE WHEN {acted} THEN 'running' WHEN i % 100 >= 90 THEN 'error' ELSE 'done' END"
                state = f"CASE WHEN {acted} THEN 'withdrawn' WHEN i % 100 >= 90 THEN 'failed' ELSE 'done' END"
            yield (
                f"INSERT INTO transitions ({columns}) SELECT i, {step},"
                f" CASE WHEN {acted} THEN 'withdrawn' ELSE 'observed' END, {before}, {word}, 'open', {state}, {seen},"
                f" {self.instant(self.seen(step))},"
                f" CASE WHEN NOT ({acted}) THEN {self.instant(self.seen(step), '0')} END,"
                f" CASE WHEN NOT ({acted}) THEN 1 + i % 3 END, {step * step}, CASE WHEN {acted} THEN 'bob' END,"
                f" CASE WHEN {acted} THEN 'a sentence of a person' END FROM {self.numbers(self.jobs)} WHERE i % 50 > 0"
                " ORDER BY i"
            )
        acted = "t.action = 'withdrawn'"
        yield (
            "UPDATE jobs SET state = t.to_state, status = t.to_status, seq = 4, polls = 20, status_polls = 1,"
            f" status_after = CASE WHEN {acted} THEN r.last_seen_at ELSE t.last_seen_at END,"
            f" status_by = CASE WHEN {acted} THEN r.observed_at ELSE t.observed_at END, seen_at = t.last_seen_at,"
            f" ended_after = CASE WHEN {acted} THEN t.observed_at ELSE t.last_seen_at END, ended_by = t.observed_at,"
            " due_at = NULL FROM transitions t, transitions r"
            " WHERE t.job_id = jobs.id AND t.seq = 4 AND r.job_id = jobs.id AND r.seq = 3"
        )
        yield "ANALYZE"


def build(url: str, jobs: int, key: SigningKey) -> None:
    database.upgrade(url)
    engine = database.open_database(url)
    began = monotonic()
    for statement in Histories(engine.dialect.name, jobs).statements():
        with database.writing(engine) as connection:
            database.execute(connection, statement)
    made_at = monotonic()
    seal(engine, key)
    made, sealed = made_at - began, monotonic() - made_at
    print(f"{engine.dialect.name}: {jobs} jobs made in {made:.0f} s, sealed in {sealed:.0f} s", flush=True)
    engine.dispose()


# -- what is measured, each with the URL of a database ---------------------------------------------------------------


def _stream(url: str) -> None:
    with database.reading(database.open_database(url)) as connection:
        query = sa.select(TRANSITIONS).order_by(TRANSITIONS.c.id)
        for _ in connection.execute(query, execution_options={"yield_per": 1000}):
            pass


def _view(url: str, view: str) -> None:
    """Read every column of every row, inside the database."""
    with database.reading(database.open_database(url)) as connection:
        columns = connection.exec_driver_sql(f"SELECT * FROM {view} LIMIT 0").keys()
        lengths = ", ".join(f"sum(length(CAST({name} AS text)))" for name in columns)
        connection.exec_driver_sql(f"SELECT {lengths} FROM {view}").one()


def _report(url: str, *words: str) -> None:
    os.environ |= {"TRACKER_DATABASE_URL": url, "TRACKER_CLUSTER": "wa", "TRACKER_API_KEY": "none"}
    if code := cli.main(["report", *words, "--output", os.devnull]):
        raise SystemExit(code)


def _verify(url: str) -> None:
    with database.reading(database.open_database(url)) as connection:
        report = verify(connection, zone=ZoneInfo("UTC"))
    if not report.is_good:
        raise SystemExit("\n".join(finding.message for finding in report.findings[:10]))


def _export(url: str, folder: str) -> None:
    pack.export(database.open_database(url), Path(folder, "pack"), zone=ZoneInfo("UTC"))


def compare(url: str, folder: str) -> bool:
    """Print what each takes on one database, and return whether all bounds were kept."""
    stream = measure(_stream, url).seconds  # and warm
    works: list[tuple[str, float, Callable[..., None], tuple[str, ...]]] = [
        *((view, 60, _view, (view,)) for view in views.VIEWS),
        ("report durations", 60, _report, ("durations", "--format", "csv")),
        ("the page", 60, _report, ("--format", "html")),
        ("audit verify", 6 * stream, _verify, ()),
        ("audit export", 12 * stream, _export, (folder,)),
    ]
    good = True
    for name, most, work, arguments in works:
        took = measure(work, url, *arguments)
        kept = took.seconds <= most and took.megabytes <= MEGABYTES
        good &= kept
        print(
            f"{name:20} {took.seconds:7.2f} s = {took.seconds / stream:5.2f} x {stream:.2f} s (at most {most:.0f} s),"
            f" {took.megabytes:.0f} MB (at most {MEGABYTES}) {'ok' if kept else 'MISSED'}",
            flush=True,
        )
    for option in ([], ["--reports"]):
        began = monotonic()
        command = ["sh", "verify.sh", "--unsigned", *option]
        subprocess.run(command, check=True, capture_output=True, cwd=f"{folder}/pack")
        print(f"verify.sh {' '.join(option):10} {monotonic() - began:7.2f} s", flush=True)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=200_000)
    parser.add_argument("--only", choices=("sqlite", "postgresql"))
    options = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory() as folder, serve_postgres() as server:
        keygen(Path(folder, "key"))
        key = SigningKey.load(Path(folder, "key"))
        for dialect in ("sqlite", "postgresql"):
            if options.only in (None, dialect):
                Path(folder, dialect).mkdir()
                url = f"sqlite:///{folder}/record.db" if dialect == "sqlite" else server()
                build(url, options.jobs, key)
                good &= compare(url, f"{folder}/{dialect}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
