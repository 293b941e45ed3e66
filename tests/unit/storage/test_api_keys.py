"""A key opens as long as it is good, only its maker ever sees it, and each change is in the audit log."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from qwenstack.core.errors import RequestError
from qwenstack.core.limits import Limits
from qwenstack.storage import ApiKeys, AuditLog, Database, KeySnapshot, open_database
from qwenstack.storage.schema import api_keys


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return open_database(f"sqlite:///{tmp_path / 'q.db'}")


def test_tenants_have_names_in_every_script(database: Database) -> None:
    for tenant in ("team-a", "销售部", "user@example.org", "Ünal_1"):
        assert ApiKeys(database).create(name="名字", tenant=tenant, actor="me").key.tenant == tenant


def test_a_key_opens_until_it_expires_or_is_revoked(database: Database) -> None:
    clock = Clock()
    keys = ApiKeys(database, clock=clock)
    short = keys.create(name="short", tenant="a", actor="me", lifetime_s=60)
    lasting = keys.create(name="lasting", tenant="b", actor="me", scopes=["metrics"], models=["m"])
    snapshot = keys.snapshot()
    assert len(snapshot) == 2
    assert snapshot.find(short.text, now_ms=1_059_999) == short.key
    assert snapshot.find(short.text, now_ms=1_060_000) is None
    assert snapshot.find(lasting.text, now_ms=1e15) == lasting.key
    assert (lasting.key.scopes, lasting.key.models) == ({"metrics"}, {"m"})
    before = keys.revision()
    assert keys.revoke(lasting.key.id, actor="me")
    assert not keys.revoke(lasting.key.id, actor="me")
    assert keys.revision() not in {before, 0}
    assert keys.snapshot().find(lasting.text, now_ms=0) is None
    assert len(keys.snapshot()) == 2


def test_sec_15_neither_half_of_a_key_opens_without_the_other(database: Database) -> None:
    keys = ApiKeys(database)
    first, second = (keys.create(name=name, tenant="t", actor="me") for name in "ab")
    snapshot = keys.snapshot()
    id_of, secret_of = ({key.text: key.text.partition(".")[part] for key in (first, second)} for part in (0, 2))
    for wrong in (
        f"{id_of[first.text]}.{secret_of[second.text]}",
        f"qs-{'a' * 16}.{secret_of[first.text]}",
        first.text[:-1],
        first.text + "A",
        first.text.upper(),
        secret_of[first.text],
        f"{id_of[first.text]}.",
        "",
    ):
        assert snapshot.find(wrong, now_ms=0) is None


@given(st.text())
def test_whatever_is_presented_is_refused_and_never_an_error(presented: str) -> None:
    assert KeySnapshot({}, revision=0).find(presented, now_ms=0) is None


def test_sec_24_the_database_holds_no_secret(database: Database) -> None:
    made = ApiKeys(database).create(name="n", tenant="t", actor="me")
    assert database.path is not None
    stored = b"".join(path.read_bytes() for path in database.path.parent.iterdir())
    assert made.key.id.encode() in stored
    assert made.text.partition(".")[2].encode() not in stored


def test_changes_are_in_the_audit_log(database: Database) -> None:
    keys = ApiKeys(database)
    made = keys.create(name="n", tenant="t", actor="me")
    keys.revoke(made.key.id, actor="you")
    records = [entry.record for entry in AuditLog(database).newest()]
    assert [(one.actor, one.action, one.subject) for one in records] == [
        ("you", "key.revoke", made.key.id),
        ("me", "key.create", made.key.id),
    ]
    assert AuditLog(database).verify().broken_at is None


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": "x" * 101},
        {"name": "a\nb"},
        {"tenant": ""},
        {"tenant": "a b"},
        {"tenant": "x" * 65},
        {"scopes": []},
        {"scopes": ["everything"]},
        {"models": [""]},
        {"models": ["default"]},
        {"models": ["\ud800"]},
        {"lifetime_s": 0},
        {"lifetime_s": float("nan")},
        {"lifetime_s": float("inf")},
    ],
)
def test_wrong_wishes_get_a_sentence(changes: dict[str, object], database: Database) -> None:
    wishes: dict[str, object] = {"name": "n", "tenant": "t", "actor": "me"} | changes
    with pytest.raises(RequestError) as error:
        ApiKeys(database).create(**wishes)  # type: ignore[arg-type]
    assert error.value.param == next(iter(changes))
    assert ApiKeys(database).all() == []


def test_a_keys_limits_are_kept_changed_and_written_down(database: Database) -> None:
    keys = ApiKeys(database)
    made = keys.create(name="n", tenant="t", actor="me", limits=Limits(tokens_per_day=5))
    assert keys.snapshot().find(made.text, now_ms=0) == made.key
    revision = keys.revision()
    assert keys.limit(made.key.id, Limits(concurrent_requests=2), actor="you")
    assert keys.revision() != revision
    (stored,) = keys.all()
    assert stored.limits == Limits(concurrent_requests=2)
    record = AuditLog(database).newest(1)[-1].record
    assert (record.actor, record.action, record.details) == ("you", "key.limit", {"concurrent_requests": 2})
    keys.revoke(made.key.id, actor="me")
    assert not keys.limit(made.key.id, Limits(), actor="me")


def test_a_key_whose_limits_are_damaged_opens_nothing(database: Database) -> None:
    keys = ApiKeys(database)
    made = keys.create(name="n", tenant="t", actor="me")
    for damaged in ("[]", "{", '{"tokens_per_day": -1}', '{"tokens_per_week": 1}'):
        database.write(lambda connection, damaged=damaged: connection.execute(update(api_keys).values(limits=damaged)))
        found = keys.snapshot().find(made.text, now_ms=0)
        assert found is not None
        assert found.scopes == frozenset()
