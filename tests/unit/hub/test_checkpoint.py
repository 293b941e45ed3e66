"""The one door to a model on disk."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors.numpy

from qwenstack.core.errors import ModelFormatError
from qwenstack.hub.checkpoint import MAX_JSON_BYTES, open_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Hugging Face folder with everything in it."""
    safetensors.numpy.save_file({"w": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "qwen3", "hidden_size": 8}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "added_tokens": [{"content": "你好"}]}')
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "in the config"}')
    return tmp_path


def write_gguf(path: Path, **metadata: int) -> Path:
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_chat_template("{{ messages }}")
    for key, value in metadata.items():
        writer.add_uint16(key.replace("_", "."), value)
    writer.add_tensor("w", np.ones(2, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_brings_its_metadata_and_template(tmp_path):
    with open_checkpoint(write_gguf(tmp_path / "model.gguf")) as checkpoint:
        assert checkpoint.format == "gguf"
        assert checkpoint.metadata["general.architecture"] == "qwen3"
        assert checkpoint.chat_template == "{{ messages }}"
        assert list(checkpoint.tensors) == ["w"]
    assert not checkpoint.tensors


def test_a_folder_brings_all_its_files(folder):
    checkpoint = open_checkpoint(folder)
    assert checkpoint.format == "safetensors"
    assert checkpoint.config == {"model_type": "qwen3", "hidden_size": 8}
    assert checkpoint.generation_config == {"eos_token_id": [1, 2]}
    assert checkpoint.tokenizer_json is not None
    assert json.loads(checkpoint.tokenizer_json)["added_tokens"] == [{"content": "你好"}]
    assert checkpoint.chat_template == "in the config"
    assert list(checkpoint.tensors) == ["w"]


def test_a_template_file_goes_before_the_tokenizers_config(folder):
    (folder / "chat_template.jinja").write_text("in the file")
    assert open_checkpoint(folder).chat_template == "in the file"


def test_of_several_templates_the_default_one_is_taken(folder):
    templates = [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    assert open_checkpoint(folder).chat_template == "yes"


def test_what_a_folder_lacks_is_none(folder):
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    checkpoint = open_checkpoint(folder)
    assert checkpoint.generation_config is checkpoint.tokenizer_json is checkpoint.tokenizer_config is None
    assert checkpoint.chat_template is None


def test_a_folder_with_one_gguf_file_is_that_file(tmp_path):
    write_gguf(tmp_path / "model.gguf")
    assert open_checkpoint(tmp_path).format == "gguf"
    write_gguf(tmp_path / "other.gguf")
    with pytest.raises(ModelFormatError, match=r"several models: model\.gguf, other\.gguf"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.pth", "model.pkl", "model.ckpt"])
def test_sec_01_a_pickle_is_refused_with_the_way_to_convert_it(folder, name):
    (folder / name).write_bytes(b"\x80\x04.")
    with pytest.raises(ModelFormatError, match=r"pickle.*save_pretrained"):
        open_checkpoint(folder / name)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFormatError, match=r"pickle.*save_pretrained"):
        open_checkpoint(folder)


def test_a_lone_safetensors_file_is_refused_with_the_next_step(folder):
    with pytest.raises(ModelFormatError, match="Give the folder"):
        open_checkpoint(folder / "model.safetensors")


def test_one_part_of_a_split_gguf_is_refused(tmp_path):
    with pytest.raises(ModelFormatError, match="one of 3 parts"):
        open_checkpoint(write_gguf(tmp_path / "part.gguf", split_count=3))


def test_an_empty_folder_and_a_missing_path_are_refused(tmp_path):
    with pytest.raises(ModelFormatError, match="no model in"):
        open_checkpoint(tmp_path)
    with pytest.raises(ModelFormatError, match="No such file"):
        open_checkpoint(tmp_path / "none.gguf")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        (b'{"a": Infinity}', "not a JSON number"),
        (b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}", "nested deeper than 64"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b" " * (MAX_JSON_BYTES + 1), "at most 8388608 are read"),
    ],
)
def test_a_damaged_config_is_refused_by_name(folder, content, reason):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ModelFormatError, match=reason) as error:
        open_checkpoint(folder)
    assert "config.json" in str(error.value)


def test_a_tokenizer_that_is_not_text_is_refused(folder):
    (folder / "tokenizer.json").write_bytes(b"\xff")
    with pytest.raises(ModelFormatError, match=r"tokenizer\.json' is not UTF-8"):
        open_checkpoint(folder)


def test_sec_11_a_config_that_leads_out_of_the_folder_is_refused(folder, tmp_path_factory):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.json"
    secret.write_text('{"key": "value"}')
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").symlink_to(secret)
    with pytest.raises(ModelFormatError, match="outside of the model's folder"):
        open_checkpoint(folder)
