"""When a batch may be run again, and what its answers used; what batches that are older used is not known."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the time and the counts to batches."""
    op.add_column("batches", sa.Column("not_before_ms", sa.BigInteger))
    op.add_column("batches", sa.Column("input_tokens", sa.BigInteger))
    op.add_column("batches", sa.Column("cached_tokens", sa.BigInteger))
    op.add_column("batches", sa.Column("output_tokens", sa.BigInteger))
    op.add_column("batches", sa.Column("reasoning_tokens", sa.BigInteger))
