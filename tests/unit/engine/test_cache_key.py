"""Names of cached blocks: whatever changes the values changes the name."""

from __future__ import annotations

import hashlib
import itertools
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.engine.cache_key import child_key, numpy_probe, pack_tokens, root_key, tenant_salt

MODEL = {
    "model_fingerprint": b"m" * 32,
    "kv_dtype": "float16",
    "precision": "a8",
    "settings": b"",
    "arithmetic": b"n" * 32,
    "adapter_digest": None,
    "tenant_salt": b"s" * 32,
}
OTHER = {
    "model_fingerprint": b"n" * 32,
    "kv_dtype": "float32",
    "precision": "a16",
    "settings": b"yarn 4",
    "arithmetic": b"",
    "adapter_digest": b"",
    "tenant_salt": b"t" * 32,
}
roots = st.fixed_dictionaries(
    {
        "model_fingerprint": st.binary(max_size=4),
        "kv_dtype": st.text("ab", max_size=3),
        "precision": st.text("ab", max_size=3),
        "settings": st.binary(max_size=3),
        "arithmetic": st.binary(max_size=3),
        "adapter_digest": st.none() | st.binary(max_size=3),
        "tenant_salt": st.binary(max_size=3),
    }
)
tokens = st.lists(st.integers(0, 2**32 - 1), max_size=20)


@pytest.mark.parametrize("field", MODEL)
def test_each_thing_that_changes_the_values_changes_the_root(field: str) -> None:
    assert root_key(**MODEL) != root_key(**MODEL | {field: OTHER[field]})


@given(roots, roots)
def test_two_roots_are_equal_only_where_every_field_is(one: dict, other: dict) -> None:
    assert (root_key(**one) == root_key(**other)) == (one == other)


@given(roots, st.data())
def test_moving_bytes_from_one_field_to_the_next_changes_the_root(fields: dict, data: st.DataObject) -> None:
    text = fields["kv_dtype"] + fields["precision"]
    cut = data.draw(st.integers(0, len(text)))
    moved = fields | {"kv_dtype": text[:cut], "precision": text[cut:]}
    assert (root_key(**fields) == root_key(**moved)) == (cut == len(fields["kv_dtype"]))


@given(st.binary(min_size=32, max_size=32), tokens, tokens)
def test_two_blocks_are_equal_only_where_their_tokens_are(parent: bytes, one: list[int], other: list[int]) -> None:
    assert (child_key(parent, one) == child_key(parent, other)) == (one == other)


@given(st.binary(min_size=32, max_size=32), tokens.filter(bool), st.data())
def test_a_prefix_cut_elsewhere_has_other_names(parent: bytes, ids: list[int], data: st.DataObject) -> None:
    """The name of a block is not that of the same tokens in two blocks: their values have another layout."""
    cut = data.draw(st.integers(0, len(ids)))
    assert child_key(child_key(parent, ids[:cut]), ids[cut:]) != child_key(parent, ids)


def test_the_order_of_blocks_is_in_the_name() -> None:
    root = root_key(**MODEL)
    names = {child_key(child_key(root, one), other) for one, other in itertools.permutations([[1], [2], [3]], 2)}
    assert len(names) == 6


def test_a_root_is_never_a_block() -> None:
    """Written out by hand, so that a change of the format is noticed: files on users' disks have these names."""
    block = hashlib.sha256(b"qwenstack prefix block 1\0" + bytes(32) + struct.pack("<III", 8, 7, 2**31)).digest()
    assert child_key(bytes(32), [7, 2**31]) == block
    one = struct.pack("<I", 1)
    fields = [b"qwenstack prefix root", one, one, b"m" * 32, b"float16", b"a8", b"", b"n" * 32, b"none", b"s" * 32]
    root = hashlib.sha256(b"".join(struct.pack("<Q", len(field)) + field for field in fields)).digest()
    assert root_key(**MODEL) == root


@pytest.mark.parametrize("wrong", [-1, 2**32, 1.5])
def test_what_is_no_token_has_no_name(wrong: object) -> None:
    with pytest.raises(struct.error):
        pack_tokens([1, wrong])  # type: ignore[list-item]


def test_numpy_with_other_bits_has_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    before = numpy_probe()
    assert numpy_probe() == before
    cosine = np.cos
    monkeypatch.setattr(np, "cos", lambda values: np.nextafter(cosine(values), np.float32(2)))
    assert numpy_probe() != before


@given(st.text(), st.text())
def test_sec_16_two_tenants_share_no_name(one: str, other: str) -> None:
    secret = b"k" * 32
    names = [
        child_key(root_key(**MODEL | {"tenant_salt": tenant_salt(secret, tenant)}), [1, 2]) for tenant in (one, other)
    ]
    assert (names[0] == names[1]) == (one == other)


def test_sec_16_without_the_secret_a_tenants_names_cannot_be_computed() -> None:
    assert tenant_salt(b"k" * 32, "alice") != tenant_salt(b"l" * 32, "alice")


def test_sec_17_any_name_of_a_tenant_can_be_salted() -> None:
    assert len({tenant_salt(b"k" * 32, tenant) for tenant in ("", "\ud800", "a\0b", "a", "b")}) == 5
