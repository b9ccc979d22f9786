"""A simulated year: the daemon's real code meets outages, restarts and a vendor that changes.

    python -m tests.soak [--seed N] [--days 365] [--jobs 5000] [--database sqlite|postgresql]

At the end the record is compared with what the vendor knows. `daemon.run`, pollers, sealing, intake, HTTP and the
database are real. APScheduler, threads and the loop of sealing are replaced, and most looks and heartbeats are left
out. Both clocks are simulated; they jump to what is due next. All work is done in one thread, and each request takes
the time that the vendor draws. So a seed gives the same run again, with the same digest of all transitions and gaps.
"""

from __future__ import annotations

import argparse
import csv
import gc
import hashlib
import json
import logging
import math
import os
import random
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from importlib.resources import files
from pathlib import Path
from statistics import mean, median
from types import SimpleNamespace
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

from tests.conftest import serve_postgres
from tests.reference import end_of, month_after
from tests.scripted import cluster_settings
from tracker import clusters, daemon, database, poller
from tracker.audit.deliver import Courier
from tracker.audit.keys import SigningKey, keygen
from tracker.audit.seal import seal
from tracker.audit.sealing import Sealing
from tracker.intake import register
from tracker.models import JOBS
from tracker.settings import Settings
from tracker.status import Kind

START = datetime(2025, 1, 7, tzinfo=UTC)  # the whole year is past: guards refuse times in the future
SECOND = 1_000_000  # the simulated time is a whole number of microseconds since START
HOUR, DAY = 3600 * SECOND, 86_400 * SECOND
ZONES = {"w1": ZoneInfo("Europe/Stockholm"), "w2": ZoneInfo("America/New_York")}
LOOK = 45 * SECOND  # between looks, in place of one second, so that a look finds several polls
TIMEOUT = timedelta(seconds=10)  # of a request
QUIET = 6 * DAY  # at the end there are no faults, so that the daemon sees all jobs that ended
VALID = "valid"
KINDS = {  # how the vendor fails, and the cause of the gap; r: with Retry-After
    **dict.fromkeys(("reset", "hang", "500", "502", "503", "404", "302"), "unreachable"),
    **dict.fromkeys(("401", "403"), "key_refused"),
    **dict.fromkeys(("429", "429r", "503r"), "rate_limited"),
    **dict.fromkeys(("400", "garbage", "cut", "other"), "bad_answer"),
}
NAMES = [VALID, *KINDS]
AT_ONCE = {"404", "302", "401", "403", "429", "429r", "503r"}  # one such failure is enough for a gap
NEVER = "poll_crashed record_failed polling_failed stop_timed_out lease_lost answer_discarded clock_stepped"
NEVER += " stood_still database_unavailable sealing_failed"  # events that nothing in the simulation explains


def at(us: float) -> datetime:
    return START + timedelta(microseconds=us)


def us_of(instant: datetime | str) -> int:
    """Return an instant, also one from a CSV file, as simulated time."""
    return ((datetime.fromisoformat(instant) if isinstance(instant, str) else instant) - START) // timedelta.resolution


class Killed(BaseException):
    """The process ends here, as by SIGKILL: nothing more is written."""


class World:
    """The simulated time; *is_dead*: the process is being killed."""

    us, is_dead = 0, False

    def monotonic(self) -> float:
        return 1000 + self.us / SECOND

    def now(self, connection: object = None) -> datetime:
        """Return the time, in place of `database.now`: each transaction that writes history asks for it."""
        if self.is_dead:
            raise Killed
        return at(self.us)


def one_thread(world: World) -> SimpleNamespace:
    """Return what replaces ``threading``: a thread does its work when it is started, and a wait takes no real time."""

    class Event(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            world.us += 0 if self.is_set() else math.ceil((timeout or 0) * SECOND)
            return self.is_set()

    class Thread(threading.Thread):
        start = threading.Thread.run

        def join(self, timeout: float | None = None) -> None:
            pass

    return SimpleNamespace(Event=Event, Thread=Thread)


class Fate(NamedTuple):
    """What truly becomes of a job, in simulated time."""

    number: int
    jid: str
    cluster: str
    kind: Kind
    submitted_at: int
    received_at: int | None
    registered_at: int
    steps: list[tuple[int, str]]  # since when it has each status; before the first: ``not_found``
    end: str  # the state that it must end in
    ends_at: int  # a lost job existed until then

    def status_at(self, us: int) -> str:
        place = bisect_right(self.steps, us, key=lambda step: step[0])
        return self.steps[place - 1][1] if place else "not_found"


class Vendor:
    """The fake Elevate. It draws fates, outages and faults from the seed, the jid and the simulated time."""

    def __init__(self, world: World, seed: int, days: int, jobs: int) -> None:
        self.world, self.seed, self.days = world, seed, days
        self.kill_after: int | None = None  # requests
        luck, end = random.Random(f"vendor {seed}"), days * DAY
        # Since when jobs start how many days and hours after their submission.
        moves = [(0, 5, 0.0), (luck.uniform(0.25, 0.4) * end, 5, luck.uniform(1, 9))]
        self.batches = [*moves, (luck.uniform(0.55, 0.7) * end, luck.choice((3, 4, 6, 7)), luck.uniform(0, 5))]
        self.outages: dict[str, list[tuple[float, float, str]]] = {name: [] for name in ZONES}  # from, to, how
        for faults in self.outages.values():
            began = 0.0
            while (began := began + luck.expovariate(1 / (5 * DAY))) < end - QUIET:
                lasts = 60 * SECOND * math.exp(luck.uniform(0, math.log(24 * 60 * luck.choice((0.5, 0.5, 2)))))
                faults.append((began, min(began + lasts, end - QUIET), luck.choice(list(KINDS))))
                began += lasts
        self.fates = {fate.jid: fate for fate in map(self._fate, range(jobs))}
        # Of each request the time, the job's number, and the place in NAMES.
        self.log = {name: (array("q"), array("l"), array("b")) for name in ZONES}

    def _fate(self, number: int) -> Fate:
        luck = random.Random(f"job {self.seed} {number}")
        cluster, kind = luck.choices(list(ZONES), (7, 3))[0], luck.choice([Kind.EXPORT, Kind.REMOVAL])
        made = int(luck.random() * (self.days * DAY - HOUR))
        _, days, hours = next(batch for batch in reversed(self.batches) if batch[0] <= made)
        midnight = end_of(at(made).astimezone(ZONES[cluster]).date() + timedelta(days=days - 1), ZONES[cluster])
        waits, runs = made + int(luck.random() * 600 * SECOND), us_of(midnight) + int((hours + luck.random()) * HOUR)
        chance = luck.random()
        runs += int(luck.uniform(8, 40) * DAY) if chance < 0.015 else 0  # stuck
        ends = runs + int(120 * SECOND * 240 ** luck.random())
        end = "error" if 0.03 <= chance < 0.05 else "done"
        first = "created" if kind is Kind.EXPORT else "started"
        steps = [(made, first), (waits, "waiting"), (runs, "running"), (ends, end)]
        between = int(luck.uniform(waits, runs))
        match int(chance * 100):
            case 5 | 6:  # not visible at first
                steps[:2] = [(made + int(luck.random() * 20 * HOUR), "waiting")]
            case 7:  # vanished for a while
                again = min(between + int(luck.uniform(1, 30) * HOUR), runs - 1)
                steps[2:2] = [(between, "not_found"), (again, "waiting")]
            case 8 | 9:  # an undocumented status
                steps.insert(2, (between, "postponed"))
            case 10:  # backwards
                steps[3:] = [(runs + 600 * SECOND, "waiting"), (runs + 3 * HOUR, "running"), (ends + 4 * HOUR, end)]
        ends = steps[-1][0]
        if end == "done" and kind is Kind.EXPORT:
            steps.append((ends + 7 * DAY, "not_found"))
        if chance > 0.98:  # lost on the way; half of them were never there
            steps = [] if chance > 0.99 else [*steps[:2], (between, "not_found")]
            end, ends = "lost", made if chance > 0.99 else between
        received = luck.choice((None, made - int(luck.random() * 5 * DAY), made - int(luck.uniform(18, 29) * DAY)))
        late = luck.choice((0, 0, 1800 * SECOND, 1800 * SECOND, 2 * DAY)) * luck.random()
        jid = f"{luck.getrandbits(32):08x}-{number:04x}-4000-8000-{luck.getrandbits(48):012x}"
        end = "failed" if end == "error" else end
        return Fate(number, jid, cluster, kind, made, received, made + int(late), steps, end, ends)

    @contextmanager
    def serve(self) -> Iterator[str]:
        vendor = self

        class Connection(socketserver.StreamRequestHandler):
            disable_nagle_algorithm = True

            def handle(self) -> None:
                with suppress(ConnectionError):
                    while (line := self.rfile.readline()) and vendor.answer(line.split(b"jid=")[1][:36].decode(), self):
                        pass

        with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Connection) as server:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            yield f"http://127.0.0.1:{server.server_address[1]}"
            server.shutdown()

    def answer(self, jid: str, to: socketserver.StreamRequestHandler) -> bool:
        """Answer one request, in its own simulated time, and return whether the connection stays open."""
        while to.rfile.readline().strip():
            pass
        fate, luck = self.fates[jid], random.Random(f"{self.seed} {jid} {self.world.us}")
        self.world.us += int(luck.uniform(0.005, 0.3) * SECOND)
        now = self.world.us
        fault = next((how for began, ended, how in self.outages[fate.cluster] if began <= now < ended), VALID)
        if fault == VALID and luck.random() < 0.005 and now < self.days * DAY - QUIET:
            fault = luck.choice(list(KINDS))
        for column, value in zip(self.log[fate.cluster], (now, fate.number, NAMES.index(fault)), strict=True):
            column.append(value)
        if self.kill_after is not None:
            self.world.is_dead = self.kill_after == 0
            self.kill_after = None if self.world.is_dead else self.kill_after - 1
        self.world.us += int(luck.uniform(0.005, 0.2) * SECOND)
        body, headers = json.dumps({"jid": fate.jid, "status": fate.status_at(now)}).encode(), ""
        match fault:
            case "hang":  # a byte that comes after the time limit: no real time passes
                self.world.us += us_of(START + TIMEOUT) + SECOND
                to.wfile.write(b"H")
                to.rfile.read()
            case "garbage":
                body = luck.choice((b"", b"<html>", b'{"jid": 1', b"null", body.replace(b"status", b"state")))
            case "other":
                body = body.replace(fate.jid.encode(), b"0" + fate.jid[1:].encode() + b"0")
            case "429r" | "503r":
                headers = f"Retry-After: {luck.choice((1, 30, 600, 7200, 90_000))}\r\n"
            case "302":
                headers = "Location: https://elsewhere.invalid/\r\n"
        if fault not in ("reset", "hang"):
            code, length = int(fault[:3]) if fault[0].isdigit() else 200, len(body) + 9 * (fault == "cut")
            head = f"HTTP/1.1 {code} x\r\nDate: {format_datetime(at(self.world.us), usegmt=True)}\r\n{headers}"
            to.wfile.write(f"{head}Content-Length: {length}\r\n\r\n".encode() + body)
        return fault not in ("reset", "hang", "cut")


class Year:
    """Does APScheduler's work, and what people do: their agenda has the next entry at its end."""

    def __init__(self, world: World, vendor: Vendor, settings: Settings, folder: Path, engine: sa.Engine) -> None:
        self.world, self.vendor, self.settings, self.folder, self.engine = world, vendor, settings, folder, engine
        self.absences = list[tuple[int, int]]()  # no daemon ran
        self.samples = list[tuple[float, int]]()  # RSS in MB, open files
        self._work, self._down_for = list[Any](), 0
        self._stop: daemon.Stop | None = None
        self._look_at = self._seal_at = 0
        luck, days, self.end = random.Random(f"year {vendor.seed}"), vendor.days, vendor.days * DAY
        agenda: list[tuple[int, Callable[[], None]]] = [(self.end // 2, self._change_key)]
        agenda += [(int(vendor.batches[2][0] + 10 * DAY), self._reload)]
        agenda += [(fate.registered_at, partial(self._register, fate)) for fate in vendor.fates.values()]
        agenda += [(day * DAY, self._sample) for day in range(0, days, max(1, days // 73))]
        for _ in range(days // 6):
            lasts = luck.choice((0, 0, 30, 300, 3600, 36_000, 150_000)) * luck.random()
            how = partial(luck.choice((self._end, self._kill)), lasts)
            agenda.append((int(luck.random() * (self.end - QUIET - DAY)), how))
        self.agenda = sorted(((when, n, do) for n, (when, do) in enumerate(agenda) if when < self.end), reverse=True)
        self.agenda.insert(0, (self.end, -1, partial(self._end, 0)))

    def run(self) -> None:
        """Run one daemon after the other until the end."""
        while self.agenda:
            self._stop, self._look_at = daemon.Stop(), self.world.us
            self._stop.wait = self.wait  # type: ignore[method-assign]
            with suppress(Killed):
                beside = lambda new: [partial(self._sealed, new)]  # noqa: E731
                daemon.run(self.settings, stop=self._stop, beside=beside, reload=lambda: self.settings)
                if not self._down_for:
                    raise KeyboardInterrupt
            self._stop, self.world.is_dead, began = None, False, self.world.us
            until, self._down_for = began + self._down_for, 0
            while self.agenda and self.agenda[-1][0] <= until:
                self.world.us = max(self.world.us, self.agenda[-1][0])
                self._work_off()
            self.world.us = max(self.world.us, until)
            self.absences.append((began, self.world.us))

    def scheduler(self, **options: object) -> SimpleNamespace:
        """Return what replaces APScheduler: it notes the work, and `wait` does it."""
        self._work.clear()
        return SimpleNamespace(add_job=lambda *job: self._work.append(job[0]), start=list, get_jobs=list, shutdown=list)

    def wait(self, timeout: float | None = None) -> bool:
        """Look, beat and seal when it is time; at the time of the next entry of the agenda, do that and return."""
        assert self._stop is not None
        while not self._stop.is_set() and self.agenda[-1][0] > self.world.us:
            if self.world.us >= self._seal_at:
                self._seal_at = self.world.us + HOUR // 2
                self._seal(self.settings.seal_after)
            if self.world.us >= self._look_at:
                self._look()
            self.world.us = max(self.world.us, min(self.agenda[-1][0], self._look_at, self._seal_at))
        self._work_off()
        return self._stop.is_set()

    def _look(self) -> None:
        """Look and beat, and note when something is due next. Until then, beats count as sent."""
        look, beat = self._work
        self._lives()
        look()
        beat()
        engine, watch = look.__self__.engine, look.__self__.watch
        _, found = clusters.look(engine, watch)
        due = [(health.paused_until if health.pause_cause else at) for health, at in found.values() if at]
        first = min((us_of(at) for at in due if at), default=self.end)
        self._look_at = self.world.us + max(1, math.ceil((first - self.world.us) / LOOK)) * LOOK

    def _lives(self) -> None:
        """Let the daemon's heartbeats count as sent until now."""
        self._work[0].__self__.watch._last = self.world.now(), self.world.monotonic()

    def submit(self, work: Callable[..., object], *arguments: object) -> None:
        """Send a request, in place of a pool of threads; its answer comes before the next one is sent."""
        work(*arguments)
        if not self.world.is_dead:
            self._lives()

    @contextmanager
    def _sealed(self, settings: Settings, engine: sa.Engine) -> Iterator[None]:
        """Replace the thread of `Sealing`: `wait` does its work."""
        self._sealing, self._courier = Sealing(settings), Courier.of(engine, settings)
        yield
        self._seal(timedelta())

    def _seal(self, seal_after: timedelta) -> None:
        self._sealing._tried(lambda: self._sealing._seal(self.engine, self._courier, seal_after))
        self._sealing._tried(self._courier.deliver)

    def _work_off(self) -> None:
        if self._stop is not None:
            self._lives()
        while self.agenda and self.agenda[-1][0] <= self.world.us:
            self.agenda.pop()[2]()
            self._look_at = min(self._look_at, self.world.us + SECOND)

    def _end(self, seconds: float) -> None:
        self._down_for = 1 + int(seconds * SECOND)
        if self._stop is not None:
            self._stop.set()

    def _kill(self, seconds: float) -> None:
        """Kill the process while it asks."""
        self._down_for, self.vendor.kill_after = 1 + int(seconds * SECOND), int(seconds) % 7

    def _change_key(self) -> None:
        new = self.folder / "signing-2.pem"
        seal(self.engine, SigningKey.load(self.folder / "signing.pem"), next_key=keygen(new))
        self.settings = self.settings.model_copy(update={"signing_key_file": new})
        self._end(5)

    def _reload(self) -> None:
        """Follow the vendor, who has changed the archive days."""
        change = {"archive_days": self.vendor.batches[2][1]}
        changed = {name: one.model_copy(update=change) for name, one in self.settings.clusters.items()}
        self.settings = self.settings.model_copy(update={"clusters": changed})
        if self._stop is not None:
            self._stop.wants_reload = True

    def _register(self, fate: Fate) -> None:
        received = None if fate.received_at is None else at(fate.received_at)
        facts: dict[str, Any] = {"submitted_at": at(fate.submitted_at), "received_at": received}
        facts |= {"cluster": fate.cluster, "kind": fate.kind, "registered_by": "soak", "settings": self.settings}
        with database.writing(self.engine) as connection:
            register(connection, fate.jid, **facts)

    def _sample(self) -> None:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.samples.append((pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir("/proc/self/fd"))))
        asked = sum(len(log[0]) for log in self.vendor.log.values())
        line = f"{at(self.world.us):%Y-%m-%d} {self.world.us / self.end:4.0%} {asked} requests"
        print(line, end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr)


def simulate(seed: int, days: int, jobs: int, url: str, folder: Path) -> tuple[Year, Counter[str]]:
    """Run the daemon through the year on the database *url*, and return the year and how often it logged each event."""
    world, events, log = World(), Counter[str](), logging.Handler()
    vendor = Vendor(world, seed, days, jobs)
    database.upgrade(url)
    keygen(folder / "signing.pem")
    log.emit = lambda record: events.update([record.msg])  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch, vendor.serve() as base_url, ExitStack() as stack:
        engine = database.open_database(url)
        stack.callback(engine.dispose)
        settings = Settings(
            database_url=url,
            clusters={
                name: cluster_settings(base_url, name, timezone=zone.key, max_requests_per_second=rate)
                for (name, zone), rate in zip(ZONES.items(), (40, 10), strict=True)
            },
            seal_after=timedelta(hours=6),
            signing_key_file=folder / "signing.pem",
            checkpoint_file=folder / "checkpoints.txt",
            request_timeout=TIMEOUT,
        )
        year = Year(world, vendor, settings, folder, engine)
        for name, module in list(sys.modules.items()):
            if name.startswith("tracker") and getattr(module, "monotonic", None) is time.monotonic:
                patch.setattr(module, "monotonic", world.monotonic)
        patch.setattr(database, "now", world.now)
        patch.setattr(daemon, "threading", one_thread(world))
        patch.setattr(poller, "ThreadPoolExecutor", lambda threads, name: nullcontext(year))
        patch.setattr(daemon, "BackgroundScheduler", year.scheduler)
        logger = logging.getLogger("tracker")
        patch.setattr(logger, "propagate", False)
        patch.setattr(logger, "handlers", [log])
        random.seed(seed)
        year.run()
    return year, events


class Check:
    """Compares the pack of a year with the vendor's truth, by rules of its own; *findings* says what is wrong."""

    def __init__(self, year: Year, events: Counter[str]) -> None:
        self.findings = [f"{events[name]} events {name}" for name in NEVER.split() if events[name]]
        self.verdicts, self.waits, self._year, self._fates = Counter[str](), list[int](), year, year.vendor.fates
        self._deadlines = {row["jid"]: us_of(row["deadline_at"]) for _, row in self._rows("report_deadlines")}
        self._jobs()
        self._history()
        for cluster in ZONES:
            self._gaps(cluster, [row for _, row in self._rows("report_gaps") if row["cluster"] == cluster])
        self._memory()

    def _rows(self, view: str) -> Iterator[tuple[Fate, dict[str, str]]]:
        with open(self._year.folder / "pack" / "reports" / f"{view}.csv", newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                yield self._fates.get(row.get("jid", ""), next(iter(self._fates.values()))), row

    def _expect(self, is_so: bool, *what: object) -> None:
        if not is_so:
            self.findings.append(" ".join(map(str, what)))

    def _jobs(self) -> None:
        """Each job that ended has the right state, and each verdict is true or ``undecidable``."""
        zone, end = ZONES["w1"], self._year.end
        for fate, row in self._rows("report_jobs"):
            state, verdict = row["state"], row["verdict"]
            self.verdicts[verdict] += 1
            if fate.ends_at < end - (QUIET if fate.end == "lost" else 2 * DAY):
                self._expect(state == fate.end, f"state {state}:", fate)
            base = fate.submitted_at if fate.received_at is None else fate.received_at
            deadline = us_of(end_of(month_after(at(base).astimezone(zone).date(), 1), zone))
            self._expect(self._deadlines[fate.jid] == deadline, "deadline:", fate, row)
            seen_at = us_of(row["status_after" if row["status"] == "not_found" else "seen_at"] or START)
            right = "undecidable" if state == "lost" or (state == "open" and seen_at < deadline) else "overdue"
            if state != "lost" and deadline > end:
                right = "pending"
            if state == "done":
                right = "met" if fate.ends_at <= deadline else "missed"
                if us_of(row["ended_after"] or START) < deadline < us_of(row["ended_by"]):
                    right = "undecidable"
            is_true = verdict != "overdue" or fate.end != "done" or fate.ends_at > deadline
            self._expect(verdict == right and is_true, f"verdict {verdict}, not {right}:", fate, row)
        registered = sum(fate.registered_at < end for fate in self._fates.values())
        self._expect(sum(self.verdicts.values()) == registered, "jobs are missing")

    def _history(self) -> None:
        """The truth lies within the bounds: each status was true between the sight of the old one and the answer."""
        for fate, row in self._rows("report_durations"):
            true = (fate.ends_at - fate.submitted_at) / SECOND
            self._expect(float(row["seconds_min"]) <= true <= float(row["seconds_max"]), f"took {true} s:", fate, row)
            after, by = us_of(row["done_after"] or at(fate.submitted_at)), us_of(row["done_by"])
            self._expect(after <= fate.ends_at <= by, "done outside its bounds:", fate, row)
            self.waits.append(by - fate.ends_at)
        for fate, row in self._rows("report_transitions"):
            after, by = us_of(row["last_seen_at"] or at(fate.submitted_at)), us_of(row["observed_at"])
            instants = [after, by, *(since for since, _ in fate.steps if after <= since <= by)]
            was = {fate.status_at(us) for us in instants}
            self._expect(row["action"] == "registered" or row["to_status"] in was, "not true at that time:", fate, row)

    def _gaps(self, cluster: str, rows: list[dict[str, str]]) -> None:
        """A fault or an absence explains each gap, and each fault and absence that matters is in a gap.

        An outage matters after one failure of the cluster itself, or failures of three jobs without a valid answer in
        between. A job counts if its own last request did not fail. (A killed process does not record its last request.)
        """
        gaps = [(us_of(row["began_at"]), us_of(row["ended_at"]), row["cause"]) for row in rows]
        asked, absences = list(zip(*self._year.vendor.log[cluster], strict=True)), self._year.absences
        failed = [(us, KINDS[NAMES[kind]]) for us, _, kind in asked if kind]
        for began, ended, cause in gaps:
            causes = {why for _, why in failed[bisect_right(failed, (began, "")) : bisect_right(failed, (ended, "~"))]}
            if any(a <= ended and b >= began for a, b in absences):
                causes.add("not_running")
            self._expect(cause in causes, f"{cluster}: unexplained gap", at(began), at(ended), cause)
        failing, fresh, since, last = set[int](), set[int](), 0, 0
        for us, number, kind in asked:
            is_killed = any(last <= killed <= us for killed, _ in absences)
            if not kind or is_killed:
                is_in = any(began <= since and last <= ended for began, ended, _ in gaps)
                is_unknown = is_killed and since == last  # it began with a request that nobody could record
                self._expect(is_in or is_unknown or not since, f"{cluster}: no gap for the outage", at(since), at(last))
                fresh, since = set(), 0
            fresh |= {number} - failing if kind else set()
            if not since and fresh and (len(fresh) == 3 or NAMES[kind] in AT_ONCE):
                since = us
            last = us
            (failing.add if kind else failing.discard)(number)
        for a, b in absences:
            is_open = any(f.cluster == cluster and f.registered_at < a and f.ends_at > b for f in self._fates.values())
            is_in = any(began <= a + DAY and ended >= b for began, ended, _ in gaps)
            self._expect(is_in or b - a < 27 * HOUR or not is_open, f"{cluster}: no gap for the absence", at(a), at(b))

    def _memory(self) -> None:
        """From the third to the last quarter, median memory grew by at most 4 %, the most open files by at most 2."""
        quarter = len(self._year.samples) // 4
        third, last = self._year.samples[2 * quarter : 3 * quarter], self._year.samples[3 * quarter :]
        before, after = (median(rss for rss, _ in samples) for samples in (third, last))
        self._expect(after <= 1.04 * before, f"memory grew from {before:.1f} MB to {after:.1f} MB")
        few, many = (max(count for _, count in samples) for samples in (third, last))
        self._expect(many <= few + 2, f"open files grew from {few} to {many}")


def evidence(year: Year, url: str) -> Iterator[str]:
    """Verify the record as an auditor does, with a pack, and yield what is wrong."""
    folder, key = year.folder, SigningKey.load(year.folder / "signing-2.pem").public
    (folder / "public.pem").write_text(key.pem())
    env = os.environ | {"TRACKER_DATABASE_URL": url, "TRACKER_SIGNING_KEY_FILE": str(folder / "signing-2.pem")}
    tracker = [sys.executable, "-c", "import sys; from tracker import cli; sys.exit(cli.main(sys.argv[1:]))", "audit"]
    trusted, script = ["--trusted", str(folder / "checkpoints.txt")], str(files("tracker.audit").joinpath("verify.sh"))
    for words, where in (
        ([*tracker, "verify", "--public-key", str(folder / "public.pem"), *trusted], folder),
        ([*tracker, "export", str(folder / "pack")], folder),
        (["sh", script, "--key-id", key.id, *trusted, "--reports"], folder / "pack"),
    ):
        done = subprocess.run(words, cwd=where, env=env, text=True, capture_output=True, check=False)
        if done.returncode:
            yield f"{' '.join(words[-6:])}: {' '.join((done.stdout + done.stderr).split())[:500]}"


def soak(seed: int, days: int, jobs: int, url: str, folder: Path) -> tuple[dict[str, str], list[str]]:
    """Simulate, check, and return the figures and the findings."""
    began, digest = time.monotonic(), hashlib.sha256()
    year, events = simulate(seed, days, jobs, url, folder)
    took, wrong = time.monotonic() - began, list(evidence(year, url))
    check = Check(year, events)
    for file in sorted(folder.glob("pack/segments/*-[tg]*.csv")):  # no sources: they name the port
        digest.update(file.read_bytes())
    with closing(database.open_database(url).connect()) as connection:
        ended = connection.execute(sa.select(JOBS.c.kind, JOBS.c.polls).where(JOBS.c.due_at.is_(None))).all()
    kinds = ", ".join(f"{kind} {mean(n for its, n in ended if its == kind):.1f}" for kind in Kind if kind != "unknown")
    samples = [year.samples[place] for place in (0, len(year.samples) // 2, -1)]
    requests = [kind for log in year.vendor.log.values() for kind in log[2]]
    figures = {
        "seed, digest": f"{seed}, {digest.hexdigest()[:16]}",
        "days, jobs, restarts": f"{days}, {jobs}, {len(year.absences)}",
        "time, of checks, CPU": f"{took:.0f} s, {time.monotonic() - began - took:.0f} s, {time.process_time():.0f} s",
        "requests, failed": f"{len(requests)}, {sum(map(bool, requests))}",
        "polls a job": f"{mean(n for _, n in ended):.1f} ({kinds})",
        "verdicts": ", ".join(f"{verdict} {n}" for verdict, n in sorted(check.verdicts.items())),
        "done jobs, seen after": f"{len(check.waits)}, {median(check.waits) / 60e6:.1f} min (median)",
        "RSS": "begin {:.0f} MB, middle {:.0f} MB, end {:.0f} MB".format(*(rss for rss, _ in samples)),
        "open files": "begin {}, middle {}, end {}".format(*(count for _, count in samples)),
    }
    return figures, wrong + check.findings


def main() -> int:
    """Run one year, print its figures, and return 1 if anything is wrong."""
    words = "Run the daemon through a simulated year, and compare its record with the truth; exit 1 if they differ."
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=words)
    for name, default, words in (
        ("seed", random.randrange(10**6), "the same seed gives the same run again; default: a random one"),
        ("days", 365, "simulated days; default: %(default)s"),
        ("jobs", 5000, "jobs that are submitted in these days; default: %(default)s"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=words)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite", help="default: sqlite")
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        is_file = given.database == "sqlite"
        url = f"sqlite:///{folder / 'tracker.db'}" if is_file else stack.enter_context(serve_postgres())()
        figures, findings = soak(given.seed, given.days, given.jobs, url, folder)
    print("\n".join(f"{name:22}{value}" for name, value in figures.items()))
    again = f"{len(findings)} findings; the same again: --seed {given.seed} --days {given.days} --jobs {given.jobs}"
    print("\n".join([*(f"FOUND {finding}" for finding in findings[:20]), f"NOT OK: {again}" if findings else "OK"]))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
