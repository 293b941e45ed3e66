"""The tables, as the newest migration leaves them; a test compares the two."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

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
    Column("limits", Text),  # JSON: an object by name; null or missing names: the server's own
)

usage = Table(
    "usage",
    metadata,
    Column("day", String(10), primary_key=True),
    Column("account", String(100), primary_key=True),
    Column("tenant", String(100), nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
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

# The end of the chain, and a random number for each state of the keys (0: none was ever made). One row, which
# whoever appends to the chain locks.
state = Table(
    "state",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("audit_seq", BigInteger, nullable=False),
    Column("audit_hash", LargeBinary(32), nullable=False),
    Column("keys_revision", BigInteger, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
)

# Servers that run. What one of them has begun is its own until its time is over and was not prolonged.
servers = Table(
    "servers",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("alive_until_ms", BigInteger, nullable=False),
)

responses = Table(
    "responses",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("previous_id", String(64)),
    Column("owner", String(32)),  # the server that is making it; null: it is finished
    Column("size_bytes", BigInteger, nullable=False),
    Column("items", Text, nullable=False),  # JSON: a list of input items
    Column("document", Text, nullable=False),  # JSON: an object
    Index("responses_by_tenant", "tenant", "created_at_ms"),
    Index("responses_by_owner", "owner"),
)

# The content of a file is a file of the same id, in a folder.
files = Table(
    "files",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("filename", String(255), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger),
    Index("files_by_tenant", "tenant", "created_at_ms"),
)

batches = Table(
    "batches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("caller", Text, nullable=False),  # JSON: who made it and what they might use
    Column("endpoint", String(64), nullable=False),
    Column("input_file_id", String(64), nullable=False),
    Column("metadata", Text, nullable=False),  # JSON: an object
    Column("status", String(16), nullable=False),
    Column("times", Text, nullable=False),  # JSON: when it came to each status, in milliseconds
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("errors", Text),  # JSON: a list of what is wrong with the input file
    Column("num_total", Integer, nullable=False),
    Column("num_completed", Integer, nullable=False),
    Column("num_failed", Integer, nullable=False),
    Column("output_file_id", String(64)),
    Column("error_file_id", String(64)),
    Column("owner", String(32)),  # the server that runs it
    Column("not_before_ms", BigInteger),  # when it may be run again; null: it never had to wait
    Column("input_tokens", BigInteger),  # of what was answered, as the next three; null: not counted
    Column("cached_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("reasoning_tokens", BigInteger),
    Index("batches_by_tenant", "tenant", "created_at_ms"),
)

# What was answered of a batch that is not finished; the key is why no line can be answered twice.
batch_answers = Table(
    "batch_answers",
    metadata,
    Column("batch_id", String(64), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("is_error", Boolean, nullable=False),
    Column("line", Text, nullable=False),  # JSON: a line of the output
)
