"""What a row and a column of each view mean: the one definition, for PostgreSQL's comments and the README's table.

Owns the words only; `views.create` puts them into the database. A column that means the same in several views is told
once.
"""

from __future__ import annotations

from typing import Final

ROWS: Final = {
    "report_jobs": (
        "a job: what was declared, its state and status with the bounds of its entry, deadline and verdict, next poll"
    ),
    "report_durations": (
        "a job that is done: from submission to done, at least (`seconds_min`) and at most (`seconds_max`)"
    ),
    "report_transitions": "a change of a job: from, to, and the two instants between which it happened",
    "report_statuses": (
        "a status that a job was seen in: when it was entered and left, and for how long, at least and at most"
    ),
    "report_monthly": ("a cluster, kind and month of submission (UTC): how many, and what became of them"),
    "report_deadlines": "a job: its deadline, what it counts from, its verdict, days left",
    "report_requests": (
        "a reference: the export and the removal of one person's request together, with the worst verdict"
    ),
    "report_anomalies": "a transition that is odd, with the columns of `report_transitions`",
    "report_gaps": (
        "a stretch in which nothing could be observed, the open one included, and how many jobs were open meanwhile"
    ),
    "report_coverage": "a job: the share of its life that no gap covers, and its longest unobserved stretch",
    "report_clusters": "a cluster: what is open, late or paused, and the next deadline",
}
"""By view: what a row of it is."""

_VERDICT: Final = (
    "met: Elevate reported the job done in time (that the person was informed is not shown); missed: done too late; "
    "undecidable: the deadline lies between the bounds, or nothing was seen since; pending: not done, deadline ahead; "
    "overdue: seen not done at or after the deadline; attested, withdrawn: an operator says so"
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
    "status_after": (
        "It began to have this status after this: when the request was sent that last saw another, else submitted_at"
    ),
    "status_by": "It had this status by then: the answer that first showed it was complete",
    "seen_at": "When the request of the last valid answer was sent. NULL: none yet",
    "ended_after": "The job ended after this. NULL: still open, or unknown",
    "ended_by": "The job had ended by then. NULL: still open",
    "next_poll_at": "When Elevate is asked next. NULL: the job has ended",
    "age_seconds": "Since submission, else registration, until it had ended (ended_by), or now; 0 at least",
    "polls": "Requests about the job so far, failed ones included",
    "failures": "Failed polls in a row",
    "last_error": "Class and code of the last failed poll, never a body. NULL: the last one did not fail",
    # its end and its deadline
    "done_after": "It was done after this: when the request was sent that last saw it not done, else submitted_at",
    "done_by": "It was done by then: the answer that first said so was complete. NULL: not done",
    "uncertainty_seconds": "From done_after to done_by: how much is not known",
    "download_by": "Exports: done_after and 7 days, after which Elevate may have deleted the file. NULL: no export",
    "received_at_first": "received_at as it was at registration, before any amendment",
    "amendments": "How often the declared facts were amended",
    "basis": "What the deadline counts from: received, else submitted, else registered",
    "deadline_on": "Last day of the deadline, in the legal time zone: a calendar month from its basis, or as extended",
    "deadline_at": "The instant at which the last day ends in the legal time zone",
    "verdict": _VERDICT,
    "days_left": "Whole days from now to deadline_at, rounded down, negative past it. NULL: the job needs no more",
    # a transition
    "id": "In the order of recording; never given twice",
    "seq": "Number of the transition within its job, without a hole; 0 is the registration",
    "action": "registered, observed, withdrawn, reopened, attested or amended",
    "from_status": "What Elevate had said before, verbatim. NULL: nothing yet",
    "to_status": "What Elevate said from then on, verbatim. NULL: nothing yet",
    "from_state": "State before. NULL: it is the registration",
    "to_state": "State after",
    "last_seen_at": "It happened after this: the request was sent that last saw the old status. NULL: none had",
    "observed_at": "It had happened by then: the answer that first showed it was complete; else when somebody did it",
    "server_date": "HTTP Date of the answer: a clock that is not ours",
    "claimed_at": "on attested rows: done by then, says the operator",
    "base_url": "Where the answer came from. NULL: it was no answer",
    "actor": "Who did it. NULL: it was observed",
    "anomaly": "What is odd: unknown_status, backwards, vanished, reappeared or never_found. NULL: nothing",
    "reason": "An operator's words",
    "seal_id": "The seal that closed it. NULL: not sealed yet",
    # a status
    "entered_after": "It was entered after this: when the request was sent that last saw another, else submitted_at",
    "entered_by": "It had been entered by then: the answer that first showed it was complete",
    "left_after": "It was left after this: when the request was sent that last saw it. NULL: not left, or unknown",
    "left_by": "It had been left by then: the answer that first showed another was complete. NULL: not left",
    # counts
    "jobs": "How many jobs the request has",
    "submitted": "Jobs of this row, whatever became of them",
    "open": "Jobs of this row in state open",
    "done": "Jobs of this row in state done",
    "failed": "Jobs of this row in state failed",
    "lost": "Jobs of this row in state lost",
    "attested": "Jobs of this row in state attested",
    "withdrawn": "Jobs of this row in state withdrawn",
    "not_done": "Jobs of this row that ended otherwise than done",
    "met": "Jobs of this row with this verdict: Elevate reported them done in time",
    "missed": "Jobs of this row with this verdict: done too late",
    "undecidable": "Jobs of this row with this verdict: whether in time cannot be told",
    "pending": "Jobs of this row with this verdict: not done, deadline ahead",
    "overdue": "Jobs of this row with this verdict: not done, deadline past",
    "month": "Month of submission, else registration, in UTC: YYYY-MM",
    "done_within_1d": "Jobs of this row that were done at most 1 day after submission, for certain",
    "done_within_7d": "Jobs of this row that were done at most 7 days after submission, for certain",
    "done_within_14d": "Jobs of this row that were done at most 14 days after submission, for certain",
    # gaps and coverage
    "began_at": "From when on nothing could be observed",
    "ended_at": "When observation resumed. NULL: not yet",
    "is_open": "1: it has not ended; 0: it has",
    "cause": "unreachable, key_refused, rate_limited, bad_answer, not_running or paused",
    "detail": "More about the cause",
    "seconds": "From its beginning to its end, or now",
    "open_jobs": "How many jobs of the cluster were open meanwhile",
    "covered_share": "Share, 0 to 1, of the time from registration to its end, or now, that no gap covers",
    "longest_unobserved_seconds": "Longest stretch of that time that gaps cover; those that overlap or touch are one",
    # a cluster
    "polls_behind": "Open jobs whose next poll is over a minute late",
    "answered_at": "When its last valid answer was complete. NULL: none yet",
    "paused_until": "Until when it is not asked. NULL: it is not paused",
    "pause_cause": "Why it is paused, as the causes of gaps",
    "next_deadline_on": "The nearest deadline ahead of a job that is open, failed or lost",
    # where a view means something else by a name
    "report_jobs.status": "What Elevate said last, verbatim. NULL: nothing yet",
    "report_statuses.status": "What Elevate said, verbatim",
    "report_durations.seconds_min": (
        "From submission to done at least; from registration, where the submission is unknown"
    ),
    "report_durations.seconds_max": "From submission to done at most; 0 at least. NULL: the submission is unknown",
    "report_statuses.seconds_min": "It had the status at least so long: until it was last seen, if it was not left",
    "report_statuses.seconds_max": (
        "It had the status at most so long: until now, if the job is open in it. NULL: not known"
    ),
    "report_requests.received_at": "The earliest of its jobs. NULL: unknown",
    "report_requests.deadline_on": "The earliest of its jobs",
    "report_requests.done_after": "All of it was done after this; withdrawn jobs do not count",
    "report_requests.done_by": "All of it was done by then; withdrawn jobs do not count. NULL: not all is",
    "report_requests.verdict": (
        "The worst of its jobs: missed, overdue, undecidable, pending, attested, met, withdrawn, in this order"
    ),
}
"""By column, or by view and column where another view means something else: what it holds."""


def of_view(view: str) -> str:
    """Return the comment on *view*."""
    return f"A row is {ROWS[view].replace('`', '')}."


def of_column(view: str, column: str) -> str:
    """Return the comment on *column* of *view*."""
    return COLUMNS.get(f"{view}.{column}") or COLUMNS[column]
