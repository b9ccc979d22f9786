"""How long each view takes to read whole, as a multiple of one plain pass over ``transitions``, in one run.

    .venv/bin/python -m tests.benchmarks.reports [--jobs N] [--rounds N] [--only sqlite|postgresql] [--keep FOLDER]

Builds N jobs (a million by default) with five transitions each on both databases, guards and CHECKs at work, then sums
over every column of each view inside the database. Prints each ratio and each view's query plan; last, what memory
`tracker report durations` takes, and how long the page. Read the ratios: machines are noisy. Exit status 1: a bound was
missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import sqlalchemy as sa

from tests.benchmarks import apart
from tests.conftest import serve_postgres
from tracker import cli, database
from tracker.reports import views

BASELINE = "SELECT count(*), min(observed_at), max(observed_at), sum(length(to_status)) FROM transitions"
BOUNDS = dict.fromkeys(views.VIEWS, 6.0) | {
    "report_monthly": 4,
    "report_clusters": 4,
    "report_statuses": 40,  # readable rather than fast, as are those that follow: a whole report may take a minute
    "report_transitions": 80,
    **dict.fromkeys(("report_gaps", "report_coverage"), float("inf")),
}

DURATIONS_MEGABYTES = 300
PAGE_SECONDS = 60
"""At most, of `report durations` and of the page of all reports."""

BEGAN = 1_693_526_400  # 2023-09-01: the first submission, in epoch seconds
SPAN = 3 * 365 * 86400  # the last comes three years later
GAPS = 300  # for each cluster, a hundred minutes each
SEALS = 1000


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

    def digest(self, number: str) -> str:
        """Return 64 hexadecimal digits that tell one number from another."""
        return f"printf('%064d', {number})" if self.sqlite else f"lpad(CAST({number} AS text), 64, '0')"

    def numbers(self, count: int) -> str:
        """Return a FROM item with the column i from 1 to *count*."""
        if self.sqlite:
            counted = f"SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}"
            return f"(WITH RECURSIVE n(i) AS ({counted}) SELECT i FROM n)"
        return f"(SELECT i FROM generate_series(CAST(1 AS bigint), {count}) AS n(i)) AS n"

    @property
    def newest(self) -> int:
        """The jobs after this one are still open."""
        return self.jobs - self.jobs // 100

    @property
    def submitted(self) -> str:
        return f"({BEGAN} + CAST(i AS bigint) * {SPAN} / {self.jobs})"

    def seen(self, step: int) -> str:
        """Return the epoch seconds of transition *step*, in 1 to 4."""
        waits = ("2", "40000 + i % 7919", "450000 + i * 31 % 86400", "470000 + i * 17 % 600000")
        return f"({self.submitted} + 60 + i % 900 + {waits[step - 1]})"

    def last_seen(self, step: int) -> str:
        return f"({self.seen(step)} - 30 - i * 13 % 3600)"

    def fill(self) -> Iterator[str]:
        """Yield the statements that build everything."""
        for name in ("a", "b", "c"):
            yield (
                "INSERT INTO sources (cluster, base_url, path, timezone, archive_days, lost_after_polls,"
                f" lost_after_seconds, legal_timezone, version, recorded_at)"
                f" VALUES ('w{name}', 'https://w{name}.example', '/p', 'UTC', 5, 5, 172800, 'UTC', '1',"
                f" {self.instant(str(BEGAN), '0')})"
            )
            yield (
                "INSERT INTO gaps (cluster, began_at, ended_at, cause, detail)"
                f" SELECT 'w{name}', {self.instant(f'{BEGAN} + i * {SPAN // GAPS}')},"
                f" {self.instant(f'{BEGAN} + i * {SPAN // GAPS} + 6000')}, 'unreachable', 'timeout'"
                f" FROM {self.numbers(GAPS)}"
            )
            yield (
                "INSERT INTO clusters (cluster, answered_at, gap_began_at, gap_cause, next_request_at) VALUES"
                f" ('w{name}', {self.instant(str(BEGAN + SPAN), '0')}, {self.instant(str(BEGAN + SPAN + 9000), '0')},"
                f" 'unreachable', {self.instant(str(BEGAN + SPAN), '0')})"
            )
        cluster = "CASE i % 3 WHEN 0 THEN 'wa' WHEN 1 THEN 'wb' ELSE 'wc' END"
        jid = (
            "printf('%08x-34ab-406a-a4db-b30b0247837a', i * 2654435761 % 4294967296)"
            if self.sqlite
            else "lpad(to_hex(CAST(i AS bigint) * 2654435761 % 4294967296), 8, '0') || '-34ab-406a-a4db-b30b0247837a'"
        )
        # A job in eight has no submission, one in two no receipt; two jobs have one reference.
        yield (
            "INSERT INTO jobs (cluster, jid, kind, reference, submitted_at, received_at, registered_at, registered_by,"
            f" deadline_on, deadline_at) SELECT {cluster}, {jid}, CASE i % 2 WHEN 0 THEN 'export' ELSE 'removal' END,"
            f" 'case-' || ((i + 1) / 2), CASE WHEN i % 8 > 0 THEN {self.instant(self.submitted)} END,"
            f" CASE WHEN i % 2 = 0 THEN {self.instant(self.submitted + ' - 86400')} END,"
            f" {self.instant(self.submitted + ' + 60 + i % 900')}, 'benchmark',"
            f" {self.day(self.submitted + ' + 2592000')}, {self.instant(self.submitted + ' + 2592000', '0')}"
            f" FROM {self.numbers(self.jobs)} ORDER BY i"
        )
        columns = (
            "job_id, seq, action, from_status, to_status, from_state, to_state, last_seen_at, observed_at, server_date,"
            " source_id, polls"
        )
        words = ("created", "waiting", "running")
        for step, word in enumerate(words, 1):
            before = f"'{words[step - 2]}'" if step > 1 else "NULL"
            seen = self.instant(self.last_seen(step)) if step > 1 else "CAST(NULL AS timestamptz)"
            if self.sqlite and step == 1:
                seen = "NULL"
            yield (
                f"INSERT INTO transitions ({columns}) SELECT i, {step}, 'observed', {before}, '{word}', 'open', 'open',"
                f" {seen}, {self.instant(self.seen(step))}, {self.instant(self.seen(step), '0')}, 1 + i % 3,"
                f" {step * step} FROM {self.numbers(self.jobs)} ORDER BY i"
            )
        # The fifth: of a hundred jobs 84 done, 4 failed, 3 withdrawn, 3 attested, 6 vanished and lost; of the newest
        # hundredth 6 in 10 amended and 4 in 10 of an unknown status, all open: no job stays open for a year.
        last = (
            f"CASE WHEN i > {self.newest} THEN CASE WHEN i % 100 < 60 THEN '{{5}}' ELSE '{{6}}' END"
            " WHEN i % 100 < 84 THEN '{0}' WHEN i % 100 < 88 THEN '{1}' WHEN i % 100 < 91 THEN '{2}'"
            " WHEN i % 100 < 94 THEN '{3}' ELSE '{4}' END"
        )
        action = last.format("observed", "observed", "withdrawn", "attested", "observed", "amended", "observed")
        status = last.format("done", "error", "running", "running", "not_found", "running", "finishing")
        state = last.format("done", "failed", "withdrawn", "attested", "lost", "open", "open")
        anomaly = last.format("", "", "", "", "vanished", "", "unknown_status")
        now_received = self.instant(self.submitted + " - 172800")
        first_submitted = f"CASE WHEN i % 8 > 0 THEN {self.instant(self.submitted)} END"
        amended = f"(i > {self.newest} AND i % 100 < 60)"
        attested = f"(i <= {self.newest} AND i % 100 BETWEEN 91 AND 93)"
        acted = f"({amended} OR i <= {self.newest} AND i % 100 BETWEEN 88 AND 93)"
        seen_at, observed_at = self.instant(self.last_seen(4)), self.instant(self.seen(4))
        yield (
            f"INSERT INTO transitions ({columns}, claimed_at, actor, anomaly, reason, kind, reference, received_at,"
            f" submitted_at) SELECT i, 4, {action}, 'running', {status}, 'open', {state}, {seen_at}, {observed_at},"
            f" CASE WHEN NOT ({acted}) THEN {self.instant(self.seen(4), '0')} END,"
            f" CASE WHEN NOT ({acted}) THEN 1 + i % 3 END, 20, CASE WHEN {attested} THEN {seen_at} END,"
            f" CASE WHEN {acted} THEN 'benchmark' END, nullif({anomaly}, ''),"
            f" CASE WHEN {acted} THEN 'a sentence of a person' END,"
            f" CASE WHEN {amended} THEN CASE i % 2 WHEN 0 THEN 'export' ELSE 'removal' END END,"
            f" CASE WHEN {amended} THEN 'case-' || ((i + 1) / 2) END, CASE WHEN {amended} THEN {now_received} END,"
            f" CASE WHEN {amended} THEN {first_submitted} END FROM {self.numbers(self.jobs)} ORDER BY i"
        )
        status, state, attested, amended = (
            text.replace("i %", "jobs.id %").replace("i >", "jobs.id >").replace("i <", "jobs.id <")
            for text in (status, state, attested, amended)
        )
        ended_after = f"CASE WHEN {attested} OR {state} = 'open' THEN NULL ELSE {{seen}} END"
        ended_by = f"CASE WHEN {attested} THEN {{seen}} WHEN {state} = 'open' THEN NULL ELSE {{observed}} END"
        times = {"seen": "t.last_seen_at", "observed": "t.observed_at"}
        yield (
            f"UPDATE jobs SET state = {state}, status = {status}, seq = 3, polls = 20,"
            f" status_after = CASE WHEN {status} = 'running' THEN r.last_seen_at ELSE t.last_seen_at END,"
            f" status_by = CASE WHEN {status} = 'running' THEN r.observed_at ELSE t.observed_at END,"
            f" status_polls = 1, seen_at = t.last_seen_at,"
            f" ended_after = {ended_after.format(**times)}, ended_by = {ended_by.format(**times)},"
            f" due_at = CASE WHEN {state} = 'open' THEN t.observed_at END"
            " FROM transitions t, transitions r"
            " WHERE t.job_id = jobs.id AND t.seq = 4 AND r.job_id = jobs.id AND r.seq = 3"
        )
        yield (
            "UPDATE jobs SET seq = 4, received_at = coalesce(t.received_at, jobs.received_at)"
            " FROM transitions t WHERE t.job_id = jobs.id AND t.seq = 4"
        )
        yield (
            "INSERT INTO seals (last_transition_id, last_gap_id, last_source_id, rows, checkpoint,"
            f" checkpoint_sha256, sealed_at) SELECT CAST(i AS bigint) * {5 * self.jobs} / {SEALS}, 0, 0, 0,"
            f" 'tracker checkpoint v2\norigin 0\nnumber ' || i || CASE WHEN i > 1 THEN '\nsha256 '"
            f" || {self.digest('i - 1')} || '  checkpoints/' ELSE '' END, {self.digest('i')},"
            f" {self.instant(str(BEGAN + SPAN))} FROM {self.numbers(SEALS)} ORDER BY i"
        )
        yield "ANALYZE"


def fill(engine: sa.Engine, jobs: int) -> None:
    for statement in Sql(engine.dialect.name, jobs).fill():
        began = monotonic()
        with database.writing(engine) as connection:
            database.execute(connection, statement)
        print(f"    {monotonic() - began:6.1f} s  {statement[:60]} …", file=sys.stderr, flush=True)
    if engine.dialect.name == "postgresql":  # as autovacuum keeps a database that grows slowly
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM FULL jobs")  # two updates of all rows at once leave it thrice its size
            connection.exec_driver_sql("VACUUM (ANALYZE)")
    else:
        with engine.connect() as connection:
            connection.exec_driver_sql("COMMIT")
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")


def whole(connection: sa.Connection, view: str) -> str:
    """Return the query that reads every column of every row of *view*, inside the database."""
    if connection.dialect.name == "sqlite":
        rows = connection.exec_driver_sql(f"PRAGMA table_info({view})")
        columns = [(row[1], "") for row in rows]
    else:
        query = f"SELECT column_name, data_type FROM information_schema.columns WHERE table_name = '{view}'"
        columns = [(row[0], row[1]) for row in connection.exec_driver_sql(query)]

    def total(name: str, kind: str) -> str:
        if kind in ("", "text", "character varying"):
            number = name.startswith(("seconds", "uncertainty", "age", "covered", "longest", "median", "p95", "days"))
            return f"sum({name})" if number else f"sum(length({name}))"
        if kind.startswith("timestamp"):
            return f"sum(date_part('epoch', {name}))"
        return f"sum({name} - DATE '2000-01-01')" if kind == "date" else f"sum({name})"

    return f"SELECT count(*), {', '.join(total(name, kind) for name, kind in columns)} FROM {view}"


def timed(connection: sa.Connection, query: str) -> float:
    began = monotonic()
    connection.exec_driver_sql(query.replace("%", "%%") if connection.dialect.name != "sqlite" else query).all()
    return monotonic() - began


def plan(connection: sa.Connection, view: str) -> str:
    query = whole(connection, view)
    if connection.dialect.name == "postgresql":
        return "\n".join(f"    {row[0]}" for row in connection.exec_driver_sql(f"EXPLAIN (COSTS OFF) {query}"))
    depth = {0: 0}
    lines = []
    for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}"):
        depth[row[0]] = depth[row[1]] + 1
        lines.append(f"    {'  ' * (depth[row[0]] - 1)}{row[3]}")
    return "\n".join(lines)


def measure(engine: sa.Engine, rounds: int, names: list[str], plans: bool) -> int:
    """Print each view's ratio and plan, and return how many bounds were missed."""
    missed = 0
    with database.reading(engine) as connection:
        timed(connection, BASELINE)  # warm
        for name in names:
            query = whole(connection, name)
            base, took = [], []
            for _ in range(rounds):
                base.append(timed(connection, BASELINE))
                took.append(timed(connection, query))
            ratio = statistics.median(took) / statistics.median(base)
            missed += ratio > BOUNDS[name]
            verdict = "MISSED" if ratio > BOUNDS[name] else "ok"
            print(
                f"{engine.dialect.name:10} {name:20} {statistics.median(took):7.2f} s = {ratio:5.1f} x"
                f" {statistics.median(base):5.2f} s (at most {BOUNDS[name]}) {verdict}",
                flush=True,
            )
            if plans:
                print(plan(connection, name), flush=True)
    return missed


def _report(url: str, *words: str) -> None:
    os.environ |= {"TRACKER_DATABASE_URL": url, "TRACKER_CLUSTER": "wa", "TRACKER_API_KEY": "none"}
    if code := cli.main(["report", *words, "--output", os.devnull]):
        raise SystemExit(code)


def measure_commands(url: str) -> int:
    """Print what the two commands take that read the whole record, and return how many bounds were missed."""
    durations = apart.measure(_report, url, "durations", "--format", "csv")
    page = apart.measure(_report, url, "--format", "html")
    missed = [durations.megabytes > DURATIONS_MEGABYTES, page.seconds > PAGE_SECONDS]
    texts = [
        f"report durations {durations.seconds:.2f} s, {durations.megabytes:.0f} MB (at most {DURATIONS_MEGABYTES} MB)",
        f"the page {page.seconds:.2f} s (at most {PAGE_SECONDS} s), {page.megabytes:.0f} MB",
    ]
    for text, is_missed in zip(texts, missed, strict=True):
        print(f"{sa.make_url(url).get_backend_name():10} {text} {'MISSED' if is_missed else 'ok'}", flush=True)
    return sum(missed)


@contextmanager
def databases(folder: str | None, only: str | None) -> Iterator[dict[str, str]]:
    """Yield the URLs of empty databases, or of those that an earlier run left in *folder* (SQLite only)."""
    with tempfile.TemporaryDirectory() as temporary, serve_postgres() as server:
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
        made = {"sqlite": f"sqlite:///{folder or temporary}/reports.db"}
        if only != "sqlite":
            made["postgresql"] = server()
        yield {name: url for name, url in made.items() if only in (None, name)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("sqlite", "postgresql"))
    parser.add_argument("--keep", metavar="FOLDER", help="leave the SQLite database there, for the next run to read")
    parser.add_argument("--views", nargs="*", default=list(views.VIEWS), choices=views.VIEWS)
    options = parser.parse_args()
    missed = 0
    with databases(options.keep, options.only) as urls:
        for dialect, url in urls.items():
            is_kept = dialect == "sqlite" and options.keep and Path(options.keep, "reports.db").exists()
            if not is_kept:
                database.upgrade(url)
            engine = database.open_database(url)
            if not is_kept:
                fill(engine, options.jobs)
            missed += measure(engine, options.rounds, options.views, plans=True)
            engine.dispose()
            missed += measure_commands(url)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
