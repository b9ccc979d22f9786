"""What the reports must say, computed in the plainest Python: lists, dicts, loops; no SQL, nothing of tracker's.

Owns a second reading of DESIGN.md, against which `test_reference` holds the views, the commands and the Python API. Of
``jobs`` it takes what a person declared at first (it is in the registration, too), whether it has a deadline, and what
no transition keeps: when it was last seen, polls, failures and the next poll. All else is replayed. It is slow, so that
it can be plain.

A row is a dict by column. Instants are aware datetimes, days dates. Arithmetic is on whole microseconds, which only the
last step divides into seconds.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from functools import cached_property
from typing import Any
from zoneinfo import ZoneInfo

Row = dict[str, Any]

SECOND = 10**6
DAY = 86_400 * SECOND
STATES = ("open", "done", "failed", "lost", "attested", "withdrawn")
SETTLED = ("done", "attested", "withdrawn")
FACTS = ("kind", "reference", "received_at", "submitted_at", "extended_on")


@dataclass(frozen=True)
class Tables:
    """The legal time zone, and the rows of the tables."""

    zone: ZoneInfo
    jobs: list[Row]
    transitions: list[Row]
    gaps: list[Row]
    clusters: list[Row]
    sources: list[Row]
    seals: list[Row]

    @cached_property
    def histories(self) -> dict[int, list[Row]]:
        """The transitions of each job, in their order."""
        found: dict[int, list[Row]] = {}
        for transition in sorted(self.transitions, key=lambda t: t["seq"]):
            found.setdefault(transition["job_id"], []).append(transition)
        return found


# -- instants ------------------------------------------------------------------------------------------------------


def between(a: datetime | None, b: datetime | None) -> int | None:
    """Return the microseconds from *a* to *b*."""
    return None if a is None or b is None else (b - a) // timedelta(microseconds=1)


def passed(a: datetime | None, b: datetime | None) -> int | None:
    """Return the microseconds from *a* to *b*, 0 where a clock put *a* after *b*."""
    found = between(a, b)
    return None if found is None else max(0, found)


def seconds(microseconds: int | None) -> float | None:
    return None if microseconds is None else microseconds / SECOND


def first(*values: Any) -> Any:
    """Return the first that is known."""
    for value in values:
        if value is not None:
            return value
    return None


def known(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if value is not None]


def not_before(seen: datetime | None, submitted: datetime | None, by: datetime) -> datetime | None:
    """Return the lower bound of what was there *by* then: the last sight of what was before, else the submission.

    A submission declared later than what came after it is no bound, but what came after it is.
    """
    if seen is not None:
        return seen
    return None if submitted is None else min(submitted, by)


# -- a job ---------------------------------------------------------------------------------------------------------


def month_after(day: date, months: int) -> date:
    year, month = day.year, day.month + months
    while month > 12:
        year, month = year + 1, month - 12
    return date(year, month, min(day.day, monthrange(year, month)[1]))


def end_of(day: date, zone: ZoneInfo) -> datetime:
    after = day + timedelta(days=1)
    return datetime(after.year, after.month, after.day, tzinfo=zone).astimezone(UTC)


def legal(job: Row, recorded_at: datetime, zone: ZoneInfo) -> tuple[date, datetime]:
    """Return the deadline, as a day and an instant; *recorded_at*: since when the extension has stood."""
    began = first(job["received_at"], job["submitted_at"], job["registered_at"]).astimezone(zone).date()
    on = month_after(began, 1)
    extended = job["extended_on"]
    if extended is not None and recorded_at < end_of(on, zone) and on < extended:
        on = min(extended, month_after(began, 3))
    return on, end_of(on, zone)


def replayed(tables: Tables, row: Row) -> Row:
    """Return the job in *row* as its transitions have it."""
    job = row | dict.fromkeys(("status", "status_after", "status_by", "ended_after", "ended_by")) | {"amendments": 0}
    recorded_at = row["registered_at"]
    extended: date | None = None
    for t in tables.histories[row["id"]]:
        if t["action"] in ("registered", "amended"):
            job.update({fact: t[fact] for fact in FACTS})
            if t["extended_on"] != extended:
                extended, recorded_at = t["extended_on"], t["observed_at"]
        if t["action"] == "registered":
            job["received_at_first"] = t["received_at"]
        elif t["action"] == "amended":
            job["amendments"] += 1
        elif t["action"] == "reopened":
            job.update(ended_after=None, ended_by=None)
        elif t["action"] == "withdrawn":
            job.update(ended_after=t["observed_at"], ended_by=t["observed_at"])
        elif t["action"] == "attested":
            job.update(ended_after=None, ended_by=t["claimed_at"])
        elif t["action"] == "observed":
            if t["to_status"] != job["status"]:
                job.update(status=t["to_status"], status_after=t["last_seen_at"], status_by=t["observed_at"])
            if t["to_state"] != "open":
                job.update(ended_after=t["last_seen_at"], ended_by=t["observed_at"])
        job["state"] = t["to_state"]
    if row["deadline_on"] is not None:
        job["deadline_on"], job["deadline_at"] = legal(job, recorded_at, tables.zone)
    done = job["state"] == "done"
    job["done_by"] = job["ended_by"] if done else None
    job["done_after"] = not_before(job["ended_after"], job["submitted_at"], job["ended_by"]) if done else None
    job["began_at"] = first(job["submitted_at"], job["registered_at"])
    # While Elevate says not_found nobody sees the job: it was last seen not done before that.
    job["not_done_at"] = job["status_after"] if job["status"] == "not_found" else job["seen_at"]
    return job


def all_jobs(tables: Tables) -> list[Row]:
    return [replayed(tables, row) for row in tables.jobs]


def verdict(job: Row, now: datetime) -> str:
    state, deadline = job["state"], job["deadline_at"]
    if state in ("attested", "withdrawn"):
        return str(state)
    if state == "lost":
        return "undecidable"
    if state == "done":
        if job["done_by"] <= deadline:
            return "met"
        return "missed" if job["done_after"] is not None and job["done_after"] >= deadline else "undecidable"
    if deadline is None or now < deadline:
        return "pending"
    if state == "failed":
        return "overdue"
    return "overdue" if job["not_done_at"] is not None and job["not_done_at"] >= deadline else "undecidable"


# -- the views -----------------------------------------------------------------------------------------------------


def pick(row: Row, columns: str) -> Row:
    return {column: row[column] for column in columns.split()}


def report_jobs(tables: Tables, now: datetime) -> list[Row]:
    jobs = all_jobs(tables)
    for job in jobs:
        job["verdict"] = verdict(job, now)
        job["next_poll_at"] = job["due_at"]
        job["age_seconds"] = seconds(passed(job["began_at"], first(job["ended_by"], now)))
        if job["status"] is not None:
            job["status_after"] = not_before(job["status_after"], job["submitted_at"], job["status_by"])
        if job["state"] in ("done", "failed", "lost"):
            job["ended_after"] = not_before(job["ended_after"], job["submitted_at"], job["ended_by"])
    columns = (
        "cluster jid kind reference state status status_after status_by seen_at submitted_at registered_at "
        "registered_by received_at deadline_on verdict ended_after ended_by next_poll_at age_seconds polls "
        "failures last_error"
    )
    return [pick(job, columns) for job in jobs]


def least_seconds(job: Row) -> int:
    """Return the lower bound of the time from submission (else registration) to done."""
    return max(0, between(job["began_at"], job["done_after"]) or 0)


def report_durations(tables: Tables, now: datetime) -> list[Row]:
    jobs = [job for job in all_jobs(tables) if job["state"] == "done"]
    for job in jobs:
        job["seconds_min"] = seconds(least_seconds(job))
        job["seconds_max"] = seconds(passed(job["submitted_at"], job["done_by"]))
        job["uncertainty_seconds"] = seconds(between(job["done_after"], job["done_by"]))
        is_known = job["kind"] == "export" and job["done_after"] is not None
        job["download_by"] = job["done_after"] + timedelta(days=7) if is_known else None
    columns = (
        "cluster jid kind reference submitted_at registered_at done_after done_by seconds_min seconds_max "
        "uncertainty_seconds download_by polls"
    )
    return [pick(job, columns) for job in jobs]


def report_transitions(tables: Tables, now: datetime) -> list[Row]:
    columns = (
        "id cluster jid kind reference seq action from_status to_status from_state to_state last_seen_at "
        "observed_at server_date claimed_at base_url actor anomaly reason seal_id"
    )
    rows = []
    for job in all_jobs(tables):
        for t in tables.histories[job["id"]]:
            urls = [source["base_url"] for source in tables.sources if source["id"] == t["source_id"]]
            seals = [seal for seal in tables.seals if seal["last_transition_id"] >= t["id"]]
            seals.sort(key=lambda seal: (seal["last_transition_id"], seal["id"]))
            found = {"base_url": urls[0] if urls else None, "seal_id": seals[0]["id"] if seals else None}
            rows.append(pick(t | pick(job, "cluster jid kind reference") | found, columns))
    return rows


def report_anomalies(tables: Tables, now: datetime) -> list[Row]:
    return [row for row in report_transitions(tables, now) if row["anomaly"] is not None]


def report_statuses(tables: Tables, now: datetime) -> list[Row]:
    rows = []
    for job in all_jobs(tables):
        entries = [t for t in tables.histories[job["id"]] if t["to_status"] not in (None, t["from_status"])]
        for entry, leaving in zip(entries, [*entries[1:], None], strict=False):
            row = pick(job, "cluster jid kind reference") | {"status": entry["to_status"]}
            row["entered_after"] = not_before(entry["last_seen_at"], job["submitted_at"], entry["observed_at"])
            row["entered_by"] = entry["observed_at"]
            if leaving is not None:
                row["left_after"], row["left_by"] = leaving["last_seen_at"], leaving["observed_at"]
                least, most = row["left_after"], row["left_by"]
            else:
                row["left_after"] = row["left_by"] = None
                least, most = job["seen_at"], now if job["state"] == "open" else None
            row["seconds_min"] = seconds(max(0, between(row["entered_by"], least) or 0))
            row["seconds_max"] = seconds(between(row["entered_after"], most))
            rows.append(row)
    return rows


def report_monthly(tables: Tables, now: datetime) -> list[Row]:
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for job in all_jobs(tables):
        month = job["began_at"].astimezone(UTC).strftime("%Y-%m")
        groups.setdefault((job["cluster"], job["kind"], month), []).append(job)
    rows = []
    for (cluster, kind, month), jobs in groups.items():
        took = [passed(job["submitted_at"], job["done_by"]) for job in jobs if job["state"] != "withdrawn"]
        row: Row = {"cluster": cluster, "kind": kind, "month": month, "submitted": len(jobs)}
        row |= {state: sum(job["state"] == state for job in jobs) for state in STATES}
        row |= {f"done_within_{days}d": sum(t <= days * DAY for t in known(took)) for days in (1, 7, 14)}
        verdicts = [verdict(job, now) for job in jobs]
        row |= {word: verdicts.count(word) for word in ("met", "missed", "undecidable", "pending", "overdue")}
        rows.append(row)
    return rows


def report_deadlines(tables: Tables, now: datetime) -> list[Row]:
    jobs = all_jobs(tables)
    for job in jobs:
        job["basis"] = "registered"
        if job["received_at"] is not None:
            job["basis"] = "received"
        elif job["submitted_at"] is not None:
            job["basis"] = "submitted"
        job["verdict"] = verdict(job, now)
        known = any(row["cluster"] == job["cluster"] and row["utc_offsets"] for row in tables.clusters)
        today = now.astimezone(tables.zone if known else UTC).date()
        is_over = job["deadline_on"] is None or job["state"] in SETTLED
        job["days_left"] = None if is_over else (job["deadline_on"] - today).days
    columns = (
        "cluster jid kind reference state received_at received_at_first amendments basis deadline_on "
        "deadline_at extended_on done_after done_by verdict days_left"
    )
    return [pick(job, columns) for job in jobs]


WORST_FIRST = ("missed", "overdue", "undecidable", "pending", "attested", "met", "withdrawn")


def report_requests(tables: Tables, now: datetime) -> list[Row]:
    requests: dict[str, list[Row]] = {}
    for job in all_jobs(tables):
        if job["reference"] is not None:
            requests.setdefault(job["reference"], []).append(job)
    rows = []
    for reference, jobs in requests.items():
        states = [job["state"] for job in jobs]
        verdicts = [verdict(job, now) for job in jobs]
        finished = all(state in ("done", "withdrawn") for state in states)
        row: Row = {
            "reference": reference,
            "jobs": len(jobs),
            "open": states.count("open"),
            "done": states.count("done"),
        }
        row["not_done"] = row["jobs"] - row["open"] - row["done"]
        row["received_at"] = min(known(job["received_at"] for job in jobs), default=None)
        row["deadline_on"] = min(known(job["deadline_on"] for job in jobs), default=None)
        row["done_after"] = max(known(job["done_after"] for job in jobs), default=None) if finished else None
        row["done_by"] = max(known(job["done_by"] for job in jobs), default=None) if finished else None
        row["verdict"] = next(word for word in WORST_FIRST if word in verdicts)
        rows.append(row)
    return rows


def all_gaps(tables: Tables) -> list[Row]:
    """Return the gaps, those that are open with None for their end."""
    gaps = [gap | {"is_open": 0} for gap in tables.gaps]
    for cluster in tables.clusters:
        if cluster["gap_began_at"] is not None:
            gap = {"cluster": cluster["cluster"], "began_at": cluster["gap_began_at"], "ended_at": None, "is_open": 1}
            gaps.append(gap | {"cause": cluster["gap_cause"], "detail": cluster["gap_detail"]})
    return gaps


def was_open(tables: Tables, job: Row, began: datetime, ended: datetime) -> bool:
    """Return whether *job* was open at any time after *began* and before *ended*."""
    since: datetime | None = None
    for t in tables.histories[job["id"]]:
        if t["to_state"] == "open" and t["from_state"] != "open":
            since = t["observed_at"]
        elif t["to_state"] != "open" and t["from_state"] == "open":
            if since is not None and since < ended and t["observed_at"] > began:
                return True
            since = None
    return since is not None and since < ended


def report_gaps(tables: Tables, now: datetime) -> list[Row]:
    rows = []
    jobs = all_jobs(tables)
    for gap in all_gaps(tables):
        ended = first(gap["ended_at"], now)
        theirs = [job for job in jobs if job["cluster"] == gap["cluster"]]
        spent = seconds(between(gap["began_at"], ended))
        open_jobs = sum(was_open(tables, job, gap["began_at"], ended) for job in theirs)
        columns = "cluster began_at ended_at is_open cause detail seconds open_jobs"
        rows.append(pick(gap | {"seconds": spent, "open_jobs": open_jobs}, columns))
    return rows


def stretches(tables: Tables, cluster: str, now: datetime) -> list[tuple[datetime, datetime]]:
    """Return when nothing could be observed of *cluster*: its gaps, those that overlap or touch as one."""
    merged: list[tuple[datetime, datetime]] = []
    spans = [(gap["began_at"], first(gap["ended_at"], now)) for gap in all_gaps(tables) if gap["cluster"] == cluster]
    for began, ended in sorted(spans):
        if merged and began <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], ended))
        else:
            merged.append((began, ended))
    return merged


def report_coverage(tables: Tables, now: datetime) -> list[Row]:
    """A job whose life has no length (an operator attests that it was done before it was registered) missed nothing."""
    rows = []
    for job in all_jobs(tables):
        born, died = job["registered_at"], first(job["ended_by"], now)
        unobserved = [
            between(max(began, born), min(ended, died)) or 0
            for began, ended in stretches(tables, job["cluster"], now)
            if max(began, born) < min(ended, died)
        ]
        life = between(born, died) or 0
        share = Fraction(1) if life <= 0 else 1 - Fraction(sum(unobserved), life)
        row: Row = {"cluster": job["cluster"], "jid": job["jid"], "covered_share": float(share)}
        rows.append(row | {"longest_unobserved_seconds": seconds(max(unobserved, default=0))})
    return rows


def report_clusters(tables: Tables, now: datetime) -> list[Row]:
    rows = []
    jobs = all_jobs(tables)
    standing = {cluster["cluster"]: cluster for cluster in tables.clusters}
    for name in {*standing, *(job["cluster"] for job in jobs)}:
        theirs = [job for job in jobs if job["cluster"] == name]
        opened = [job for job in theirs if job["state"] == "open"]
        ahead = [
            job["deadline_on"]
            for job in theirs
            if job["state"] not in SETTLED and job["deadline_at"] is not None and job["deadline_at"] > now
        ]
        its = standing.get(name, {})
        rows.append(
            {
                "cluster": name,
                "open": len(opened),
                "polls_behind": sum((between(job["due_at"], now) or 0) > 60 * SECOND for job in opened),
                "answered_at": its.get("answered_at"),
                "paused_until": its.get("paused_until"),
                "pause_cause": its.get("pause_cause"),
                "next_deadline_on": min(ahead, default=None),
            }
        )
    return rows


VIEWS: dict[str, Callable[[Tables, datetime], list[Row]]] = {
    "report_jobs": report_jobs,
    "report_durations": report_durations,
    "report_transitions": report_transitions,
    "report_statuses": report_statuses,
    "report_monthly": report_monthly,
    "report_deadlines": report_deadlines,
    "report_requests": report_requests,
    "report_anomalies": report_anomalies,
    "report_gaps": report_gaps,
    "report_coverage": report_coverage,
    "report_clusters": report_clusters,
}


# -- what is no view -----------------------------------------------------------------------------------------------


def quantile(ended: list[int], unended: list[int], share: Fraction) -> int | None:
    """Return the age by which this share has ended, by Kaplan and Meier's definition; None: not reached.

    The curve falls at each end by the share that ends of those still at risk; in a tie ends come first.
    """
    left = Fraction(1)
    for at in sorted(set(ended)):
        at_risk = sum(age >= at for age in ended + unended)
        left *= Fraction(at_risk - ended.count(at), at_risk)
        if left <= 1 - share:
            return at
    return None


SHARES = {"median": Fraction(1, 2), "p90": Fraction(9, 10), "p95": Fraction(19, 20), "max": Fraction(1)}


def quantiles(tables: Tables, now: datetime) -> list[Row]:
    """Return the report of durations: a row for each cluster and kind, and one for all."""
    groups: dict[tuple[str | None, str | None], list[Row]] = {}
    for job in all_jobs(tables):
        groups.setdefault((job["cluster"], job["kind"]), []).append(job)
    keys: list[tuple[str | None, str | None]] = sorted(groups, key=str)
    groups[None, None] = [job for key in keys for job in groups[key]]
    rows = []
    for cluster, kind in [*keys, (None, None)] if keys else []:
        jobs = groups[cluster, kind]
        counted = {state: sum(job["state"] == state for job in jobs) for state in STATES}
        row: Row = {"cluster": cluster, "kind": kind, "jobs": len(jobs) - counted["withdrawn"], **counted}
        done = [job for job in jobs if job["state"] == "done"]
        unended = [
            max(0, between(job["began_at"], job["not_done_at"]) or 0)
            for job in jobs
            if job["state"] not in ("done", "withdrawn")
        ]
        least = [least_seconds(job) for job in done]
        bounded = [job for job in done if job["submitted_at"] is not None]
        most = [max(least_seconds(job), between(job["submitted_at"], job["done_by"]) or 0) for job in bounded]
        endless = [least_seconds(job) for job in done if job["submitted_at"] is None]
        for name, share in SHARES.items():
            pair = [quantile(least, unended, share), quantile(most, unended + endless, share)]
            pair.sort(key=lambda at: (at is None, at))
            row[f"{name}_seconds_min"], row[f"{name}_seconds_max"] = map(seconds, pair)
        rows.append(row)
    return rows


def known_at(tables: Tables, at: datetime) -> Tables:
    """Return the tables as far as rows that never change say what was known at a time (`tracker.reports.as_of`).

    A job was last seen in the status that its last transition left, and that it was polled since is not known; its
    deadline is known, since it follows from its facts.
    """
    transitions = [t for t in tables.transitions if t["observed_at"] <= at]
    then = replace(
        tables,
        transitions=transitions,
        gaps=[gap for gap in tables.gaps if gap["ended_at"] <= at],
        sources=[source for source in tables.sources if source["recorded_at"] <= at],
        seals=[seal for seal in tables.seals if seal["sealed_at"] <= at],
        clusters=[],
        jobs=[],
    )
    for row in tables.jobs:
        if its := then.histories.get(row["id"]):
            seen = {"seen_at": its[-1]["last_seen_at"], "polls": its[-1]["polls"], "failures": 0}
            lost = dict.fromkeys(("due_at", "last_error"))
            then.jobs.append(row | seen | lost | {"deadline_on": date.min})  # there is one: replayed() computes it
    contacted = {source["cluster"] for source in then.sources}
    no_gap = dict.fromkeys(("gap_began_at", "gap_cause", "gap_detail"))
    still = [gap for gap in tables.gaps if gap["began_at"] <= at < gap["ended_at"]]
    for cluster in tables.clusters:
        if cluster["gap_began_at"] is not None and cluster["gap_began_at"] <= at:
            gap = {"began_at": cluster["gap_began_at"], "cause": cluster["gap_cause"]}
            still.append({"cluster": cluster["cluster"], **gap})
    for name in contacted | {gap["cluster"] for gap in still}:
        # A cluster has one open gap. A gap not_running is recorded by the daemon that starts afterwards.
        theirs = [gap for gap in still if gap["cluster"] == name and gap["cause"] != "not_running"]
        row = {"cluster": name, "utc_offsets": name in contacted} | no_gap
        if theirs:
            gap = min(theirs, key=lambda gap: (gap["began_at"], gap["cause"]))
            row |= {"gap_began_at": gap["began_at"], "gap_cause": gap["cause"]}
        then.clusters.append(row)
    return then


def only(tables: Tables, wanted: Callable[[Row], bool]) -> Tables:
    """Return the tables as if there were no other jobs than those *wanted*, as they are replayed."""
    return replace(tables, jobs=[row for row in tables.jobs if wanted(replayed(tables, row))])
