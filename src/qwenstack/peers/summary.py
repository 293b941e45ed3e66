"""From what was measured to records."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from qwenstack.peers.comparison import Findings, Plan
from qwenstack.peers.model_file import ModelFile
from qwenstack.peers.records import (
    OURS,
    AbsenceRecord,
    Circumstances,
    Record,
    SpeedRecord,
    bandwidth_share,
    ratios,
    same_first_tokens,
    tokens_per_second,
    total,
)


def summarise(findings: Findings, plan: Plan, file: ModelFile | None, circumstances: Circumstances) -> Iterator[Record]:
    """Return a record for each engine and workload, and one for each engine that failed.

    Args:
        findings: what was measured.
        plan: what was asked.
        file: what is known of the file; None: nothing.
        circumstances: where and when.
    """
    bandwidth = median(findings.bandwidths)
    for workload in plan.workloads:
        ours = findings.timed.get((OURS, workload.name), [])
        own_speeds = [tokens_per_second(workload, timed) for timed in ours]
        for engine, loaded in findings.loaded.items():
            timed = findings.timed.get((engine, workload.name))
            if not timed:
                continue
            speeds = [tokens_per_second(workload, one) for one in timed]
            ratio_runs = ratios(own_speeds, speeds) if ours and engine != OURS else []
            bytes_per_step = None
            if file is not None and workload.timed == "decode":
                weight_bytes = loaded.weight_bytes_per_step or file.weight_bytes_per_step
                kv_bytes = loaded.kv_bytes_per_token or file.kv_bytes_per_token
                bytes_per_step = workload.bytes_per_step(weight_bytes, kv_bytes)
            share = None if bytes_per_step is None else bandwidth_share(workload, timed, bytes_per_step, bandwidth)
            same = same_first_tokens(ours, timed) if ours and engine != OURS else None
            yield SpeedRecord(
                circumstances=circumstances,
                file=plan.model_file.name,
                file_bytes=plan.model_file.stat().st_size,
                workload=workload.name,
                max_tokens=workload.max_tokens,
                engine=engine,
                version=loaded.version,
                remark=loaded.remark,
                tokens_per_second=round(median(speeds), 2),
                tokens_per_second_runs=[round(speed, 2) for speed in speeds],
                ratio=round(median(ratio_runs), 3) if ratio_runs else None,
                ratio_runs=[round(ratio, 3) for ratio in ratio_runs],
                memory_bandwidth_gb_per_second=round(bandwidth / 1e9, 2),
                bytes_per_step=bytes_per_step,
                bandwidth_share=None if share is None else round(share, 3),
                cached_tokens=total(one.cached_tokens for one in timed),
                drafted_tokens=total(one.drafted_tokens for one in timed),
                same_first_tokens=None if same is None else round(same, 3),
            )
    for engine, reason in findings.failures.items():
        yield AbsenceRecord(circumstances=circumstances, engine=engine, file=plan.model_file.name, reason=reason)
