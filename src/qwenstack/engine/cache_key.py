"""Names of cached blocks: each hashes everything that its keys and values depend on, and nothing else.

A block's values depend on all tokens before it, so a name includes its parent's. The first parent is a root, which
stands for the model, how it is computed, and the tenant. Names are SHA-256: two different prefixes never share one.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Sequence

import numpy as np

KEY_BYTES = 32
KEY_FORMAT = 1
"""Raised when the layout of these names, or of the values that they name, changes."""
NUMERICS = 1
"""Raised by every change of a kernel, or of the order of operations in a layer, after which some result has other bits.
A cached value is equal to a recomputed one, bit for bit (`docs/adr/0002-same-bits-everywhere.md`): an old one is not.
"""

_ROOT_TAG = b"qwenstack prefix root"
_BLOCK_TAG = b"qwenstack prefix block %d\0" % KEY_FORMAT
_SALT_TAG = b"qwenstack tenant salt\0"
_LENGTH = struct.Struct("<Q")
_COUNT = struct.Struct("<I")


def root_key(
    model_fingerprint: bytes,
    *,
    kv_dtype: str,
    precision: str,
    settings: bytes,
    arithmetic: bytes,
    adapter_digest: bytes | None,
    tenant_salt: bytes,
) -> bytes:
    """Return the parent of all first blocks that one tenant shares on one model.

    Args:
        model_fingerprint: `hub.fingerprint.checkpoint_fingerprint` of the model.
        kv_dtype: how keys and values are stored.
        precision: how they are computed, where that changes bits: `a8`, `a16`, `reference`, ...
        settings: what decides values beside the files: scaled positions, converted weights, a merged adapter.
        arithmetic: `numpy_probe()`.
        adapter_digest: content hash of the LoRA adapter; None: the model as it is.
        tenant_salt: as `tenant_salt` makes it.
    """
    fields = (
        _ROOT_TAG,
        _COUNT.pack(KEY_FORMAT),
        _COUNT.pack(NUMERICS),
        model_fingerprint,
        kv_dtype.encode(),
        precision.encode(),
        settings,
        arithmetic,
        b"none" if adapter_digest is None else b"adapter" + adapter_digest,
        tenant_salt,
    )
    return hashlib.sha256(b"".join(_LENGTH.pack(len(field)) + field for field in fields)).digest()


def numpy_probe() -> bytes:
    """Return a hash of what numpy makes of some angles and exponents.

    Our kernels give the same bits on every machine; numpy's cosine, sine, power and exponential need not, and a home
    with a cache in it may be shared between machines, and outlives versions of numpy.
    """
    values = np.linspace(-40, 40, 4096, dtype=np.float32)
    results = (np.cos(values * 800), np.sin(values * 800), np.exp(values), np.power(np.float32(1e6), values / 40))
    return hashlib.sha256(b"".join(result.tobytes() for result in results)).digest()


def child_key(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Return the name of the block that holds these tokens after the blocks that `parent` stands for."""
    return key_of_packed(parent, pack_tokens(token_ids))


def key_of_packed(parent: bytes, packed_tokens: bytes) -> bytes:
    """Return `child_key` of tokens that `pack_tokens` has packed already."""
    # Tag and parent have fixed lengths and the count ends the ambiguity of the rest.
    assert len(parent) == KEY_BYTES
    return hashlib.sha256(b"".join((_BLOCK_TAG, parent, _COUNT.pack(len(packed_tokens)), packed_tokens))).digest()


def pack_tokens(token_ids: Sequence[int]) -> bytes:
    """Return token ids as bytes, four each, the same on every machine."""
    return struct.pack(f"<{len(token_ids)}I", *token_ids)


def tenant_salt(secret: bytes, tenant: str) -> bytes:
    """Return what keeps a tenant's names apart from all others'; nobody without the secret can compute it."""
    return hmac.digest(secret, _SALT_TAG + tenant.encode("utf-8", "surrogatepass"), "sha256")
