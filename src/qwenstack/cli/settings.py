"""The settings of the `qwenstack` command, and the places they come from.

Settings are what users write; the layers below have configurations of their own, which the commands fill from these.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from qwenstack.core.config import (
    Between,
    EnvironmentName,
    Resolved,
    Trait,
    from_assignments,
    from_environment,
    from_flags,
    from_toml,
    load_config,
    refuse_personal,
)
from qwenstack.core.limits import NO_LIMITS, Limits
from qwenstack.core.scope import DEFAULT_ROLES

PROJECT_FILE = Path("qwenstack.toml")
"""Settings of the folder that the command is run in."""

_OTHER_VARIABLES = frozenset(
    {"QWENSTACK_API_KEY", "QWENSTACK_BASE_URL", "QWENSTACK_DATA", "QWENSTACK_FUZZ_SECONDS", "QWENSTACK_SCREENSHOTS"}
)
"""Variables of ours that `qwenstack.client`, scripts and tests read; they are no settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How much of the machine the model may use."""

    num_threads: Annotated[int, Between(low=1, high=1024)] | None = None
    """Threads of the kernels; none: one for each core."""
    max_model_len: Annotated[int, Between(low=1, high=1 << 24)] | None = None
    """Prompt and answer together, in tokens; none: as many as the model was trained for."""
    yarn_factor: Annotated[float, Between(low=1, high=32)] | None = None
    """Stretch the context by this factor with YaRN, such as 4; none: as the model's files say."""
    kv_cache_memory_bytes: Annotated[int, Between(low=1 << 16, high=1 << 50)] | None = None
    """Memory for keys and values; none: sized to the free memory."""
    max_num_seqs: Annotated[int, Between(low=1, high=4096)] = 64
    """Answers that are generated at the same time; more wait."""
    max_num_batched_tokens: Annotated[int, Between(low=16, high=1 << 16)] = 512
    """Tokens that one step computes; a long prompt is read in pieces of this size."""
    repetition_window: Annotated[int, Between(low=0, high=1 << 20)] = 1024
    """An answer whose last so many tokens only repeat themselves is ended; 0: none is."""
    journal_path: Annotated[Path, Trait.PERSONAL] | None = None
    """File that requests are written to, so that 'qwenstack replay' can run them again; none: no journal."""
    weight_format: Literal["stored", "bfloat16", "int8"] = "stored"
    """Type of the weights in memory; stored: as in the file. int8 halves those of bfloat16 files."""
    kv_cache_dtype: Literal["auto", "float32", "float16", "bfloat16", "int8"] = "auto"
    """Type of stored keys and values; auto: float32 for float32 weights, else float16. int8 halves float16."""
    activation_bits: Literal[8, 16] | None = None
    """How finely activations are rounded; none: 16 bits for models under 300 million parameters, 8 for others."""
    short_prompt_tokens: Annotated[int, Between(low=0, high=1 << 24)] = 0
    """Answers to prompts of at most this many tokens are computed at 16 bits, whatever activation_bits says."""
    isa: Literal["auto", "avx512", "avx2", "neon", "scalar", "reference"] = "auto"
    """Instruction set of the kernels; auto: the best that this CPU has."""
    speculation: Literal["ngram", "off"] = "ngram"
    """ngram: guess that text goes on as it did before, and check several tokens at once; never changes a result."""
    draft_model_path: Annotated[Path, Trait.PERSONAL] | None = None
    """Small model of the same vocabulary that guesses instead; none: no second model."""
    num_speculative_tokens: Annotated[int, Between(low=1, high=16)] = 16
    """Guesses of an answer that one step may hold; fewer are made where more would not pay."""
    enable_prefix_caching: bool = True
    """Whether what was computed for one prompt serves later ones that begin alike."""
    prefix_cache_disk_bytes: Annotated[int, Between(low=0, high=1 << 50)] = 4 << 30
    """Disk space for keys and values of earlier prompts, which begin the answers to later ones; 0 keeps none."""
    prefix_cache_dir: Annotated[Path | None, Trait.PERSONAL] = None
    """Folder for them; none: in the user's cache folder."""
    prefix_cache_max_age_s: Annotated[int, Between(low=1, high=10 * 366 * 86_400)] = 7 * 86_400
    """What was not used for so many seconds is removed from the disk."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters that requests may name, each as NAME=FOLDER."""
    max_adapters: Annotated[int, Between(low=0, high=1024)] = 16
    """Adapters that may be loaded at the same time."""
    merged_adapter: Path | None = None
    """Folder of one LoRA adapter to add to the weights for good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Where the server listens, and to whom."""

    host: str = "127.0.0.1"
    """Address to listen on; any but this machine's own needs an API key."""
    port: Annotated[int, Between(low=0, high=65_535)] = 8000
    """Port to listen on; 0 takes a free one."""
    grpc_port: Annotated[int, Between(low=0, high=65_535)] | None = None
    """Port to listen on for gRPC; 0 takes a free one; none: no gRPC."""
    tls_cert: Annotated[Path, Trait.PERSONAL] | None = None
    """File with the certificate to encrypt connections with, in PEM; none: they are not encrypted."""
    tls_key: Annotated[Path, Trait.PERSONAL] | None = None
    """File with the certificate's private key, in PEM."""
    api_keys: Annotated[tuple[str, ...], Trait.SECRET, EnvironmentName(name="QWENSTACK_API_KEYS")] = ()
    """Keys that clients must show one of; none: everybody on this machine may use the server."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names, beside this machine's own, under which clients may reach the server."""
    allowed_origins: tuple[str, ...] = ()
    """Origins, such as https://chat.example.org, whose web pages may use the server."""
    served_model_name: str | None = None
    """Name of the model for clients; none: its own name."""
    admin_host: str = "127.0.0.1"
    """Address of the administration."""
    admin_port: Literal["off"] | Annotated[int, Between(low=0, high=65_535)] = 8001
    """Port of the administration, which needs a key of its own; 0 takes a free one; off: there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """What `serve` writes to standard error."""

    format: Literal["text", "json"] = "text"
    """text: lines for people; json: one object a line, for programs."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important lines that are written; debug also shows health checks and files of the page."""
    requests: bool = True
    """A line for each request: method, route, status, milliseconds and ids; never what was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingSettings:
    """The model that makes vectors of texts, beside the one that answers."""

    model: str = "multilingual-e5-small"
    """multilingual-e5-small, which is part of the installation; a Qwen3-Embedding model; off: none."""
    num_threads: Annotated[int, Between(low=1, high=1024)] | None = None
    """Threads that it may use; none: one for every two cores."""
    max_tokens: Annotated[int, Between(low=1, high=1 << 24)] | None = None
    """Of one text; none: as many as a Qwen3-Embedding model was made for, at most 8192. The other has 512."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSettings:
    """What administrators may load while the server runs."""

    folder: Annotated[Path, Trait.PERSONAL] | None = None
    """Folder below which LoRA adapters may be loaded over HTTP; none: they are not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OidcSettings:
    """Whose signed tokens open the server beside keys."""

    issuer: Annotated[str, Trait.PERSONAL] | None = None
    """Identity provider, as its tokens name it in `iss`; none: only keys open the server."""
    audience: Annotated[str, Trait.PERSONAL] | None = None
    """What its tokens for this server have in `aud`."""
    jwks_url: Annotated[str, Trait.PERSONAL] | None = None
    """Address of its public keys; none: as its `.well-known/openid-configuration` says."""
    tenant_claim: Annotated[str, Trait.PERSONAL] = "sub"
    """Claim that is the tenant; it must be nothing that users choose for themselves."""
    scopes_claim: Annotated[str, Trait.PERSONAL] = "scope"
    """Claim whose words are looked up in oidc.roles; a.b is b within a."""
    models_claim: Annotated[str, Trait.PERSONAL] | None = None
    """Claim that lists the models that may be used; none: all may be."""
    roles: Annotated[tuple[str, ...], Trait.PERSONAL] = DEFAULT_ROLES
    """What a word of the scopes claim allows, each as WORD=SCOPE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OtelSettings:
    """Where traces of requests go; needs the extra otel."""

    endpoint: Annotated[str | None, Trait.PERSONAL, EnvironmentName(name="OTEL_EXPORTER_OTLP_ENDPOINT")] = None
    """Base address of an OTLP receiver over HTTP, such as http://127.0.0.1:4318; none: no traces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSettings:
    """Where API keys, the audit log and what tenants keep are, and for how long."""

    url: Annotated[str | None, Trait.SECRET] = None
    """sqlite:////folder/file.db or postgresql+psycopg://user@host/name; none: a file of the user's; off: nowhere."""
    retention_days: Annotated[int, Between(low=1, high=3650)] = 30
    """Stored responses are removed after so many days."""
    max_response_bytes: Annotated[int, Between(low=1 << 20, high=1 << 50)] = 1 << 30
    """Stored responses of a tenant together; the oldest go first."""
    files_dir: Annotated[Path, Trait.PERSONAL] | None = None
    """Folder of uploaded files; none: beside the SQLite file. Servers that share PostgreSQL share this folder too."""
    max_files_bytes: Annotated[int, Between(low=1 << 20, high=1 << 50)] = 10 << 30
    """Uploaded files of a tenant together."""
    max_upload_bytes: Annotated[int, Between(low=1 << 10, high=1 << 40)] = 200 << 20
    """The longest file that is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSettings:
    """Where model files come from and where they are kept."""

    cache_dir: Annotated[Path | None, EnvironmentName(name="QWENSTACK_CACHE_DIR")] = None
    """Folder of the models; none: the user's cache folder."""
    hf_endpoint: Annotated[str, Trait.PERSONAL, EnvironmentName(name="HF_ENDPOINT")] = "https://huggingface.co"
    """Hugging Face, or a mirror of it."""
    ms_endpoint: Annotated[str, Trait.PERSONAL] = "https://modelscope.cn"
    """ModelScope, or a mirror of it."""
    hf_token: Annotated[str | None, Trait.SECRET, EnvironmentName(name="HF_TOKEN")] = None
    """Token for private models; shown to Hugging Face alone."""
    offline: Annotated[bool, EnvironmentName(name="HF_HUB_OFFLINE")] = False
    """Use only what is in the cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of the command."""

    model: str = "auto"
    """Model to use where a command names none."""
    engine: EngineSettings = EngineSettings()
    server: ServerSettings = ServerSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    limits: Limits = NO_LIMITS
    hub: HubSettings = HubSettings()
    storage: StorageSettings = StorageSettings()
    log: LogSettings = LogSettings()
    adapters: AdapterSettings = AdapterSettings()
    oidc: OidcSettings = OidcSettings()
    otel: OtelSettings = OtelSettings()


def load_settings(assignments: Iterable[str] = (), flags: Mapping[str, object] | None = None) -> Resolved[Settings]:
    """Merge defaults, the user's file, the project's file, the environment, `--set` and the options of a command.

    Args:
        assignments: what `--set` was given.
        flags: values of further options, by key.

    Raises:
        ConfigError: one of them is wrong.
    """
    return load_config(
        Settings,
        from_toml(user_file()),
        refuse_personal(Settings, from_toml(PROJECT_FILE)),
        from_environment(Settings, os.environ, other_names=_OTHER_VARIABLES),
        from_assignments(assignments),
        from_flags(flags or {}),
    )


def user_file() -> Path:
    """Return the user's own settings file, which need not exist."""
    return _user_path("config") / "config.toml"


def state_dir() -> Path:
    """Return the folder for what commands remember between runs, which need not exist."""
    return _user_path("state")


def data_dir() -> Path:
    """Return the folder for what must not be lost, which need not exist."""
    return _user_path("data")


def _user_path(kind: Literal["config", "data", "state"]) -> Path:
    import platformdirs

    find = {
        "config": platformdirs.user_config_path,
        "data": platformdirs.user_data_path,
        "state": platformdirs.user_state_path,
    }[kind]
    return find("qwenstack", appauthor=False)
