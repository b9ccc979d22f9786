"""The reports that are tables, as data: what each is called, what it says, and which of its columns a person sees.

Owns names, headings, help and the words of single values. The command line and the page show it; ``tables`` reads the
rows. Pure, and quick to import: ``tracker report --help`` waits for no database.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        name: The heading in CSV and the key in JSON. A column with the word ``seconds`` in its name is shown as
            durations in tables, rounded up if it has ``max`` in it too (an upper bound stays one).
        heading: The heading in tables; default the name with spaces.
        optional: A table may leave it out where there is no room, and says so. CSV and JSON have it always.
    """

    name: str
    heading: str | None = None
    optional: bool = False


@dataclass(frozen=True, slots=True)
class TableReport:
    """A report that is a table.

    Attributes:
        name: Of the report, and of its view behind ``report_``.
        title: The caption.
        help: What it says, in sentences.
        order: What all rows are sorted by, to the last tie, so that the same data come out as the same bytes.
        shows: The columns that a person sees, in their order; a heading of its own stands behind a colon, and what a
            table may leave out behind a bar.
    """

    name: str
    title: str
    help: str
    order: str
    shows: str

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns that a person sees, in their order."""
        found = []
        for part, words in enumerate(self.shows.split("|")):
            for name, _, heading in (word.partition(":") for word in words.split()):
                found.append(Column(name, heading.replace("_", " ") or None, optional=bool(part)))
        return tuple(found)


_ALL: Final = (
    TableReport(
        "durations",
        "From submission to done",
        "How long each job took that is done, between two bounds.",
        order="done_by cluster jid",
        shows="jid seconds_min:at_least seconds_max:at_most done_by | cluster kind reference",
    ),
    TableReport(
        "statuses",
        "Time in each status seen",
        "How long jobs were in each status. One row for each stay in a status that was seen. A status that a job is "
        "still in lasts at least until it was last seen.",
        order="cluster jid entered_by status",
        shows="jid status seconds_min:at_least seconds_max:at_most | cluster entered_by left_by kind reference",
    ),
    TableReport(
        "monthly",
        "By month of submission",
        "How many jobs were submitted in each month (UTC) and what became of them, by cluster and kind: within how "
        "many days they were done, and their verdicts. How long they took: tracker report durations --by month.",
        order="cluster kind month",
        shows="month cluster kind submitted:jobs done open met missed overdue | failed lost undecidable pending",
    ),
    TableReport(
        "deadlines",
        "Deadlines",
        "Each job's legal deadline and verdict: one calendar month after the request was received (else after the job "
        "was submitted, else registered), in the legal time zone. The verdict met says that Elevate reported the job "
        "done in time; that the person was informed is not shown.",
        order="deadline_at cluster jid",
        shows="jid deadline_on:deadline verdict days_left state | reference cluster kind basis",
    ),
    TableReport(
        "requests",
        "Requests",
        "Each person's request, its export and its removal together: one row for each reference, with the worst "
        "verdict of its jobs. Jobs that a filter leaves out do not count.",
        order="deadline_on reference",
        shows="reference deadline_on:deadline verdict jobs done open not_done | done_by received_at",
    ),
    TableReport(
        "anomalies",
        "Anomalies",
        "Every transition with an anomaly: unknown_status (a word that nobody documented), backwards (an earlier "
        "status after a later one), vanished (not found, although it was there before), reappeared, never_found.",
        order="id",
        shows="observed_at:seen jid anomaly | cluster from_status:from to_status:to",
    ),
    TableReport(
        "gaps",
        "Gaps in the observation",
        "When nothing could be observed, why, and how many jobs were open meanwhile. Times choose the gaps that "
        "overlap them, kinds the jobs that are counted. A time without a daemon is recorded when the next one starts.",
        order="began_at cluster ended_at",
        shows="cluster began_at:began ended_at:ended seconds:lasted cause open_jobs | detail",
    ),
    TableReport(
        "coverage",
        "How much of each job's life was observed",
        "Which share of each job's life was observed, the smallest first. Time outside recorded gaps counts as "
        "observed. A time without a daemon is recorded when the next daemon starts; until then see tracker status.",
        order="covered_share cluster jid",
        shows="jid covered_share:observed longest_unobserved_seconds:longest_unobserved | cluster",
    ),
)

REPORTS: Final = {report.name: report for report in _ALL}
"""By name, in the order of the page."""

CHANGES: Final = TableReport(
    "changes",
    "Changes",
    "What happened in the last day, or in the time that is asked for: how many jobs were registered, ended, or became "
    "overdue (first seen not done after the deadline), by cluster and kind; then each transition, the newest first. "
    "csv and json have the transitions.",
    order="id",
    shows="observed_at:when jid action to_status:status to_state:state | cluster from_status:was kind "
    "reference anomaly actor reason",
)
"""Rows of ``report_transitions``."""

COUNTED: Final = ("registered", "done", "failed", "lost", "attested", "withdrawn", "reopened", "overdue")
"""What ``changes`` counts."""

BY: Final = ("cluster", "kind", "month", "week")
"""What the quantiles of durations can be grouped by; months and ISO weeks (UTC) of submission, else of registration."""


def shown(name: str, value: Any) -> Any:
    """Return what a person reads for the *value* of the column *name*."""
    if name == "ended_at" and value is None:
        return "still open"
    if name == "covered_share" and value is not None:
        return f"{math.floor(value * 1000) / 10:.1f} %"  # rounded down: at least so much
    return value
