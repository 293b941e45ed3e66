"""What the names of models mean."""

import pytest

from qwenstack.core.errors import ModelNotFoundError
from qwenstack.hub.model_folder import is_plain_name
from qwenstack.hub.registry import (
    DEFAULT_MODEL,
    FALLBACK_MODELS,
    KNOWN_MODELS,
    HubModel,
    HubSource,
    IndexSource,
    LocalModel,
    nearest_names,
    parse_model,
)


def test_a_short_name_is_found_in_any_case():
    assert parse_model("Qwen2.5-Coder-0.5B") is KNOWN_MODELS["qwen2.5-coder-0.5b"]


def test_the_default_and_its_fallbacks_are_known():
    assert DEFAULT_MODEL in KNOWN_MODELS
    assert set(FALLBACK_MODELS) < set(KNOWN_MODELS)


@pytest.mark.parametrize("name", KNOWN_MODELS)
def test_every_known_model_is_described_and_adds_up(name):
    model = KNOWN_MODELS[name]
    assert model.name == name == model.slug == name.lower()
    assert model.description
    assert model.context_length % 1024 == 0
    for source in model.sources:
        if isinstance(source, IndexSource):
            assert model.bytes == source.bytes == sum(part.bytes for part in source.parts)
            assert all(len(bytes.fromhex(part.sha256)) == 32 for part in source.parts)
        else:
            assert source.file is None or source.file.endswith(".gguf")  # without one: the whole folder


def test_a_repository_is_named_with_its_hub():
    source = HubSource(hub="hf", repo="Qwen/Qwen3-0.6B")
    assert parse_model("hf:Qwen/Qwen3-0.6B") == HubModel(source=source)
    with_file = parse_model("ms:Qwen/Qwen3-0.6B-GGUF:Qwen3-0.6B-Q8_0.gguf")
    assert isinstance(with_file, HubModel)
    assert with_file.source == HubSource(hub="ms", repo="Qwen/Qwen3-0.6B-GGUF", file="Qwen3-0.6B-Q8_0.gguf")
    assert with_file.slug == "ms--Qwen--Qwen3-0.6B-GGUF--Qwen3-0.6B-Q8_0.gguf"
    assert is_plain_name(with_file.slug)


def test_a_path_that_exists_is_meant_as_a_path(tmp_path):
    assert parse_model(str(tmp_path)) == LocalModel(path=tmp_path)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("qwen2.5-codr-0.5b", "Did you mean 'qwen2.5-coder-0.5b'"),
        ("smolm2", "smollm2-135m"),
        ("xyzzy", "Known are qwen3-0.6b"),
        ("", "no model ''"),
        ("./nowhere.gguf", "no model at './nowhere.gguf'"),
        ("hf:Qwen", "does not name a repository"),
        ("hf:Qwen/../x", "does not name a repository"),
        ("hf:Qwen/..", "does not name a repository"),
        ("ms:a/b/c", "does not name a repository"),
        ("hf:Qwen/x?y", "does not name a repository"),
        ("hf:Qwen/x:../../etc/passwd", "not a plain file name"),
        ("gguf:Qwen/x", "no model 'gguf:Qwen/x'"),
    ],
)
def test_a_name_that_means_nothing_is_refused_with_the_nearest(model, reason):
    with pytest.raises(ModelNotFoundError, match=reason.replace("?", r"\?")):
        parse_model(model)


def test_the_nearest_name_comes_first():
    assert nearest_names("qwen3-0.6") == nearest_names("QWEN3-0.6")
    assert nearest_names("qwen3-0.6")[0] == "qwen3-0.6b"
    assert nearest_names("completely different") == []
