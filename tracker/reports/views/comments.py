"""What a row and a column of each view mean: the one definition, for PostgreSQL's comments and the README's table.

Owns the words only; `views.create` puts them into the database. A column that means the same in several views is here
once.
"""

from __future__ import annotations

from typing import Final

ROWS: Final = {
    "report_jobs": "a job: what was declared, its state, its status with bounds, deadline, verdict, next poll",
    "report_durations": "a job in state done: how long it took, at least (`seconds_min`) and at most (`seconds_max`)",
    "report_transitions": "a change of a job: from, to, and the two instants between which it happened",
    "report_statuses": "a status in which a job was seen: when it was entered and left, and for how long, with bounds",
    "report_monthly": "a cluster, kind and month of submission (UTC): how many jobs, and their states and verdicts",
    "report_deadlines": "a job: its deadline, what it counts from, its verdict, days left",
    "report_requests": "a reference: the jobs of one person's request together, with the worst verdict",
    "report_anomalies": "a transition with an anomaly, with the columns of `report_transitions`",
    "report_gaps": "a stretch of time, ended or not, in which nothing could be observed, and how many jobs were open",
    "report_coverage": "a job: the share of its life outside gaps, and its longest stretch inside gaps",
    "report_clusters": "a cluster: open jobs, late polls, its pause, and the next deadline",
}
"""By view: what a row of it is."""

_VERDICT: Final = (
    "met: Elevate reported the job done in time (whether the person was informed is not shown); missed: done too late; "
    "undecidable: the deadline lies between the bounds, or the job was not seen since; pending: deadline ahead; "
    "overdue: seen not done at or after the deadline; attested, withdrawn: an operator's decision"
)

COLUMNS: Final = {
    # the job, as it was declared
    "cluster": "Elevate cluster",
    "jid": "Elevate's id of the job; unique within the cluster",
    "kind": "export, removal or unknown, as declared",
    "reference": "Ticket of the person's request, as declared; groups the jobs of one request. NULL: none",
    "received_at": "When the request reached the company, as declared. NULL: unknown",
    "submitted_at": "When the job was submitted to Elevate, as declared. NULL: unknown",
    "extended_on": "Last day of an extended deadline (GDPR Article 12(3)), as declared. NULL: not extended",
    "registered_at": "When the job was registered here, by the database's clock",
    "registered_by": "Who registered it",
    # its state
    "state": "What was concluded: open, done, failed, lost, attested or withdrawn",
    "status_after": "Lower bound of its entry: when the last request with another status was sent, else submitted_at",
    "status_by": "Upper bound of its entry: when the first answer with this status was complete",
    "seen_at": "When the request of the last valid answer was sent. NULL: no valid answer yet",
    "ended_after": "Lower bound of the job's end. NULL: still open, or unknown",
    "ended_by": "Upper bound of the job's end. NULL: still open",
    "next_poll_at": "When Elevate is asked next. NULL: the job has ended",
    "age_seconds": "From submission, else registration, to its end (ended_by), or now; never negative",
    "polls": "Requests about the job so far, failed ones included",
    "failures": "Failed polls in a row",
    "last_error": "Class and code of the last failed poll, never a body. NULL: the last one did not fail",
    # its end and its deadline
    "done_after": "Lower bound of its end: when the last request that saw it not done was sent, else submitted_at",
    "done_by": "Upper bound of its end: when the first answer `done` was complete. NULL: not done",
    "uncertainty_seconds": "From done_after to done_by",
    "download_by": "Exports: done_after and 7 days, after which Elevate may have deleted the file. NULL: not an export",
    "received_at_first": "received_at as it was at registration, before any amendment",
    "amendments": "How often the declared facts were amended",
    "basis": "What the deadline counts from: received, else submitted, else registered",
    "deadline_on": "Last day of the deadline, in the legal time zone: a calendar month from its basis, or as extended",
    "deadline_at": "The instant at which the last day ends in the legal time zone",
    "verdict": _VERDICT,
    "days_left": "Calendar days from today to deadline_on in the legal time zone; negative after it. NULL: job settled",
    # a transition
    "id": "In the order of recording; never used twice",
    "seq": "Number of the transition within its job, without gaps; 0 is the registration",
    "action": "registered, observed, withdrawn, reopened, attested or amended",
    "from_status": "What Elevate had said before, verbatim. NULL: nothing yet",
    "to_status": "What Elevate said from then on, verbatim. NULL: nothing yet",
    "from_state": "State before. NULL: it is the registration",
    "to_state": "State after",
    "last_seen_at": "Lower bound: when the last request with the old status was sent. NULL: there was no old status",
    "observed_at": "Upper bound: when the first answer with the new status was complete; else when an operator acted",
    "server_date": "HTTP Date of the answer: a clock that is not ours",
    "claimed_at": "On attested rows: done by then, as the operator says",
    "base_url": "Where the answer came from. NULL: not an answer",
    "actor": "Who acted. NULL: it was observed",
    "anomaly": "unknown_status, backwards, vanished, reappeared or never_found. NULL: no anomaly",
    "reason": "An operator's words",
    "seal_id": "The seal that covers it. NULL: not sealed yet",
    # a status
    "entered_after": "Lower bound of its entry: when the last request with another status was sent, else submitted_at",
    "entered_by": "Upper bound of its entry: when the first answer with it was complete",
    "left_after": "Lower bound of its end: when the last request with it was sent. NULL: not left, or unknown",
    "left_by": "Upper bound of its end: when the first answer with another status was complete. NULL: not left",
    # counts
    "jobs": "How many jobs the request has",
    "submitted": "Jobs of this row, in any state",
    **{
        state: f"Jobs of this row in state {state}"
        for state in ("open", "done", "failed", "lost", "attested", "withdrawn")
    },
    "not_done": "Jobs of this row that ended, but are not done",
    "met": "Jobs of this row with this verdict: Elevate reported them done in time",
    "missed": "Jobs of this row with this verdict: done too late",
    "undecidable": "Jobs of this row with this verdict: it is unknown whether in time",
    "pending": "Jobs of this row with this verdict: not done, deadline ahead",
    "overdue": "Jobs of this row with this verdict: not done, deadline past",
    "month": "Month of submission, else registration, in UTC: YYYY-MM",
    **{
        f"done_within_{n}d": f"Jobs of this row that were certainly done within {n} days of submission"
        for n in (1, 7, 14)
    },
    # gaps and coverage
    "began_at": "When the gap began",
    "ended_at": "When observation resumed. NULL: not yet",
    "is_open": "1: it has not ended; 0: it has",
    "cause": "unreachable, key_refused, rate_limited, bad_answer, not_running, paused or clock_set",
    "detail": "More about the cause",
    "seconds": "From its beginning to its end, or now",
    "open_jobs": "How many jobs of the cluster were open at some time within the gap",
    "covered_share": "Share, 0 to 1, of the time from registration to its end, or now, that is outside gaps",
    "longest_unobserved_seconds": "Longest stretch of that time inside gaps; gaps that overlap or touch are one",
    # a cluster
    "polls_behind": "Open jobs whose next poll is over a minute late",
    "answered_at": "When its last valid answer was complete. NULL: none yet",
    "paused_until": "Until when it is not asked. NULL: it is not paused",
    "pause_cause": "Why it is paused, as the causes of gaps",
    "next_deadline_on": "The nearest deadline ahead of a job that is open, failed or lost",
    # where a view means something else by a name
    "report_jobs.status": "What Elevate said last, verbatim. NULL: nothing yet",
    "report_statuses.status": "What Elevate said, verbatim",
    "report_durations.seconds_min": "Lower bound, from submission to done; from registration, if submission is unknown",
    "report_durations.seconds_max": "Upper bound, from submission to done; never negative. NULL: submission is unknown",
    "report_statuses.seconds_min": "Lower bound of the time in this status; until it was last seen, if it was not left",
    "report_statuses.seconds_max": "Upper bound of the time in this status; until now, if still open. NULL: unknown",
    "report_requests.received_at": "The earliest of its jobs. NULL: unknown",
    "report_requests.deadline_on": "The earliest of its jobs",
    "report_requests.done_after": "Lower bound of the end of its last job; withdrawn jobs do not count",
    "report_requests.done_by": "Upper bound of the end of its last job; withdrawn jobs do not count. NULL: not done",
    "report_requests.verdict": "Worst of its jobs: missed, overdue, undecidable, pending, attested, met, withdrawn",
}
"""By column, or by view and column where another view means something else: what it holds."""


def of_view(view: str) -> str:
    """Return the comment on *view*."""
    return f"A row is {ROWS[view].replace('`', '')}."


def of_column(view: str, column: str) -> str:
    """Return the comment on *column* of *view*."""
    return COLUMNS.get(f"{view}.{column}") or COLUMNS[column]
