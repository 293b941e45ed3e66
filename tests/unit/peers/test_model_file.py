"""What a model file says of the work it makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwenstack.peers.model_file import ModelFile


@pytest.mark.weights
def test_a_step_reads_all_weights_but_the_embedding_that_is_only_looked_up(coder_gguf: Path):
    file = ModelFile.read(coder_gguf)
    assert file is not None
    assert file.num_bytes == 491_400_064
    assert 390e6 < file.weight_bytes_per_step < 400e6  # 491 MB without metadata and a Q5_0 embedding of 94 MB
    assert file.kv_bytes_per_token == 24 * 2 * 2 * 64 * 2
    assert file.vocab_size == 151_665  # of 151,936 rows


def test_a_file_of_a_kind_that_is_not_read_here_is_nothing(tmp_path: Path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    assert ModelFile.read(path) is None
