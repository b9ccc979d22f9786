"""${message}

One purpose each: add, fill and tighten in separate revisions. Carry the DDL; never import tracker.models.
No batch_alter_table (it drops SQLite's triggers) and no CASCADE: views and guards are env.py's.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
