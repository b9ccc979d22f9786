"""All tables, with their CHECKs.

They come at once, those that later versions fill included: SQLite cannot add a CHECK without rebuilding the table.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

KINDS = ("export", "removal", "unknown")
STATES = ("open", "done", "failed", "lost", "attested", "withdrawn")
ACTIONS = ("registered", "observed", "withdrawn", "reopened", "attested", "amended")
ANOMALIES = ("unknown_status", "backwards", "vanished", "reappeared", "never_found")
CAUSES = ("unreachable", "key_refused", "rate_limited", "bad_answer", "not_running", "paused")
DAY = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"
TIME = "[0-9][0-9]:[0-9][0-9]:[0-9][0-9].[0-9][0-9][0-9][0-9][0-9][0-9]"


def _sqlite() -> bool:
    return op.get_context().dialect.name == "sqlite"


def _check(table: str, column: str, rule: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(f"{column} IS NULL OR ({rule})", name=f"ck_{table}_{column}")


def _word(table: str, column: str, words: tuple[str, ...]) -> sa.CheckConstraint:
    listed = ", ".join(f"'{word}'" for word in words)
    return _check(table, column, f"{column} IN ({listed})")


def _text(table: str, column: str, longest: int) -> sa.CheckConstraint:
    """Not empty, not over-long, no control character (C0, DEL, C1: they garble terminals, logs and CSV)."""
    if _sqlite():  # length() stops at a NUL, hence the look at the bytes for it; a BLOB is no text
        controls = "char(1) || '-' || char(31) || char(127) || '-' || char(159)"
        rule = (
            f"typeof({column}) = 'text' AND length({column}) BETWEEN 1 AND {longest}"
            f" AND instr({column}, char(0)) = 0 AND {column} NOT GLOB '*[' || {controls} || ']*'"
        )
    else:
        rule = (
            f"char_length({column}) BETWEEN 1 AND {longest}"
            rf" AND {column} !~ '[\u0001-\u001f\u007f-\u009f]'"
        )
    return _check(table, column, rule)


def _instant(table: str, column: str) -> sa.CheckConstraint:
    """A real instant from 1970 to 9998: what Python can take to any time zone; never `infinity`."""
    if _sqlite():
        rule = (
            f"typeof({column}) = 'text' AND {column} GLOB '{DAY} {TIME}'"
            f" AND strftime('%Y-%m-%d %H:%M:%S', substr({column}, 1, 19)) IS substr({column}, 1, 19)"
            f" AND substr({column}, 12, 2) < '24' AND {column} >= '1970-01-01' AND {column} < '9999-01-01'"
        )
    else:
        rule = f"{column} >= '1970-01-01 00:00:00+00' AND {column} < '9999-01-01 00:00:00+00'"
    return _check(table, column, rule)


def _day(table: str, column: str) -> sa.CheckConstraint:
    if _sqlite():
        rule = (
            f"typeof({column}) = 'text' AND {column} GLOB '{DAY}' AND strftime('%Y-%m-%d', {column}) IS {column}"
            f" AND {column} >= '1970-01-01' AND {column} < '9999-01-01'"
        )
    else:
        rule = f"{column} >= '1970-01-01' AND {column} < '9999-01-01'"
    return _check(table, column, rule)


def _count(table: str, column: str) -> sa.CheckConstraint:
    return _check(table, column, f"typeof({column}) = 'integer' AND {column} >= 0" if _sqlite() else f"{column} >= 0")


def _id() -> sa.Column[int]:
    big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column("id", big, sa.Identity(always=True), primary_key=True)


def upgrade() -> None:
    instant = sa.DateTime(timezone=True)
    big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    # The statement's time, not the transaction's: a job is often submitted within the transaction that registers it.
    now = sa.text("(strftime('%Y-%m-%d %H:%M:%f000', 'now'))" if _sqlite() else "clock_timestamp()")
    who = sa.text("'sql'" if _sqlite() else "SESSION_USER")

    op.create_table(
        "sources",
        _id(),
        sa.Column("cluster", sa.String(), nullable=False),
        sa.Column("base_url", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("timezone", sa.String(), nullable=False),
        sa.Column("archive_days", sa.Integer(), nullable=False),
        sa.Column("lost_after_polls", sa.Integer(), nullable=False),
        sa.Column("lost_after_seconds", sa.Integer(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("recorded_at", instant, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_sources"),
        _text("sources", "cluster", 63),
        _count("sources", "archive_days"),
        _count("sources", "lost_after_polls"),
        _count("sources", "lost_after_seconds"),
        _instant("sources", "recorded_at"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "jobs",
        _id(),
        sa.Column("cluster", sa.String(), nullable=False),
        sa.Column("jid", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False, server_default="unknown"),
        sa.Column("reference", sa.String()),
        sa.Column("received_at", instant),
        sa.Column("submitted_at", instant),
        sa.Column("extended_on", sa.Date()),
        sa.Column("registered_at", instant, nullable=False, server_default=now),
        sa.Column("registered_by", sa.String(), nullable=False, server_default=who),
        sa.Column("deadline_on", sa.Date()),
        sa.Column("deadline_at", instant),
        sa.Column("state", sa.String(), nullable=False, server_default="open"),
        sa.Column("status", sa.String()),
        sa.Column("status_after", instant),
        sa.Column("status_by", instant),
        sa.Column("status_polls", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("seen_at", instant),
        sa.Column("ended_after", instant),
        sa.Column("ended_by", instant),
        sa.Column("seq", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("due_at", instant, server_default=now),
        sa.Column("polls", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("failures", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("last_error", sa.String()),
        sa.Column("leased_by", sa.String()),
        sa.Column("leased_until", instant),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint("cluster", "jid", name="uq_jobs_cluster_jid"),
        _text("jobs", "cluster", 63),
        _text("jobs", "jid", 255),
        _text("jobs", "reference", 255),
        _text("jobs", "registered_by", 255),
        _word("jobs", "kind", KINDS),
        _word("jobs", "state", STATES),
        *(_count("jobs", column) for column in ("status_polls", "seq", "polls", "failures")),
        *(
            _instant("jobs", column)
            for column in (
                *("received_at", "submitted_at", "registered_at", "deadline_at", "status_after", "status_by"),
                *("seen_at", "ended_after", "ended_by", "due_at", "leased_until"),
            )
        ),
        _day("jobs", "extended_on"),
        _day("jobs", "deadline_on"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_jobs_cluster_due_at", "jobs", ["cluster", "due_at"])
    op.create_index("ix_jobs_jid", "jobs", ["jid"])
    op.create_index("ix_jobs_reference", "jobs", ["reference"])
    op.create_table(
        "transitions",
        _id(),
        sa.Column("job_id", big, nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("from_status", sa.String()),
        sa.Column("to_status", sa.String()),
        sa.Column("from_state", sa.String()),
        sa.Column("to_state", sa.String(), nullable=False),
        sa.Column("last_seen_at", instant),
        sa.Column("observed_at", instant, nullable=False),
        sa.Column("server_date", instant),
        sa.Column("source_id", big),
        sa.Column("polls", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("actor", sa.String()),
        sa.Column("anomaly", sa.String()),
        sa.Column("reason", sa.String()),
        sa.Column("kind", sa.String()),
        sa.Column("reference", sa.String()),
        sa.Column("received_at", instant),
        sa.Column("submitted_at", instant),
        sa.Column("extended_on", sa.Date()),
        sa.PrimaryKeyConstraint("id", name="pk_transitions"),
        sa.UniqueConstraint("job_id", "seq", name="uq_transitions_job_id_seq"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_transitions_job_id_jobs"),
        sa.ForeignKeyConstraint(["source_id"], ["sources.id"], name="fk_transitions_source_id_sources"),
        _word("transitions", "action", ACTIONS),
        _word("transitions", "from_state", STATES),
        _word("transitions", "to_state", STATES),
        _word("transitions", "anomaly", ANOMALIES),
        _word("transitions", "kind", KINDS),
        _text("transitions", "reference", 255),
        _count("transitions", "seq"),
        _count("transitions", "polls"),
        *(
            _instant("transitions", column)
            for column in ("last_seen_at", "observed_at", "server_date", "received_at", "submitted_at")
        ),
        _day("transitions", "extended_on"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "gaps",
        _id(),
        sa.Column("cluster", sa.String(), nullable=False),
        sa.Column("began_at", instant, nullable=False),
        sa.Column("ended_at", instant, nullable=False),
        sa.Column("cause", sa.String(), nullable=False),
        sa.Column("detail", sa.String()),
        sa.PrimaryKeyConstraint("id", name="pk_gaps"),
        _text("gaps", "cluster", 63),
        _word("gaps", "cause", CAUSES),
        _instant("gaps", "began_at"),
        _instant("gaps", "ended_at"),
        sa.CheckConstraint("ended_at >= began_at", name="ck_gaps_order"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_gaps_cluster_began_at", "gaps", ["cluster", "began_at"])
    op.create_table(
        "clusters",
        sa.Column("cluster", sa.String(), nullable=False),
        sa.Column("answered_at", instant),
        sa.Column("paused_until", instant),
        sa.Column("pause_cause", sa.String()),
        sa.Column("gap_began_at", instant),
        sa.Column("gap_cause", sa.String()),
        sa.Column("gap_detail", sa.String()),
        sa.Column("next_request_at", instant),
        sa.PrimaryKeyConstraint("cluster", name="pk_clusters"),
        _text("clusters", "cluster", 63),
        _word("clusters", "pause_cause", CAUSES),
        _word("clusters", "gap_cause", CAUSES),
        *(
            _instant("clusters", column)
            for column in ("answered_at", "paused_until", "gap_began_at", "next_request_at")
        ),
    )
    op.create_table(
        "workers",
        sa.Column("worker", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("started_at", instant, nullable=False),
        sa.Column("beat_at", instant, nullable=False),
        sa.Column("stopped_at", instant),
        sa.PrimaryKeyConstraint("worker", name="pk_workers"),
        *(_instant("workers", column) for column in ("started_at", "beat_at", "stopped_at")),
    )
    op.create_table(
        "seals",
        _id(),
        sa.Column("last_transition_id", big, nullable=False),
        sa.Column("last_gap_id", big, nullable=False),
        sa.Column("last_source_id", big, nullable=False),
        sa.Column("rows", big, nullable=False),
        sa.Column("previous_sha256", sa.String()),
        sa.Column("checkpoint", sa.String(), nullable=False),
        sa.Column("checkpoint_sha256", sa.String(), nullable=False),
        sa.Column("sealed_at", instant, nullable=False),
        sa.Column("key_id", sa.String()),
        sa.PrimaryKeyConstraint("id", name="pk_seals"),
        sa.UniqueConstraint("checkpoint_sha256", name="uq_seals_checkpoint_sha256"),
        _count("seals", "last_transition_id"),
        _count("seals", "last_gap_id"),
        _count("seals", "last_source_id"),
        _count("seals", "rows"),
        _instant("seals", "sealed_at"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_seals_last_transition_id", "seals", ["last_transition_id"])
    op.create_table(
        "segments",
        sa.Column("seal_id", big, nullable=False),
        sa.Column("part", sa.Integer(), nullable=False),
        sa.Column("cluster", sa.String(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("seal_id", "part", name="pk_segments"),
        sa.ForeignKeyConstraint(["seal_id"], ["seals.id"], name="fk_segments_seal_id_seals"),
        _text("segments", "cluster", 63),
        _check("segments", "rows", "rows BETWEEN 1 AND 1000"),
    )


def downgrade() -> None:
    for table in ("segments", "seals", "workers", "clusters", "gaps", "transitions", "jobs", "sources"):
        op.drop_table(table)
