"""The secret that separates tenants in the prefix cache: made once, read by every later process of this user."""

from __future__ import annotations

import contextlib
import errno
import secrets

from qwenstack.engine.private_folder import ForeignFileError, PrivateFolder

SECRET_BYTES = 32
_NAME = "tenant-secret"
_TRIES = 5
"""Two suffice; others may remove and make it meanwhile."""


def load_tenant_secret(folder: PrivateFolder) -> bytes:
    """Return the secret of a cache folder, making it where there is none; processes that start together agree on one.

    A lost or damaged one is replaced: what was cached under it is never found again, and nothing else is lost.

    Raises:
        OSError: it can be neither read nor made; a secret of this process alone (`secrets.token_bytes`) will do.
    """
    for _ in range(_TRIES):
        try:
            return folder.read(_NAME, SECRET_BYTES)[0]
        except FileNotFoundError:
            pass
        except ForeignFileError:
            folder.remove(_NAME)
        with contextlib.suppress(FileExistsError):  # another process was faster: read that one
            folder.create(_NAME, secrets.token_bytes(SECRET_BYTES))
    raise OSError(errno.EEXIST, f"{_NAME!r} in {str(folder.path)!r} is no file and cannot be replaced")
