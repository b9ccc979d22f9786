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
CAUSES = ("unreachable", "key_refused", "rate_limited", "bad_answer", "not_running", "paused", "clock_set")
DAY = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"
TIME = "[0-9][0-9]:[0-9][0-9]:[0-9][0-9].[0-9][0-9][0-9][0-9][0-9][0-9]"
INVISIBLE = (  # first and last code point of invisible characters: controls, soft hyphens, marks of direction, no width
    *((0x01, 0x1F), (0x7F, 0x9F), (0xAD, 0xAD), (0x61C, 0x61C), (0x180E, 0x180E), (0x200B, 0x200F)),
    *((0x2028, 0x202E), (0x2060, 0x206F), (0xFEFF, 0xFEFF), (0xFFF9, 0xFFFB)),
)
BLANKS = (  # the same of blanks: a jid has none, so that each command that reads a file finds it again
    *((0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x202F, 0x202F), (0x205F, 0x205F)),
    (0x3000, 0x3000),
)


def _sqlite() -> bool:
    return op.get_context().dialect.name == "sqlite"


def _check(table: str, column: str, rule: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(f"{column} IS NULL OR ({rule})", name=f"ck_{table}_{column}")


def _word(table: str, column: str, words: tuple[str, ...]) -> sa.CheckConstraint:
    listed = ", ".join(f"'{word}'" for word in words)
    return _check(table, column, f"{column} IN ({listed})")


def _text(table: str, column: str, longest: int = 255, refused: str = "", blanks: bool = True) -> sa.CheckConstraint:
    """Not blank, not over-long, no character that is invisible (it garbles terminals, logs and CSV) or *refused*."""
    spans = INVISIBLE if blanks else (*INVISIBLE, *BLANKS)
    if _sqlite():  # length() stops at a NUL, hence the look at the bytes for it; a BLOB is no text
        ranges = " || ".join(f"char({first}) || '-' || char({last})" for first, last in spans)
        rule = (
            f"typeof({column}) = 'text' AND length({column}) BETWEEN 1 AND {longest}"
            f" AND instr({column}, char(0)) = 0 AND {column} NOT GLOB '*[{refused}' || {ranges} || ']*'"
        )
    else:
        ranges = "".join(rf"\u{first:04x}-\u{last:04x}" for first, last in spans)
        rule = f"char_length({column}) BETWEEN 1 AND {longest} AND {column} !~ '[{refused}{ranges}]'"
    return _check(table, column, f"{rule} AND trim({column}) <> ''")


def _hex(table: str, column: str, digits: int) -> sa.CheckConstraint:
    rule = f"length({column}) = {digits} AND ltrim({column}, '0123456789abcdef') = ''"
    return _check(table, column, f"typeof({column}) = 'text' AND {rule}" if _sqlite() else rule)


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


def _count(table: str, column: str, least: int = 0) -> sa.CheckConstraint:
    whole = f"typeof({column}) = 'integer' AND " if _sqlite() else ""
    return _check(table, column, f"{whole}{column} >= {least}")


def _rule(table: str, name: str, rule: str) -> sa.CheckConstraint:
    """A CHECK over several columns; *rule* is never NULL."""
    return sa.CheckConstraint(rule, name=f"ck_{table}_{name}")


def _id() -> sa.Column[int]:
    big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column("id", big, sa.Identity(always=True), primary_key=True)


def upgrade() -> None:
    instant = sa.DateTime(timezone=True)
    big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    # The statement's time, not the transaction's: a job is often submitted within the transaction that registers it.
    now = sa.text("(strftime('%Y-%m-%d %H:%M:%f000', 'now'))" if _sqlite() else "clock_timestamp()")
    who = sa.text("'sql'" if _sqlite() else "SESSION_USER")

    def column(name: str, type_: sa.types.TypeEngine[object], default: str | None = None) -> sa.Column[object]:
        return sa.Column(name, type_, nullable=False, server_default=default)

    op.create_table(
        "sources",
        _id(),
        column("cluster", sa.String()),
        column("base_url", sa.String()),
        column("path", sa.String()),
        column("timezone", sa.String()),
        column("archive_days", sa.Integer()),
        column("lost_after_polls", sa.Integer()),
        column("lost_after_seconds", sa.Integer()),
        column("legal_timezone", sa.String()),
        column("version", sa.String()),
        column("recorded_at", instant),
        sa.PrimaryKeyConstraint("id", name="pk_sources"),
        _text("sources", "cluster", 63),
        _text("sources", "base_url", 2048),
        _text("sources", "path", 2048),
        _text("sources", "timezone"),
        *(_count("sources", name) for name in ("archive_days", "lost_after_polls", "lost_after_seconds")),
        _text("sources", "legal_timezone"),
        _text("sources", "version"),
        _instant("sources", "recorded_at"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "jobs",
        _id(),
        column("cluster", sa.String()),
        column("jid", sa.String()),
        column("kind", sa.String(), "unknown"),
        sa.Column("reference", sa.String()),
        sa.Column("received_at", instant),
        sa.Column("submitted_at", instant),
        sa.Column("extended_on", sa.Date()),
        sa.Column("registered_at", instant, nullable=False, server_default=now),
        sa.Column("registered_by", sa.String(), nullable=False, server_default=who),
        sa.Column("deadline_on", sa.Date()),
        sa.Column("deadline_at", instant),
        column("state", sa.String(), "open"),
        sa.Column("status", sa.String()),
        sa.Column("status_after", instant),
        sa.Column("status_by", instant),
        column("status_polls", sa.Integer(), "0"),
        sa.Column("seen_at", instant),
        sa.Column("ended_after", instant),
        sa.Column("ended_by", instant),
        column("seq", sa.Integer(), "0"),
        sa.Column("due_at", instant, server_default=now),
        column("polls", sa.Integer(), "0"),
        column("failures", sa.Integer(), "0"),
        sa.Column("last_error", sa.String()),
        sa.Column("leased_by", sa.String()),
        sa.Column("leased_until", instant),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint("cluster", "jid", name="uq_jobs_cluster_jid"),
        _text("jobs", "cluster", 63),
        _text("jobs", "jid", blanks=False),
        _text("jobs", "reference", refused="@"),
        *(_text("jobs", name) for name in ("registered_by", "status", "last_error", "leased_by")),
        _word("jobs", "kind", KINDS),
        _word("jobs", "state", STATES),
        *(_count("jobs", name) for name in ("status_polls", "seq", "polls", "failures")),
        *(
            _instant("jobs", name)
            for name in (
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
    for name, rows, columns in (
        ("ix_jobs_unsettled", "state IN ('open', 'failed', 'lost')", ["deadline_on", "id"]),
        ("ix_jobs_unsettled_cluster", "state IN ('open', 'failed', 'lost')", ["cluster", "deadline_at", "state"]),
        ("ix_jobs_stuck", "state IN ('failed', 'lost')", ["state"]),
        ("ix_jobs_ended", "ended_by IS NOT NULL", ["ended_by", "id"]),
    ):
        where = sa.text(rows)
        op.create_index(name, "jobs", columns, sqlite_where=where, postgresql_where=where)
    op.create_table(
        "transitions",
        _id(),
        column("job_id", big),
        column("seq", sa.Integer()),
        column("action", sa.String()),
        sa.Column("from_status", sa.String()),
        sa.Column("to_status", sa.String()),
        sa.Column("from_state", sa.String()),
        column("to_state", sa.String()),
        sa.Column("last_seen_at", instant),
        column("observed_at", instant),
        sa.Column("server_date", instant),
        sa.Column("claimed_at", instant),
        sa.Column("source_id", big),
        column("polls", sa.Integer(), "0"),
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
        *(_text("transitions", name) for name in ("from_status", "to_status", "actor")),
        _text("transitions", "reason", 1000, refused="@"),
        _text("transitions", "reference", refused="@"),
        _count("transitions", "seq"),
        _count("transitions", "polls"),
        *(
            _instant("transitions", name)
            for name in ("last_seen_at", "observed_at", "server_date", "claimed_at", "received_at", "submitted_at")
        ),
        _day("transitions", "extended_on"),
        # What a row of each action says, and what it says nothing of.
        _rule("transitions", "registration", "(action = 'registered') = (seq = 0)"),
        _rule("transitions", "from", "(action = 'registered') = (from_state IS NULL)"),
        _rule("transitions", "observer", "(action = 'observed') = (actor IS NULL)"),
        _rule("transitions", "claim", "(action = 'attested') = (claimed_at IS NOT NULL)"),
        _rule("transitions", "why", "(action IN ('registered', 'observed')) = (reason IS NULL)"),
        _rule("transitions", "facts", "(action IN ('registered', 'amended')) = (kind IS NOT NULL)"),
        _rule(
            "transitions",
            "no_facts",
            "kind IS NOT NULL OR coalesce(reference, received_at, submitted_at, extended_on) IS NULL"
            if _sqlite()
            else "kind IS NOT NULL OR num_nonnulls(reference, received_at, submitted_at, extended_on) = 0",
        ),
        _rule(
            "transitions",
            "answer",
            "CASE action WHEN 'observed' THEN to_status IS NOT NULL AND source_id IS NOT NULL"
            " ELSE source_id IS NULL AND server_date IS NULL AND anomaly IS NULL END",
        ),
        _rule(
            "transitions",
            "end",
            "CASE action WHEN 'registered' THEN to_state = 'open' WHEN 'amended' THEN to_state = from_state"
            " WHEN 'reopened' THEN to_state = 'open' AND from_state NOT IN ('open', 'done')"
            " WHEN 'observed' THEN from_state = 'open' AND to_state = CASE to_status WHEN 'done' THEN 'done'"
            " WHEN 'error' THEN 'failed' WHEN 'not_found' THEN CASE to_state WHEN 'lost' THEN 'lost' ELSE 'open' END"
            " ELSE 'open' END"
            " ELSE to_state = action AND from_state IN ('open', 'failed', 'lost') END",
        ),
        _rule("transitions", "order", "last_seen_at IS NULL OR last_seen_at <= observed_at"),
        sqlite_autoincrement=True,
    )
    for name, rows, columns in (
        ("ix_transitions_amended", "action = 'amended'", ["job_id"]),
        ("ix_transitions_anomalous", "anomaly IS NOT NULL", ["id"]),
        ("ix_transitions_attested", "action = 'attested'", ["job_id", "observed_at"]),
        ("ix_transitions_restated", "from_state <> 'open' AND from_state <> to_state", ["job_id"]),
    ):
        where = sa.text(rows)
        op.create_index(name, "transitions", columns, sqlite_where=where, postgresql_where=where)
    op.create_table(
        "gaps",
        _id(),
        column("cluster", sa.String()),
        column("began_at", instant),
        column("ended_at", instant),
        column("cause", sa.String()),
        sa.Column("detail", sa.String()),
        sa.Column("actor", sa.String()),
        sa.PrimaryKeyConstraint("id", name="pk_gaps"),
        _text("gaps", "cluster", 63),
        _word("gaps", "cause", CAUSES),
        _text("gaps", "detail", 4096, refused="@"),
        _text("gaps", "actor"),
        _instant("gaps", "began_at"),
        _instant("gaps", "ended_at"),
        _rule("gaps", "order", "ended_at >= began_at"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_gaps_cluster_began_at", "gaps", ["cluster", "began_at"])
    op.create_index("ix_gaps_cluster_ended_at", "gaps", ["cluster", "ended_at"])
    op.create_table(
        "clusters",
        column("cluster", sa.String()),
        sa.Column("answered_at", instant),
        column("failures", sa.Integer(), "0"),
        sa.Column("failing_since", instant),
        column("pauses", sa.Integer(), "0"),
        sa.Column("paused_until", instant),
        sa.Column("pause_cause", sa.String()),
        sa.Column("gap_began_at", instant),
        sa.Column("gap_cause", sa.String()),
        sa.Column("gap_detail", sa.String()),
        sa.Column("gap_actor", sa.String()),
        sa.Column("next_request_at", instant),
        sa.Column("utc_offsets", sa.String()),
        sa.PrimaryKeyConstraint("cluster", name="pk_clusters"),
        _text("clusters", "cluster", 63),
        _count("clusters", "failures"),
        _count("clusters", "pauses"),
        _word("clusters", "pause_cause", CAUSES),
        _word("clusters", "gap_cause", CAUSES),
        _text("clusters", "gap_detail", 4096, refused="@"),
        _text("clusters", "gap_actor"),
        _text("clusters", "utc_offsets", 4096),
        *(
            _instant("clusters", name)
            for name in ("answered_at", "failing_since", "paused_until", "gap_began_at", "next_request_at")
        ),
    )
    op.create_table(
        "workers",
        column("worker", sa.String()),
        column("host", sa.String()),
        column("pid", sa.Integer()),
        column("version", sa.String()),
        column("started_at", instant),
        column("beat_at", instant),
        sa.Column("stopped_at", instant),
        sa.Column("once", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.PrimaryKeyConstraint("worker", name="pk_workers"),
        *(_text("workers", name) for name in ("worker", "host", "version")),
        _count("workers", "pid"),
        *(_instant("workers", name) for name in ("started_at", "beat_at", "stopped_at")),
        *([_rule("workers", "once", "once IN (0, 1)")] if _sqlite() else []),
    )
    op.create_table(
        "seals",
        _id(),
        column("last_transition_id", big),
        column("last_gap_id", big),
        column("last_source_id", big),
        column("rows", big),
        column("checkpoint", sa.String()),
        column("checkpoint_sha256", sa.String()),
        column("sealed_at", instant),
        sa.Column("key_id", sa.String()),
        sa.PrimaryKeyConstraint("id", name="pk_seals"),
        sa.UniqueConstraint("checkpoint_sha256", name="uq_seals_checkpoint_sha256"),
        *(_count("seals", name) for name in ("last_transition_id", "last_gap_id", "last_source_id", "rows")),
        _check("seals", "checkpoint", "length(checkpoint) BETWEEN 1 AND 100000000"),
        _hex("seals", "checkpoint_sha256", 64),
        _instant("seals", "sealed_at"),
        _hex("seals", "key_id", 32),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_seals_last_transition_id", "seals", ["last_transition_id"])
    op.create_table(
        "segments",
        column("seal_id", big),
        column("name", sa.String()),
        column("part", sa.Integer()),
        column("first_id", big),
        column("last_id", big),
        column("rows", sa.Integer()),
        column("sha256", sa.String()),
        sa.PrimaryKeyConstraint("seal_id", "name", "part", name="pk_segments"),
        sa.ForeignKeyConstraint(["seal_id"], ["seals.id"], name="fk_segments_seal_id_seals"),
        _word("segments", "name", ("transitions", "gaps", "sources")),
        _count("segments", "part", 1),
        _count("segments", "first_id"),
        _count("segments", "last_id"),
        _count("segments", "rows", 1),
        _hex("segments", "sha256", 64),
        _rule("segments", "order", "first_id <= last_id"),
    )
    op.create_table(
        "deliveries",
        column("destination", sa.String()),
        column("last_number", big, "0"),
        sa.Column("delivered_at", instant),
        sa.Column("failing_since", instant),
        sa.Column("last_error", sa.String()),
        sa.PrimaryKeyConstraint("destination", name="pk_deliveries"),
        _text("deliveries", "destination", 4096),
        _count("deliveries", "last_number"),
        _instant("deliveries", "delivered_at"),
        _instant("deliveries", "failing_since"),
        _text("deliveries", "last_error", 4096),
    )
    op.create_table(
        "alerts",
        column("kind", sa.String()),
        column("subject", sa.String()),
        column("since", instant),
        column("level", sa.String()),
        sa.Column("told_at", instant),
        sa.Column("ended_at", instant),
        sa.Column("acked_by", sa.String()),
        sa.Column("acked_until", instant),
        sa.Column("ack_reason", sa.String()),
        sa.PrimaryKeyConstraint("kind", "subject", "since", name="pk_alerts"),
        *(_text("alerts", name) for name in ("kind", "subject", "level", "acked_by")),
        _text("alerts", "ack_reason", 1000, refused="@"),
        *(_instant("alerts", name) for name in ("since", "told_at", "ended_at", "acked_until")),
    )


def downgrade() -> None:
    for table in ("alerts", "deliveries", "segments", "seals", "workers", "clusters", "gaps", "transitions", "jobs"):
        op.drop_table(table)
    op.drop_table("sources")
