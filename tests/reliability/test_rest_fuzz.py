"""What would let an open door go unnoticed."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "serving"))

from reliability.rest_fuzz import Document, all_callers, doors_that_are_open, without_successes
from reliability.server import serving

DOCUMENT: Document = {
    "paths": {
        "/a": {"get": {"responses": {"200": {}, "401": {}, "4XX": {}, "503": {}}}, "post": {"responses": {"204": {}}}},
    }
}


def test_a_closed_description_has_refusals_alone_and_the_other_stays_as_it_was() -> None:
    closed = without_successes(DOCUMENT)["paths"]["/a"]
    assert list(closed["get"]["responses"]) == ["401", "4XX"]
    assert list(closed["post"]["responses"]) == []
    assert list(DOCUMENT["paths"]["/a"]["get"]["responses"]) == ["200", "401", "4XX", "503"]


def test_doors_that_open_are_found() -> None:
    async def ask() -> None:
        async with serving(engine="toy", has_administration=True) as server:
            callers = await all_callers(server)
            assert await doors_that_are_open(callers["user at the administration"], refusal=403) == []
            intruder = dataclasses.replace(callers["user at the administration"], key=server.administration.key)
            found = await doors_that_are_open(intruder, refusal=403)
            assert len(found) >= 10
            assert "user at the administration: GET /admin/v1/keys: 200" in found

    asyncio.run(ask())
