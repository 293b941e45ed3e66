"""One door to a model on disk, whether a GGUF file or a Hugging Face folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from qwenstack.core.errors import ModelFormatError
from qwenstack.hub.gguf import MetadataValue, open_gguf
from qwenstack.hub.mapped_file import read_file
from qwenstack.hub.model_folder import file_in_folder
from qwenstack.hub.safetensors import open_safetensors
from qwenstack.hub.stored_tensor import StoredTensor
from qwenstack.hub.strict_json import JsonObject, as_list, as_object, parse_json_object

MAX_JSON_BYTES = 8 << 20
MAX_TOKENIZER_BYTES = 64 << 20
MAX_TEMPLATE_BYTES = 1 << 20
PICKLED_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".ckpt"})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """A model's tensors under their stored names, and what its files say about it."""

    path: Path
    format: Literal["gguf", "safetensors"]
    tensors: dict[str, StoredTensor]
    metadata: dict[str, MetadataValue]
    """GGUF's metadata; empty for a folder."""
    config: JsonObject
    """`config.json`; empty for GGUF."""
    tokenizer_json: str | None = None
    tokenizer_config: JsonObject | None = None
    generation_config: JsonObject | None = None
    chat_template: str | None = None
    """Jinja source of the chat template, wherever the model keeps it."""

    def close(self) -> None:
        """Let go of the tensors; files are unmapped when the last array handed out is dropped."""
        self.tensors.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a .gguf file, or a folder with `config.json` and safetensors (or with exactly one .gguf file).

    Raises:
        ModelFormatError: there is no model, it is damaged, or it is of a kind that is not read here.
    """
    if path.is_dir():
        if file_in_folder(path, "config.json") is not None:
            return _open_folder(path)
        return _open_gguf(_only_gguf(path))
    if path.suffix in PICKLED_SUFFIXES and not _is_gguf(path):
        raise ModelFormatError(_pickle_refusal(path))
    if path.suffix == ".safetensors":
        raise ModelFormatError(
            f"{str(path)!r} holds weights only. Give the folder that has it beside its 'config.json' and tokenizer."
        )
    return _open_gguf(path)


def _is_gguf(path: Path) -> bool:
    """Whether the file begins like a GGUF file, whatever its name."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def _open_gguf(path: Path) -> Checkpoint:
    file = open_gguf(path)
    parts = file.metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise ModelFormatError(
            f"{str(path)!r} is one of {parts} parts of a split GGUF. Join them with 'llama-gguf-split --merge' first."
        )
    template = file.metadata.get("tokenizer.chat_template")
    return Checkpoint(
        path=path,
        format="gguf",
        tensors=file.tensors,
        metadata=file.metadata,
        config={},
        chat_template=template if isinstance(template, str) else None,
    )


def _open_folder(folder: Path) -> Checkpoint:
    config = _read_json(folder, "config.json")
    assert config is not None
    if not any(folder.glob("*.safetensors*")):
        pickled = next((path for path in sorted(folder.iterdir()) if path.suffix in PICKLED_SUFFIXES), None)
        if pickled is not None:
            raise ModelFormatError(_pickle_refusal(pickled))
    tokenizer_config = _read_json(folder, "tokenizer_config.json")
    return Checkpoint(
        path=folder,
        format="safetensors",
        tensors=open_safetensors(folder).tensors,
        metadata={},
        config=config,
        tokenizer_json=_read_text(folder, "tokenizer.json", MAX_TOKENIZER_BYTES),
        tokenizer_config=tokenizer_config,
        generation_config=_read_json(folder, "generation_config.json"),
        chat_template=_read_text(folder, "chat_template.jinja", MAX_TEMPLATE_BYTES)
        or default_chat_template(tokenizer_config or {}),
    )


def default_chat_template(tokenizer_config: JsonObject) -> str | None:
    """Return the template of a `tokenizer_config.json`: its only one, or the one named `default`."""
    found = tokenizer_config.get("chat_template")
    if isinstance(found, str):
        return found
    for entry in as_list(found) or ():
        named = as_object(entry) or {}
        template = named.get("template")
        if named.get("name") == "default" and isinstance(template, str):
            return template
    return None


def _only_gguf(folder: Path) -> Path:
    found = sorted(path for path in folder.glob("*.gguf") if path.is_file())
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found)
        raise ModelFormatError(f"{str(folder)!r} holds several models: {names}. Name one of these files.")
    raise ModelFormatError(
        f"There is no model in {str(folder)!r}. "
        "Give a folder with 'config.json' and .safetensors files, or a .gguf file."
    )


def _pickle_refusal(path: Path) -> str:
    return (
        f"{str(path)!r} is a pickle, and opening a pickle can run code, so that it is not read. Convert the model with "
        "'transformers': AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)."
    )


def _read_json(folder: Path, name: str) -> JsonObject | None:
    path = file_in_folder(folder, name)
    return None if path is None else parse_json_object(read_file(path, MAX_JSON_BYTES), repr(str(folder / name)))


def _read_text(folder: Path, name: str, limit_bytes: int) -> str | None:
    path = file_in_folder(folder, name)
    if path is None:
        return None
    try:
        return read_file(path, limit_bytes).decode()
    except UnicodeDecodeError as error:
        raise ModelFormatError(f"{str(folder / name)!r} is not UTF-8 at byte {error.start}.") from error
