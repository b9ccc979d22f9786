"""How Alembic reaches the database: the same engine as tracker's, in one transaction.

Views and guards hold no data: they are dropped before the revisions run and today's are made after, in the same
transaction, and only when the target is head, so that each has one definition and no revision repeats it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context

from tracker import database, guards, settings
from tracker.models import METADATA
from tracker.reports import views

LOCK = 0x7472616D  # PostgreSQL: one migration at a time ("tram")


def changes_schema() -> bool:
    """Whether the command moves the revision (upgrade, downgrade), and is not a mere look (check, current)."""
    try:
        context.get_revision_argument()
    except KeyError:
        return False
    return True


def migrate(connection: sa.Connection) -> None:
    moving = changes_schema()
    # Named: the search path may lead on to another schema that has a tracker of its own.
    schema = connection.dialect.default_schema_name if moving and connection.dialect.name == "postgresql" else None
    context.configure(
        connection=connection,
        target_metadata=METADATA,
        transactional_ddl=True,
        version_table=database.VERSION_TABLE,
        version_table_schema=schema,
    )
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
        if moving and database.revision(connection) is not None:  # else what is there is not tracker's
            views.drop(connection)
            guards.drop(connection)
        context.run_migrations()
        if (fill := context.config.attributes.get("fill")) is not None:
            fill(connection)
        if moving and database.revision(connection) == context.get_head_revision():
            guards.create(connection)
            views.create(connection)


if context.is_offline_mode():
    raise SystemExit("alembic --sql is not supported: guards and views are made by looking at the database")
engine = context.config.attributes.get("engine")
if engine is None:
    engine = database.create_engine(settings.load().database_url, make=True)
with engine.connect() as connection:
    migrate(connection)
