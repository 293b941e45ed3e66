"""The administration of a server that `qwenstack serve` starts: its key's file, and its port."""

from __future__ import annotations

import logging
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qwenstack.cli.settings import Settings, data_dir
from qwenstack.cli.storage import NO_DATABASE
from qwenstack.core.config import DEFAULT, Resolved
from qwenstack.core.errors import ConfigError

if TYPE_CHECKING:
    from qwenstack.serving import ServeConfig

logger = logging.getLogger(__name__)

KEY_FILE = "admin.key"
_KEY_PREFIX = "qsa-"
_KEY_BYTES = 32
_FILE_BYTES = len(_KEY_PREFIX) + 43 + 1
"""Base64 without padding of 32 bytes, and the end of the line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminPlan:
    """How the administration will be served."""

    config: ServeConfig
    listener: socket.socket
    key_path: Path


def plan_administration(resolved: Resolved[Settings], config: ServeConfig) -> AdminPlan | None:
    """Take the administration's port; None where there is to be none, or its usual port is taken.

    Raises:
        ConfigError: a port that somebody chose cannot be used, or there is no database for its acts.
    """
    from qwenstack.serving import admin_config, open_socket

    settings = resolved.value
    port = settings.server.admin_port
    is_chosen = any(resolved.origins[f"server.{name}"] != DEFAULT for name in ("admin_port", "admin_host"))
    keeps_nothing = settings.storage.url == NO_DATABASE
    if port == "off" or (keeps_nothing and not is_chosen):
        return None
    if keeps_nothing:
        raise ConfigError("The administration needs a database for its audit log; `storage.url` is `off`.")
    config = admin_config(config, host=settings.server.admin_host, port=port)
    try:
        listener = open_socket(config)
    except ConfigError as error:
        if is_chosen:
            raise ConfigError(f"The administration: {_in_its_words(error)}") from error
        logger.warning(
            "There is no administration here: port %d is taken, perhaps by that of another server. "
            "`--set server.admin_port=PORT` chooses one, `off` does without.",
            port,
        )
        return None
    return AdminPlan(config=config, listener=listener, key_path=data_dir() / KEY_FILE)


def load_admin_key(folder: Path) -> str:
    """Return the key in a folder's file, making it where there is none; servers that start together agree on one.

    Raises:
        ConfigError: the file is not one of this user alone with a key in it, or cannot be made.
    """
    from qwenstack.engine.private_folder import ForeignFileError, PrivateFolder

    path = folder / KEY_FILE
    try:
        private = PrivateFolder(folder)
        try:
            content, _ = private.read(KEY_FILE, _FILE_BYTES)
        except FileNotFoundError:
            content = f"{_KEY_PREFIX}{secrets.token_urlsafe(_KEY_BYTES)}\n".encode()
            try:
                private.create(KEY_FILE, content)
            except FileExistsError:  # another server was faster
                content, _ = private.read(KEY_FILE, _FILE_BYTES)
    except ForeignFileError as error:
        raise ConfigError(
            f"The administration's key {str(path)!r} is no file of yours alone with a key in it. Remove it: the next "
            "start makes a new one."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"The administration's key {str(path)!r} cannot be made: {error.strerror}. `--set server.admin_port=off` "
            "does without an administration."
        ) from error
    return content.decode("ascii", "replace").strip()


def _in_its_words(error: ConfigError) -> str:
    return str(error).replace("`--port`", "`server.admin_port`").replace("`--host`", "`server.admin_host`")
