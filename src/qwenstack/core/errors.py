"""Every error that qwenstack raises on purpose.

    QwenStackError
    ├── ConfigError (also ValueError)       a setting is wrong; names key, value and fix
    ├── CheckpointError                     a model cannot be had or opened
    │   ├── ModelNotFoundError              no model of that name; carries the nearest names
    │   ├── ModelFormatError                a model file is damaged or of a kind not read here
    │   └── DownloadError                   the bytes could not be fetched or have the wrong hash
    ├── CapacityError                       not enough memory or queue space; try later or smaller
    ├── StorageError                        the database cannot be reached, is full or is damaged
    ├── RequestError                        the caller's request is wrong (HTTP 4xx)
    ├── MissingExtraError (also ImportError) a part of the package is not installed; names the install line
    └── EngineError                         the engine failed on its own account (HTTP 5xx)
        └── EngineRestartingError           its process is being started again; try again in a moment

Messages say what happened, the value, the limit and the next step. They are shown to users as they stand.
"""

from __future__ import annotations


class QwenStackError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(QwenStackError, ValueError):
    """A setting is wrong."""


class CheckpointError(QwenStackError):
    """A model cannot be had or opened."""


class ModelNotFoundError(CheckpointError):
    """No model has the name asked for."""


class ModelFormatError(CheckpointError):
    """A model file is damaged, hostile or of a kind that is not read here."""


class DownloadError(CheckpointError):
    """The bytes of a model could not be fetched, or do not have the expected hash."""


class CapacityError(QwenStackError):
    """There is not enough memory or queue space."""


class StorageError(QwenStackError):
    """The database cannot be reached, is full or is damaged."""


class RequestError(QwenStackError):
    """The caller's request is wrong.

    Args:
        message: what is wrong, with the value and the limit.
        param: the field of the request that is wrong, in OpenAI's naming.
        code: a stable machine-readable word, as OpenAI's `code`.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        """Keep the field and the code beside the message."""
        super().__init__(message)
        self.param = param
        self.code = code


class MissingExtraError(QwenStackError, ImportError):
    """A part of the package that was asked for is not installed."""


class EngineError(QwenStackError):
    """The engine failed on its own account."""


class EngineRestartingError(EngineError):
    """The engine's process ended and is being started again; the request can be sent again in a moment."""
