"""Records: ratios of pairs, shares of the memory's bandwidth, lines that come back as they went."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwenstack.core.errors import ConfigError
from qwenstack.peers.comparison import Findings, Plan
from qwenstack.peers.driver_process import Loaded, Timed
from qwenstack.peers.model_file import ModelFile
from qwenstack.peers.records import (
    AbsenceRecord,
    Circumstances,
    PerplexityRecord,
    SpeedRecord,
    append_record,
    bandwidth_share,
    ratios,
    read_records,
    same_first_tokens,
    tokens_per_second,
    total,
)
from qwenstack.peers.report import fastest_as_good, render
from qwenstack.peers.summary import summarise
from qwenstack.peers.workload import Workload

HERE = Circumstances(
    run="2026-01-01T00:00:00+00:00",
    command="qwenstack bench peers",
    commit="0123456789abcdef",
    cpu="Test CPU",
    cpu_flags=("avx2",),
    num_cores=2,
    memory_bytes=None,
    platform="test",
    num_threads=2,
)


def timed(decode_s: float, *, prefill_s: float = 1.0, tokens: int = 100, first: tuple[int, ...] = (7,)) -> Timed:
    return Timed(
        prefill_s=prefill_s,
        decode_s=decode_s,
        decode_tokens=tokens,
        cached_tokens=0,
        drafted_tokens=None,
        first_token_ids=list(first),
    )


def test_prefill_counts_the_prompt_and_decode_what_follows_the_first_tokens():
    assert tokens_per_second(Workload.parse("prefill-512", 8), timed(9.0, prefill_s=2.0)) == 256
    assert tokens_per_second(Workload.parse("decode-8", 8), timed(2.0, tokens=56)) == 28


def test_a_ratio_is_taken_of_what_ran_at_the_same_time():
    # The machine was half as fast in the second repetition, for both.
    assert ratios([100, 50], [50, 25]) == [2, 2]


def test_the_share_of_the_bandwidth_is_bytes_by_median_step():
    workload = Workload.parse("decode-1", 101)
    runs = [timed(1.0), timed(2.0), timed(50.0)]
    assert bandwidth_share(workload, runs, 400, 40_000) == pytest.approx(400 / (2.0 / 100) / 40_000)
    assert bandwidth_share(Workload.parse("prefill-512", 8), runs, 400, 40_000) is None


def test_what_nobody_counted_is_unknown_and_not_nothing():
    assert total([0, 0]) == 0
    assert total([0, None]) is None


def test_answers_that_begin_alike_are_counted():
    ours = [timed(1, first=(1, 2)), timed(1, first=(3, 4))]
    theirs = [timed(1, first=(1, 2)), timed(1, first=(3, 9))]
    assert same_first_tokens(ours, theirs) == 0.75
    assert same_first_tokens(ours, [timed(1, first=()), timed(1, first=())]) is None


def summarised(tmp_path: Path) -> list[SpeedRecord | AbsenceRecord | PerplexityRecord]:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"0" * 10)
    plan = Plan(
        model_file=path,
        workloads=[Workload.parse("decode-1", 101)],
        repetitions=3,
        num_threads=2,
        vocab_size=100,
        keep_loaded=True,
    )
    findings = Findings(
        loaded={"qwenstack": Loaded(engine="qwenstack", version="1"), "other": Loaded(engine="other", version="2")},
        timed={
            ("qwenstack", "decode-1"): [timed(1.0), timed(2.0), timed(1.0)],
            ("other", "decode-1"): [timed(2.0), timed(4.0), timed(8.0)],
        },
        failures={"third": "it broke"},
        bandwidths=[1e6, 3e6, 2e6],
    )
    file = ModelFile(path=path, num_bytes=10, vocab_size=100, weight_bytes_per_step=1000, kv_bytes_per_token=0)
    return list(summarise(findings, plan, file, HERE))


def test_a_summary_has_medians_all_values_and_who_failed(tmp_path: Path):
    ours, theirs, third = summarised(tmp_path)
    assert isinstance(ours, SpeedRecord)
    assert isinstance(theirs, SpeedRecord)
    assert isinstance(third, AbsenceRecord)
    assert (ours.tokens_per_second, ours.ratio, ours.ratio_runs) == (100.0, None, [])
    assert (theirs.tokens_per_second, theirs.tokens_per_second_runs) == (25.0, [50.0, 25.0, 12.5])
    assert (theirs.ratio, theirs.ratio_runs) == (2.0, [2.0, 2.0, 8.0])
    assert ours.bandwidth_share == 0.05  # 1000 bytes in 10 ms, of 2 MB/s
    assert (ours.cached_tokens, ours.drafted_tokens) == (0, None)
    assert third.reason == "it broke"


def test_records_come_back_as_they_were_written(tmp_path: Path):
    path = tmp_path / "results" / "peers.jsonl"
    records = summarised(tmp_path)
    for record in records:
        append_record(path, record)
    assert read_records(path) == records


def test_a_damaged_line_is_named(tmp_path: Path):
    path = tmp_path / "peers.jsonl"
    path.write_text('{"kind": "speed"}\n')
    with pytest.raises(ConfigError, match="Line 1"):
        read_records(path)


def test_results_that_are_not_there_say_how_to_make_them(tmp_path: Path):
    with pytest.raises(ConfigError, match="qwenstack bench peers"):
        read_records(tmp_path / "none.jsonl")


def perplexity(engine: str, file: str, value: float) -> PerplexityRecord:
    return PerplexityRecord(
        circumstances=HERE,
        file=file,
        file_bytes=1,
        engine=engine,
        version="1",
        text="a text",
        window=512,
        num_tokens=1000,
        perplexity=value,
    )


def test_the_best_file_is_the_fastest_of_those_as_good_as_ours():
    perplexities = {("peer", "small"): 30.0, ("peer", "middle"): 20.0, ("peer", "large"): 19.0, ("ours", "x"): 1.0}
    speeds = {("peer", "small"): 90.0, ("peer", "middle"): 60.0, ("peer", "large"): 40.0}
    assert fastest_as_good("peer", perplexities, speeds, 20.5) == "middle"
    assert fastest_as_good("peer", perplexities, speeds, 19.5) == "large"
    assert fastest_as_good("peer", perplexities, speeds, 10.0) is None


def test_the_report_says_figures_where_they_come_from_and_what_is_missing(tmp_path: Path):
    records = [
        *summarised(tmp_path),
        perplexity("qwenstack", "model.gguf", 20.0),
        perplexity("other", "model.gguf", 19.9),
    ]
    text = render(records)
    assert "### model.gguf, Test CPU" in text
    assert "| decode-1 | 100 | 25.0 (2.00×) |" in text
    assert "Median of 3, 2 threads of 2 cores (avx2)" in text
    assert "commit 0123456789ab: `qwenstack bench peers`" in text
    assert "No figures of third: it broke" in text
    assert "| model.gguf | 20.000 | 19.900 |" in text
    assert "other decodes fastest with model.gguf: 25.0 tokens/s, ours ÷ theirs 4.00×" in text


def test_the_report_takes_a_table_from_one_run(tmp_path: Path):
    old = summarised(tmp_path)
    later = Circumstances(**{name: getattr(HERE, name) for name in HERE.__struct_fields__} | {"run": "2026-02-01"})
    (ours, *_) = old
    assert isinstance(ours, SpeedRecord)
    fields = {name: getattr(ours, name) for name in ours.__struct_fields__}
    new = SpeedRecord(**fields | {"circumstances": later, "tokens_per_second": 150.0})
    text = render([*old, new])
    assert "| decode-1 | 150 |" in text
    assert "other" not in text
