"""How long the audit takes over a million transitions, as a multiple of streaming them out of the database.

    .venv/bin/python -m tests.benchmarks.audit [--jobs N] [--rounds N] [--only sqlite|postgresql]

Builds N jobs (200,000 by default) with five transitions each on both databases, guards and CHECKs at work, seals them
with a key, and then measures by turns, each in a process of its own: the transitions streamed with SQLAlchemy Core as
the models have them, and `audit verify` or `audit export`. Prints ratios and the most memory that each took. Then
verify.sh reads the pack under each shell that this machine has, with checks.sql and without. Read the ratios: machines
are noisy. Exit status 1: a bound was missed, or something was found.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tests.benchmarks.apart import measure
from tests.benchmarks.reports import Sql
from tests.conftest import serve_postgres
from tracker import database
from tracker.audit import pack
from tracker.audit.keys import SigningKey, keygen
from tracker.audit.seal import seal
from tracker.audit.verify import verify
from tracker.models import TRANSITIONS

MEGABYTES = 300
"""At most, of each."""
SEAL = 4
"""At most so many times the stream's time: not asked for, but a plan for all rows at each piece of them took 50."""
SCRIPT_SECONDS = 120
"""At most, of verify.sh without --reports."""


class Rows(Sql):
    """Legal histories: created, waiting, running, then done (90 of 100 jobs), error or withdrawn; 2 never asked."""

    @property
    def day(self) -> str:  # type: ignore[override]  # no day of a month after the 28th: its deadline is a month later
        if self.sqlite:
            return "date('2023-09-01', '+' || (i % 36) || ' months', '+' || (i % 28) || ' days')"
        return "(timestamp '2023-09-01' + (i % 36) * interval '1 month' + (i % 28) * interval '1 day')"

    @property
    def submitted(self) -> str:
        epoch = f"CAST(strftime('%s', {self.day}) AS INTEGER)"
        if not self.sqlite:
            epoch = f"CAST(extract(epoch FROM {self.day}) AS bigint)"
        return f"({epoch} + i * CAST(7919 AS bigint) % 86400)"

    def deadline(self) -> tuple[str, str]:
        if self.sqlite:
            day = f"date({self.day}, '+1 month')"
            return day, f"(date({day}, '+1 day') || ' 00:00:00.000000')"
        day = f"CAST({self.day} + interval '1 month' AS date)"
        return day, f"(CAST({day} + 1 AS timestamp) AT TIME ZONE 'UTC')"

    def seen(self, step: int) -> str:
        waits = ("2", "90000 + i % 7919", "450000 + i * 31 % 86400", "600000 + i * 17 % 600000")
        return f"({self.submitted} + 60 + i % 900 + {waits[step - 1]})"

    def statements(self) -> Iterator[str]:
        """Yield the statements that build everything but the seals."""
        for name in ("a", "b", "c"):
            yield (
                "INSERT INTO sources (cluster, base_url, path, timezone, archive_days, lost_after_polls,"
                f" lost_after_seconds, legal_timezone, version, recorded_at) VALUES ('w{name}', 'https://w{name}.example',"
                f" '/p', 'UTC', 5, 5, 172800, 'UTC', '1', {self.instant('1693526400', '0')})"
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
            acted, failed = ("i % 100 >= 95", "i % 100 >= 90") if step == 4 else ("1 = 0", "1 = 0")
            word = (
                f"'{words[step - 1]}'"
                if step < 4
                else f"CASE WHEN {acted} THEN 'running' WHEN {failed} THEN 'error' ELSE 'done' END"
            )
            state = (
                "'open'"
                if step < 4
                else f"CASE WHEN {acted} THEN 'withdrawn' WHEN {failed} THEN 'failed' ELSE 'done' END"
            )
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


def build(url: str, jobs: int, key: SigningKey) -> float:
    """Build the jobs, and return how many seconds their sealing took."""
    database.upgrade(url)
    engine = database.open_database(url)
    for statement in Rows(engine.dialect.name, jobs).statements():
        began = monotonic()
        with database.writing(engine) as connection:
            database.execute(connection, statement)
        print(f"    {monotonic() - began:6.1f} s  {statement[:60]} …", file=sys.stderr, flush=True)
    began = monotonic()
    made = seal(engine, key)
    took = monotonic() - began
    print(f"    {took:6.1f} s  sealed {made.checkpoint.rows if made else 0} rows", file=sys.stderr, flush=True)
    engine.dispose()
    return took


def _stream(url: str) -> None:
    engine = database.open_database(url)
    with database.reading(engine) as connection:
        query = sa.select(TRANSITIONS).order_by(TRANSITIONS.c.id)
        for _ in connection.execute(query, execution_options={"yield_per": 1000}):
            pass


def _verify(url: str) -> None:
    with database.reading(database.open_database(url)) as connection:
        report = verify(connection, zone=ZoneInfo("UTC"))
    if not report.is_good:
        raise SystemExit("\n".join(finding.message for finding in report.findings[:10]))


def _export(url: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pack.export(database.open_database(url), Path(folder, "pack"), zone=ZoneInfo("UTC"))


MEASURES: dict[str, tuple[Callable[[str], None], float]] = {"verify": (_verify, 6), "export": (_export, 12)}
"""By name: what is measured, and at most how many times the stream's time it may take."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("sqlite", "postgresql"))
    options = parser.parse_args()
    missed = 0
    with tempfile.TemporaryDirectory() as folder, serve_postgres() as server:
        keygen(Path(folder, "key"))
        key = SigningKey.load(Path(folder, "key"))
        for dialect in ("sqlite", "postgresql"):
            if options.only in (None, dialect):
                Path(folder, dialect).mkdir()
                url = f"sqlite:///{folder}/audit.db" if dialect == "sqlite" else server()
                sealing = build(url, options.jobs, key)
                missed += compare(dialect, url, options.rounds, sealing)
                missed += verify_pack(dialect, url, Path(folder, dialect), key)
    return 1 if missed else 0


def compare(dialect: str, url: str, rounds: int, sealing: float) -> int:
    """Print the ratios on one database, and return how many bounds were missed."""
    stream = measure(_stream, url).seconds  # and warm
    missed = int(sealing > SEAL * stream)
    verdict = "MISSED" if missed else "ok"
    ratio = f"{sealing / stream:4.2f} x {stream:.2f} s"
    print(f"{dialect:10} seal     {sealing:7.2f} s = {ratio} (at most {SEAL}) {verdict}", flush=True)
    for name, (function, most) in MEASURES.items():
        turns = [(measure(_stream, url), measure(function, url)) for _ in range(rounds)]
        base, took = (statistics.median(turn[side].seconds for turn in turns) for side in (0, 1))
        base_cpu, cpu = (statistics.median(turn[side].cpu_seconds for turn in turns) for side in (0, 1))
        megabytes = max(turn[1].megabytes for turn in turns)
        is_missed = took > most * base or megabytes > MEGABYTES
        missed += is_missed
        print(
            f"{dialect:10} {name:8} {took:7.2f} s = {took / base:4.2f} x {base:.2f} s (at most {most}; CPU here"
            f" {cpu / base_cpu:4.2f} x {base_cpu:.2f} s), {megabytes:.0f} MB (at most {MEGABYTES})"
            f" {'MISSED' if is_missed else 'ok'}",
            flush=True,
        )
    return missed


def verify_pack(dialect: str, url: str, folder: Path, key: SigningKey) -> int:
    """Print how long verify.sh takes over a pack under each shell, and return how often that was too long."""
    engine = database.open_database(url)
    pack.export(engine, folder / "pack", zone=ZoneInfo("UTC"), key=key)
    engine.dispose()
    missed = 0
    for shell in ("dash", "bash", "busybox sh"):
        name, *rest = shell.split()
        if shutil.which(name) is None:
            print(f"{dialect:10} verify.sh: this machine has no {name}", flush=True)
            continue
        tools = folder / name
        tools.mkdir()
        path = os.environ["PATH"]
        if rest:
            subprocess.run([name, "--install", "-s", tools], check=True)
            path = f"{tools}{os.pathsep}{path}"
        for option in ([], ["--reports"]):
            began = monotonic()
            command = [*shell.split(), "verify.sh", "--key-id", key.public.id, *option]
            environment = {**os.environ, "PATH": path}
            done = subprocess.run(command, capture_output=True, text=True, cwd=folder / "pack", env=environment)
            took = monotonic() - began
            if done.returncode:
                raise SystemExit(done.stdout + done.stderr)
            is_missed = not option and took > SCRIPT_SECONDS
            missed += is_missed
            bound = "" if option else f" (at most {SCRIPT_SECONDS} s) {'MISSED' if is_missed else 'ok'}"
            print(f"{dialect:10} {shell} verify.sh {' '.join(option)} {took:7.2f} s{bound}", flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main())
