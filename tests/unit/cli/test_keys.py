"""`qwenstack keys` and `qwenstack audit`: a key is shown once, and what was done is told."""

from __future__ import annotations

import json
import re
import stat
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from qwenstack.cli.app import main
from qwenstack.storage import ApiKeys, Usage, UsageKey, UsageRecords, open_database


@pytest.fixture
def path(home: Path) -> Path:
    return home / ".local" / "share" / "qwenstack" / "qwenstack.db"


def test_a_key_is_made_listed_and_revoked(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "list"]) == 0
    assert "qwenstack keys create" in capsys.readouterr().err
    assert main(["keys", "create", "my laptop", "--tenant", "me", "--expires-in", "90d", "--model", "m"]) == 0
    shown = capsys.readouterr()
    key = shown.out.strip()
    assert re.fullmatch(r"qs-[a-z2-7]{16}\.[\w-]{43}", key)
    assert "shown this once" in shown.err
    assert "(my laptop)" in shown.err
    assert "asks everybody" in shown.err, "the first key closes the server"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = ApiKeys(open_database(f"sqlite:///{path}")).snapshot().find(key, now_ms=0)
    assert found is not None
    assert (found.tenant, found.models) == ("me", {"m"})
    assert main(["keys", "list"]) == 0
    listed = capsys.readouterr().out
    assert "my laptop" in listed
    assert key.partition(".")[2] not in listed
    assert main(["keys", "revoke", key]) == 0
    capsys.readouterr()
    assert main(["keys", "list", "--json"]) == 0
    assert [row["state"] for row in json.loads(capsys.readouterr().out)] == ["revoked"]
    assert main(["keys", "revoke", found.id]) == 2
    assert "keys list" in capsys.readouterr().err


def test_json_has_the_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "create", "a", "--scope", "inference", "--scope", "metrics", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["key"].startswith(f"qs-{made['id']}.")
    assert made["scopes"] == ["inference", "metrics"]
    assert made["expires"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--expires-in", "soon"], "90d"),
        (["--expires-in", "0d"], "90d"),
        (["--tenant", "a b"], "tenant"),
        (["--scope", "everything"], "everything"),
        (["--set", "storage.url=mysql://h/d"], "mysql"),
    ],
)
def test_wrong_wishes_get_a_sentence(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "create", "a", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_the_log_is_shown_and_checked(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["keys", "create", "a"])
    capsys.readouterr()
    assert main(["audit", "show"]) == 0
    assert "key.create" in capsys.readouterr().out
    assert main(["audit", "show", "--json", "--limit", "1"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["actor"], entry["details"]["name"]) == ("command line", "a")
    assert main(["audit", "verify", "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)
    assert checked == {"entries": 1, "hash": entry["hash"], "broken_at": None} | {
        "has_expected": True,
        "pruned_through": 0,
    }
    assert main(["audit", "verify", "--expect", entry["hash"]]) == 0
    assert main(["audit", "verify", "--expect", "0" * 63 + "1"]) == 1
    assert main(["audit", "verify", "--expect", "short"]) == 2
    capsys.readouterr()
    open_database(f"sqlite:///{path}").write(lambda connection: connection.execute(text("DELETE FROM audit")))
    assert main(["audit", "verify"]) == 1
    assert "entry 1" in capsys.readouterr().err


def test_the_log_is_shortened_and_says_so(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["keys", "create", "a"])
    for before in ("1d", "2000-01-01"):
        capsys.readouterr()
        assert main(["audit", "prune", "--before", before]) == 0
        assert capsys.readouterr().out == "removed 0 entries\n"
    assert main(["audit", "prune", "--before", "2999-12-31", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"removed": 1}
    assert main(["audit", "verify"]) == 0
    assert capsys.readouterr().out.startswith("1 entries after entry 1 are whole;")
    for wrong in ("yesterday", "2026-13-01", "0d", "2026-1-1"):
        assert main(["audit", "prune", "--before", wrong]) == 2
        assert "2026-01-31" in capsys.readouterr().err


def test_a_log_that_is_not_there_is_not_made(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("show", "verify"):
        assert main(["audit", command]) == 2
        assert "no database" in capsys.readouterr().err
    assert not path.exists()


def test_a_key_is_limited_and_what_it_used_is_shown(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "create", "a", "--tokens-per-day", "500", "--requests-per-minute", "6", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["limits"] == {"tokens_per_day": 500, "requests_per_minute": 6}
    assert main(["keys", "limit", made["id"], "--concurrent-requests", "2"]) == 0
    assert "concurrent_requests=2" in capsys.readouterr().out
    assert main(["keys", "list"]) == 0
    assert "concurrent_requests=2" in capsys.readouterr().out
    assert main(["keys", "usage"]) == 0
    assert "Nothing was used" in capsys.readouterr().err
    today = time.strftime("%Y-%m-%d", time.gmtime())
    used = Usage(tenant="default", requests=1, prompt_tokens=20, completion_tokens=3)
    UsageRecords(open_database(f"sqlite:///{path}")).exchange({UsageKey(today, made["id"]): used}, today, ())
    assert main(["keys", "usage", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {
            "day": today,
            "account": made["id"],
            "tenant": "default",
            "requests": 1,
            "prompt_tokens": 20,
            "completion_tokens": 3,
        }
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create", "a", "--tokens-per-day", "0"], "whole number from 1"),
        (["limit", "a" * 16, "--tokens-per-day", "5"], "keys list"),
        (["limit", "nonsense"], "keys list"),
        (["usage", "--days", "0"], "between 1 and"),
    ],
)
def test_wrong_limits_are_told_in_a_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_restore_that_fails_makes_no_database(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.db").write_text("garbage")
    assert main(["restore", "bad.db"]) == 1
    assert "cannot be restored" in capsys.readouterr().err
    assert not path.parent.exists()


def test_what_was_backed_up_is_restored(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "create", "kept"]) == 0
    assert main(["backup", "copy.db"]) == 0
    path.unlink()
    assert main(["restore", "copy.db"]) == 0
    capsys.readouterr()
    assert main(["keys", "list"]) == 0
    assert "kept" in capsys.readouterr().out
    assert main(["restore", "copy.db", "--set", "storage.url=off"]) == 2
    assert "off" in capsys.readouterr().err
