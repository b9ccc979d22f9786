"""The reports that are tables, as data: their names, their help, and the columns that a person sees.

Owns names, headings, help and the words of single values. The command line and the page show it; ``tables`` reads the
rows. Pure, and quick to import: ``tracker report --help`` needs no database.
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
        optional: A table may leave it out if it does not fit, with a message. CSV and JSON always have it.
    """

    name: str
    heading: str | None = None
    optional: bool = False


@dataclass(frozen=True, slots=True)
class TableReport:
    """A report that is a table.

    Attributes:
        name: The name of the report, and of its view after ``report_``.
        title: The caption.
        help: What it shows, in sentences.
        order: The columns that sort all rows; no two rows tie, so that the same data give the same bytes.
        shows: The columns that a person sees, in order. A different heading follows a colon. The columns after the bar
            are optional.
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
        "How long each done job took, between two bounds.",
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
        "How many jobs were submitted in each month (UTC), by cluster and kind, with their states, their verdicts, and "
        "within how many days they were done. For durations use tracker report durations --by month.",
        order="cluster kind month",
        shows="month cluster kind submitted:jobs done open met missed overdue | failed lost undecidable pending",
    ),
    TableReport(
        "deadlines",
        "Deadlines",
        "Each job's legal deadline and verdict: one calendar month after the request was received (else after the job "
        "was submitted, else registered), in the legal time zone. The verdict met means that Elevate reported the job "
        "done in time; it does not show that the person was informed.",
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
        "Every transition with an anomaly: unknown_status (not documented), backwards (an earlier status after a later "
        "one), vanished (not found, although it was found before), reappeared (found again), never_found (lost).",
        order="id",
        shows="observed_at:seen jid anomaly | cluster from_status:from to_status:to",
    ),
    TableReport(
        "gaps",
        "Gaps in the observation",
        "When nothing could be observed, why, and how many jobs were open then. A time range selects the gaps that "
        "overlap it; a kind selects the jobs that are counted. Time without a daemon is recorded when the next starts.",
        order="began_at cluster ended_at",
        shows="cluster began_at:began ended_at:ended seconds:lasted cause open_jobs | detail",
    ),
    TableReport(
        "coverage",
        "How much of each job's life was observed",
        "Which share of each job's life was observed, the smallest first. Time outside recorded gaps counts as "
        "observed. Time without a daemon is recorded when the next daemon starts; until then see tracker status.",
        order="covered_share cluster jid",
        shows="jid covered_share:observed longest_unobserved_seconds:longest_unobserved | cluster",
    ),
)

REPORTS: Final = {report.name: report for report in _ALL}
"""By name, in the order of the page."""

CHANGES: Final = TableReport(
    "changes",
    "Changes",
    "What happened since yesterday at this time, or in the time that you choose: how many jobs were registered, ended, "
    "or became overdue (first seen not done after the deadline), by cluster and kind. Then each transition, the newest "
    "first. csv and json have the transitions only.",
    order="id",
    shows="observed_at:when jid action to_status:status to_state:state | cluster from_status:was kind "
    "reference anomaly actor reason",
)
"""Rows of ``report_transitions``."""

ALL: Final = REPORTS | {CHANGES.name: CHANGES}
"""By name: those that a view has, and the changes."""

COUNTED: Final = ("registered", "done", "failed", "lost", "attested", "withdrawn", "reopened", "overdue")
"""The events that ``changes`` counts."""

BY: Final = ("cluster", "kind", "month", "week")
"""How the quantiles of durations can be grouped; months and ISO weeks (UTC) are those of submission, else of
registration."""


def shown(name: str, value: Any) -> Any:
    """Return what a person reads for the *value* of the column *name*."""
    if name == "ended_at" and value is None:
        return "still open"
    if name == "covered_share" and value is not None:
        return f"{math.floor(value * 1000) / 10:.1f} %"  # rounded down: at least so much
    return value
