"""The adapters that administrators may load: where they lie, what they may be called, one change at a time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from qwenstack.core.errors import CapacityError, CheckpointError, QwenStackError, RequestError
from qwenstack.core.protocols import AdapterInfo, AsyncLLM
from qwenstack.serving.errors import HttpError
from qwenstack.serving.service import DEFAULT_MODEL_NAME, GenerationService
from qwenstack.storage import AuditLog, AuditRecord

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_PATH_CHARS = 1024
_MAX_FILES = 256
"""PEFT writes three, and trainers a dozen beside them."""


class AdapterShelf:
    """Loads and unloads adapters; every act is in the audit log before it is done, and again with what came of it."""

    def __init__(self, llm: AsyncLLM, service: GenerationService, log: AuditLog, *, folder: Path | None) -> None:
        """Take adapters from below one folder; None: from nowhere."""
        self._llm = llm
        self._service = service
        self._log = log
        self._folder = folder
        self._turn = asyncio.Lock()

    async def all(self) -> Sequence[AdapterInfo]:
        """Return the loaded adapters, by name.

        Raises:
            EngineError: the engine does not answer.
        """
        return await self._llm.list_adapters()

    async def load(self, name: str, path: str, *, may_replace: bool, actor: str) -> AdapterInfo:
        """Load the adapter of a folder under a name; if this fails, all is as before.

        Raises:
            HttpError: the name or the folder cannot be used, or there is no room.
            EngineError: the engine does not answer.
            StorageError: the act cannot be written down, and is not done.
        """
        if _NAME.fullmatch(name) is None:
            text = f"An adapter cannot be called {name[:80]!r}; use 1 to 64 letters, digits and `._-`, no sign first."
            raise HttpError(400, text, code="invalid_value", param="name")
        if name in {self._service.card.id, DEFAULT_MODEL_NAME}:
            raise HttpError(409, f"{name!r} is the model itself. Choose another name.", code="name_taken", param="name")
        async with self._turn:
            if name in self._llm.adapter_names and not may_replace:
                text = f"An adapter {name!r} is loaded already. Unload it first, or say that it may be replaced."
                raise HttpError(409, text, code="name_taken", param="name")
            found = await asyncio.to_thread(find_folder, self._folder, path)
            await self._note(actor, "adapter.load", name, "begun", {"path": path[:_MAX_PATH_CHARS]})
            try:
                infos = await self._llm.load_adapter(name, found)
            except QwenStackError as error:
                await self._note(actor, "adapter.load", name, "refused")
                raise _as_refusal(error) from error
            (info,) = (info for info in infos if info.name == name)
            await self._note(actor, "adapter.load", name, "ok", {"digest": info.digest})
            return info

    async def unload(self, name: str, *, actor: str) -> None:
        """Forget an adapter; requests that use it run to their end.

        Raises:
            HttpError: there is none of this name.
            EngineError: the engine does not answer.
            StorageError: the act cannot be written down, and is not done.
        """
        async with self._turn:
            if name not in self._llm.adapter_names:
                raise HttpError(404, f"There is no adapter {name[:80]!r}.", code="not_found", param="name")
            await self._note(actor, "adapter.unload", name, "begun")
            await self._llm.unload_adapter(name)
            await self._note(actor, "adapter.unload", name, "ok")

    async def _note(
        self, actor: str, action: str, name: str, outcome: str, details: Mapping[str, object] | None = None
    ) -> None:
        record = AuditRecord(actor=actor, action=action, subject=name, outcome=outcome, details=details or {})
        await asyncio.to_thread(self._log.append, [record])


def find_folder(root: Path | None, path: str) -> Path:
    """Return the folder that a path means, which lies below `root` with everything in it, links followed.

    What lies elsewhere is answered as what is not there.

    Raises:
        HttpError: there is no such folder, or no root.
    """
    if root is None:
        text = "Adapters are not loaded over HTTP here: set `adapters.folder` to the folder that has them."
        raise HttpError(403, text, code="adapters_folder_not_set")
    real_root = root.resolve()
    try:
        is_short = 0 < len(path) <= _MAX_PATH_CHARS
        found = (real_root / path).resolve(strict=True) if is_short else None
        if found is not None and found.is_relative_to(real_root) and found.is_dir() and _is_closed(found, real_root):
            return found
    except (OSError, ValueError, RuntimeError):  # no such file, a NUL, links that turn in a circle
        pass
    text = f"There is no folder {path[:80]!r} below `adapters.folder`, or a link in it leads out."
    raise HttpError(400, text, code="invalid_value", param="path")


def _is_closed(folder: Path, root: Path) -> bool:
    """Whether everything in a folder lies below the root; links that lead to elsewhere in it are good."""
    children = list(folder.iterdir())
    return len(children) <= _MAX_FILES and all(child.resolve().is_relative_to(root) for child in children)


def _as_refusal(error: QwenStackError) -> Exception:
    """Say in HTTP's words why the engine did not take an adapter."""
    match error:
        case CapacityError():
            return HttpError(409, str(error), code="no_room_for_adapters")
        case CheckpointError():
            return HttpError(400, str(error), code="invalid_adapter", param="path")
        case RequestError():
            return HttpError(400, str(error), code=error.code or "invalid_value", param=error.param)
        case _:
            return error
