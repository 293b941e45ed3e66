"""The tables, as the newest migration leaves them; a test compares the two."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, Integer, LargeBinary, MetaData, String, Table, Text

metadata = MetaData()

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("secret_sha256", LargeBinary(32), nullable=False),
    Column("scopes", Text, nullable=False),  # JSON: a list of names
    Column("models", Text),  # JSON: a list of model ids; null: all
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger),
    Column("revoked_at_ms", BigInteger),
)

audit = Table(
    "audit",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("actor", String(100), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(200), nullable=False),
    Column("outcome", String(32), nullable=False),
    Column("details", Text, nullable=False),  # JSON: an object
    Column("hash", LargeBinary(32), nullable=False),
)

# The end of the chain, and how often the keys have changed. One row, which whoever appends to the chain locks.
state = Table(
    "state",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("audit_seq", BigInteger, nullable=False),
    Column("audit_hash", LargeBinary(32), nullable=False),
    Column("keys_revision", BigInteger, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
)
