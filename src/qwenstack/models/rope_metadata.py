"""What a file says about its rotary embedding: the base frequency, and whether and how it is stretched.

Hugging Face has two spellings (`rope_scaling` beside `rope_theta`, and `rope_parameters` from transformers 5), GGUF has
its own keys and two defaults that differ: see `rope_from_gguf`. Other scalings are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping

from qwenstack.core.errors import ModelFormatError
from qwenstack.models.metadata import MetadataFields
from qwenstack.models.rope import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling, yarn_attention_factor

_DEFAULT_THETA = 10_000.0
"""`default_theta` of transformers; rope.freq_base's default in llama.cpp."""


def rope_from_hf(fields: MetadataFields, max_position_embeddings: int) -> tuple[float, RopeScaling | None]:
    """Return base frequency and scaling of a `config.json`.

    Raises:
        ModelFormatError: the file contradicts itself, or asks for what is not computed here.
    """
    sections = [found for key in ("rope_parameters", "rope_scaling") if (found := fields.section(key))]
    if len(sections) == 2 and sections[0].values != sections[1].values:
        raise ModelFormatError(
            "config.json has `rope_parameters` and `rope_scaling`, and they differ; keep the first, with all values."
        )
    if not sections:
        _refuse_partial(fields)
        return fields.number("rope_theta", default=_DEFAULT_THETA), None
    nested = sections[0]
    if any(isinstance(value, Mapping) for value in nested.values.values()):
        raise ModelFormatError(f"{nested.where} differs from layer to layer, which is not computed here.")
    for place in (fields, nested):
        _refuse_partial(place)
    theta = (nested if "rope_theta" in nested.values else fields).number("rope_theta", default=_DEFAULT_THETA)
    return theta, _scaling_from_hf(nested, max_position_embeddings)


def _scaling_from_hf(nested: MetadataFields, max_position_embeddings: int) -> RopeScaling | None:
    kind = nested.values.get("rope_type", nested.values.get("type", "default"))
    match kind:
        case "default":
            return None
        case "linear":
            return LinearScaling(factor=nested.number("factor"))
        case "llama3":
            return Llama3Scaling(
                factor=nested.number("factor"),
                original_max_position_embeddings=_original_length(nested, max_position_embeddings),
                low_freq_factor=nested.number("low_freq_factor"),
                high_freq_factor=nested.number("high_freq_factor"),
            )
        case "yarn":
            return YarnScaling(
                factor=nested.number("factor"),
                original_max_position_embeddings=_original_length(nested, max_position_embeddings),
                attention_factor=_yarn_attention_factor(nested),
                beta_fast=nested.number("beta_fast", default=32.0),
                beta_slow=nested.number("beta_slow", default=1.0),
                truncate=nested.flag("truncate", default=True),
            )
        case _:
            raise ModelFormatError(
                f"{nested.where} asks for {kind!r} rotary embedding; the plain one, linear, yarn and llama3 are "
                "computed here."
            )


def _original_length(nested: MetadataFields, max_position_embeddings: int) -> int:
    return nested.integer("original_max_position_embeddings", default=max_position_embeddings)


def _yarn_attention_factor(nested: MetadataFields) -> float:
    """Return the written factor, else the one of the two `mscale` fields where both are there, else the paper's."""
    factor = nested.number("factor")
    numerator = nested.number("mscale", default=0.0)
    denominator = nested.number("mscale_all_dim", default=0.0)
    inferred = yarn_attention_factor(factor)
    if numerator and denominator:
        inferred = yarn_attention_factor(factor, numerator) / yarn_attention_factor(factor, denominator)
    return nested.number("attention_factor", default=inferred)


def _refuse_partial(fields: MetadataFields) -> None:
    if fields.number("partial_rotary_factor", default=1.0) != 1.0:
        raise ModelFormatError("The model turns a part of each head only, which is not computed here.")


def rope_from_gguf(fields: MetadataFields, architecture: str, context_length: int) -> tuple[float, RopeScaling | None]:
    """Return base frequency and scaling of GGUF metadata.

    As in llama.cpp a factor without a type means linear scaling, and `attn_factor` multiplies YaRN's usual attention
    factor, where Hugging Face's `attention_factor` replaces it.

    Raises:
        ModelFormatError: the file asks for what is not computed here.
    """
    rope = f"{architecture}.rope"
    theta = fields.number(f"{rope}.freq_base", default=_DEFAULT_THETA)
    factor = fields.number(f"{rope}.scaling.factor", default=fields.number(f"{rope}.scale_linear", default=1.0))
    kind = fields.values.get(f"{rope}.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn"):
        raise ModelFormatError(
            f"The file asks for {kind!r} rotary embedding; the plain one, linear and yarn are computed here."
        )
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):  # 0 stands for "not given"
        return theta, None
    if kind == "linear":
        return theta, LinearScaling(factor=factor)
    _refuse_unusual_yarn(fields, f"{rope}.scaling")
    return theta, YarnScaling(
        factor=factor,
        original_max_position_embeddings=fields.integer(
            f"{rope}.scaling.original_context_length", default=context_length
        ),
        attention_factor=fields.number(f"{rope}.scaling.attn_factor", default=1.0) * yarn_attention_factor(factor),
        beta_fast=fields.number(f"{rope}.scaling.yarn_beta_fast", default=32.0),
        beta_slow=fields.number(f"{rope}.scaling.yarn_beta_slow", default=1.0),
    )


def _refuse_unusual_yarn(fields: MetadataFields, scaling: str) -> None:
    """Refuse the keys of other families, whose meaning has changed between versions of llama.cpp."""
    for name, usual in (
        ("yarn_ext_factor", 1.0),
        ("yarn_attn_factor", 1.0),
        ("yarn_log_multiplier", 0.0),
        ("alpha", 0.0),
    ):
        value = fields.number(f"{scaling}.{name}", default=usual)
        if value != usual:
            raise ModelFormatError(f"`{scaling}.{name}` is {value!r}; only {usual!r} is computed here.")
