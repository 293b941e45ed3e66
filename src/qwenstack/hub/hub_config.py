"""Where the hubs are, as a caller decides it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HubConfig:
    """Where the hubs are."""

    hf_endpoint: str = "https://huggingface.co"
    ms_endpoint: str = "https://modelscope.cn"
    hf_token: str | None = None
    """Shown to `hf_endpoint` alone."""
    pip_options: tuple[str, ...] = ()
    """Further options for `pip download`."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> HubConfig:
        """Obey the variables that Hugging Face's own tools obey."""
        return cls(
            hf_endpoint=environment.get("HF_ENDPOINT") or cls().hf_endpoint,
            hf_token=environment.get("HF_TOKEN") or None,
        )
