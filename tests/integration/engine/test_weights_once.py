"""A loaded model takes its weights once: packed, and no longer as pages of the file."""

from __future__ import annotations

import re
from pathlib import Path

from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine import LLM


def resident_bytes(path: Path) -> int:
    """Bytes of a file that are mapped into this process and present."""
    entries = Path("/proc/self/smaps").read_text().split(str(path.resolve()))[1:]
    return sum(int(re.findall(r"^Rss:\s+(\d+) kB", entry, re.MULTILINE)[0]) * 1024 for entry in entries)


def test_the_pages_of_the_file_are_given_back(smollm2_gguf: Path) -> None:
    with LLM(smollm2_gguf, num_threads=2, max_model_len=512, prefix_cache_disk_bytes=0) as llm:
        prompts = ["One two three four five six seven eight nine ten."]
        assert llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=4))[0].outputs[0].text
        # Rows of the embedding are read again when a prompt has their tokens, 64 KB around each.
        assert 0 < resident_bytes(smollm2_gguf) < 0.1 * smollm2_gguf.stat().st_size
