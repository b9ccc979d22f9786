"""Where checkpoints were delivered, and indexes that the reports read few rows by."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

DAY = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"
TIME = "[0-9][0-9]:[0-9][0-9]:[0-9][0-9].[0-9][0-9][0-9][0-9][0-9][0-9]"
PARTIAL = (  # name, rows that it holds (in literals: no bound parameter finds such an index), columns of transitions
    ("ix_transitions_amended", "action = 'amended'", ["job_id"]),
    ("ix_transitions_anomalous", "anomaly IS NOT NULL", ["id"]),
    ("ix_transitions_attested", "action = 'attested'", ["job_id", "observed_at"]),
    ("ix_transitions_restated", "from_state <> 'open' AND from_state <> to_state", ["job_id"]),
)


def _sqlite() -> bool:
    return op.get_context().dialect.name == "sqlite"


def _check(column: str, rule: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(f"{column} IS NULL OR ({rule})", name=f"ck_deliveries_{column}")


def _destination() -> sa.CheckConstraint:
    """Not empty, not over-long, no control character: as the names of 0001."""
    if _sqlite():
        controls = "char(1) || '-' || char(31) || char(127) || '-' || char(159)"
        rule = (
            "typeof(destination) = 'text' AND length(destination) BETWEEN 1 AND 4096"
            f" AND instr(destination, char(0)) = 0 AND destination NOT GLOB '*[' || {controls} || ']*'"
        )
    else:
        rule = r"char_length(destination) BETWEEN 1 AND 4096 AND destination !~ '[\u0001-\u001f\u007f-\u009f]'"
    return _check("destination", rule)


def _instant(column: str) -> sa.CheckConstraint:
    """A real instant from 1970 to 9998, never `infinity`: as those of 0001."""
    if _sqlite():
        rule = (
            f"typeof({column}) = 'text' AND {column} GLOB '{DAY} {TIME}'"
            f" AND strftime('%Y-%m-%d %H:%M:%S', substr({column}, 1, 19)) IS substr({column}, 1, 19)"
            f" AND substr({column}, 12, 2) < '24' AND {column} >= '1970-01-01' AND {column} < '9999-01-01'"
        )
    else:
        rule = f"{column} >= '1970-01-01 00:00:00+00' AND {column} < '9999-01-01 00:00:00+00'"
    return _check(column, rule)


def upgrade() -> None:
    instant = sa.DateTime(timezone=True)
    big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    whole = "typeof(last_number) = 'integer' AND " if _sqlite() else ""
    op.create_table(
        "deliveries",
        sa.Column("destination", sa.String(), nullable=False),
        sa.Column("last_number", big, nullable=False, server_default="0"),
        sa.Column("delivered_at", instant),
        sa.Column("failing_since", instant),
        sa.Column("last_error", sa.String()),
        sa.PrimaryKeyConstraint("destination", name="pk_deliveries"),
        _destination(),
        _check("last_number", f"{whole}last_number >= 0"),
        _instant("delivered_at"),
        _instant("failing_since"),
    )
    for name, rows, columns in PARTIAL:
        where = sa.text(rows)
        op.create_index(name, "transitions", columns, sqlite_where=where, postgresql_where=where)
    op.create_index("ix_gaps_cluster_ended_at", "gaps", ["cluster", "ended_at"])


def downgrade() -> None:
    op.drop_index("ix_gaps_cluster_ended_at", "gaps")
    for name, _, _ in PARTIAL:
        op.drop_index(name, "transitions")
    op.drop_table("deliveries")
