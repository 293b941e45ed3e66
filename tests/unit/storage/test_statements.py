"""What callers write never becomes a part of a statement."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import qwenstack.storage
from qwenstack.storage import ApiKeys, AuditLog, Database, StoredResponses, open_database

HOSTILE = ("' OR '1'='1", "x'; DROP TABLE api_keys; --", '"); DELETE FROM audit; --', "%", "_" * 16)
SOURCES = Path(qwenstack.storage.__file__).parent


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return open_database(f"sqlite:///{tmp_path / 'q.db'}")


@pytest.mark.parametrize("hostile", HOSTILE)
def test_sec_14_hostile_ids_find_nothing_and_change_nothing(database: Database, hostile: str) -> None:
    keys = ApiKeys(database)
    made = keys.create(name=hostile, tenant="t", actor=hostile)
    assert keys.get(hostile) is None
    assert not keys.revoke(hostile, actor="me")
    assert keys.snapshot().find(f"qs-{hostile}.{hostile}", now_ms=0) is None
    assert StoredResponses(database, retention_s=60).find(hostile, tenant=hostile) is None
    assert [key.name for key in keys.all()] == [hostile]
    assert keys.snapshot().find(made.text, now_ms=0) == made.key
    assert AuditLog(database).newest(1)[0].record.actor == hostile
    assert AuditLog(database).verify().broken_at is None


def test_sec_14_no_statement_is_put_together_from_text() -> None:
    for path in SOURCES.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name | ast.Attribute):
                name = call.func.id if isinstance(call.func, ast.Name) else call.func.attr
                if name in {"text", "execute", "exec_driver_sql"} and call.args:
                    assert not _is_put_together(call.args[0]), f"{path}:{call.lineno}"


def _is_put_together(statement: ast.expr) -> bool:
    """Whether it has parts that are no constants of the module; those are written in capitals."""
    if isinstance(statement, ast.BinOp):
        return True
    parts = [part.value for part in getattr(statement, "values", ()) if isinstance(part, ast.FormattedValue)]
    return any(name.id != name.id.upper() for part in parts for name in ast.walk(part) if isinstance(name, ast.Name))
