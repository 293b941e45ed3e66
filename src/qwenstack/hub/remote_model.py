"""What hubs say about their files, in one form for all of them, and which files of a repository are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qwenstack.core.errors import DownloadError, ModelNotFoundError
from qwenstack.hub.model_folder import is_plain_name
from qwenstack.hub.registry import nearest_names

MAX_MODEL_BYTES = 1 << 40
MAX_FILES = 10_000
_FOLDER_FILES = frozenset(
    {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "model.safetensors.index.json",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """The hash that a hub states for a file."""

    algorithm: Literal["sha256", "git-sha1"]
    """`git-sha1` is git's own name of a file's content, which Hugging Face states for small files."""
    hexadecimal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file of a repository."""

    name: str
    bytes: int
    digest: Digest
    url: str
    """It carries the commit, so that it is also the record of where the file is from."""


def wanted_files(files: Sequence[RemoteFile], repo: str, file: str | None) -> list[RemoteFile]:
    """Choose the one file that was asked for, or what makes a model folder, or the only GGUF file there is.

    Raises:
        ModelNotFoundError: there is no such file, or the choice is the user's; the message carries the names.
        DownloadError: the hub states an impossible size.
    """
    chosen = _chosen(files, repo, file)
    length = sum(remote.bytes for remote in chosen)
    if not 0 < length <= MAX_MODEL_BYTES or len(chosen) > MAX_FILES:
        raise DownloadError(
            f"{repo!r} says it has {length} bytes in {len(chosen)} files; at most {MAX_MODEL_BYTES} are fetched."
        )
    return chosen


def _chosen(files: Sequence[RemoteFile], repo: str, file: str | None) -> list[RemoteFile]:
    by_name = {remote.name: remote for remote in files if is_plain_name(remote.name)}
    models = sorted(name for name in by_name if name.endswith(".gguf"))
    if file is not None:
        if file not in by_name:
            near = nearest_names(file, by_name) or models
            raise ModelNotFoundError(f"There is no file {file!r} in {repo!r}. It has {_listed(near or list(by_name))}.")
        return [by_name[file]]
    weights = [name for name in by_name if name.endswith(".safetensors")]
    if "config.json" in by_name and weights:
        return [by_name[name] for name in sorted({*weights, *(_FOLDER_FILES & by_name.keys())})]
    if len(models) == 1:
        return [by_name[models[0]]]
    if models:
        raise ModelNotFoundError(
            f"{repo!r} holds several models. Add one to the name, after a colon: {_listed(models)}."
        )
    raise ModelNotFoundError(f"{repo!r} has neither a .gguf file nor 'config.json' with .safetensors files.")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (" …" if len(names) > 12 else "")
