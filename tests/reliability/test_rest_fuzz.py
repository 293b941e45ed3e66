"""What would let an open door go unnoticed."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "serving"))

import pytest
import schemathesis

from reliability.made_up_requests import is_sent_as_it_is
from reliability.rest_fuzz import Document, Fuzzed, all_callers, doors_that_are_open, without_successes
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


@pytest.mark.parametrize("value", [[], ["a"], ["a", "b"], "", "a"])
def test_forms_that_lose_a_field_on_the_way_are_known(value: object) -> None:
    form = {"schema": {"type": "object", "properties": {"purpose": {"type": "string"}}}}
    upload = {"requestBody": {"content": {"multipart/form-data": form}}, "responses": {"200": {"description": "ok"}}}
    document = {"openapi": "3.1.0", "info": {"title": "t", "version": "1"}, "paths": {"/files": {"post": upload}}}
    operation = schemathesis.openapi.from_dict(document)["/files"]["POST"]
    parts, _ = operation.schema.prepare_multipart({"purpose": value}, operation, "multipart/form-data")
    assert bool(parts) == is_sent_as_it_is({"purpose": value})


UNMADE = """
 🚫  Fuzzing (in 681.65s)
==================================== ERRORS ====================================
________________________ POST /v1/messages/count_tokens ________________________
Schema Error

Cannot generate an array with 1 demanded elements

Test cases:
  17363 generated, 17363 passed, 56 skipped
"""


def test_what_could_not_be_made_up_is_known_and_what_failed_is_something_else() -> None:
    run = Fuzzed(status=1, text=UNMADE)
    assert run.paths_not_fuzzed == ["/v1/messages/count_tokens"]
    assert (run.num_cases, run.failures) == (17363, {})
    failed = Fuzzed(status=1, text=UNMADE.replace("Schema Error", "1. Test Case ID: a") + "  ❌ ST201 accepted: 2\n")
    assert (failed.paths_not_fuzzed, failed.failures) == ([], {"ST201 accepted": 2})
    lost = Fuzzed(status=1, text=UNMADE + "Errors:\n  🚫 Schema Error: 1\n  🚫 Network Error: 1\n")
    assert lost.failures == {"Network Error": 1}
