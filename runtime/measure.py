"""Measure an engine's constants on this machine, for the cost model: about a second.

Each constant is solved from probes (`probes.py`) under the cost model's own equation
seconds = seconds_per_node + issued FLOPs / rate + bytes / bandwidth + rows · seconds_per_row, one unknown at a time.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from ..errors import InputError
from ..passes.cost_constants import EngineConstants
from .probes import ACTIVE_RANKS, DOWN_RANKS, NODES_OF_TINY_SITE, RANK, Kernel, Probe, Runner, probes
from .profile import compare, pinned_threads

FLOAT = 4
LANES = (1, 2, 4, 8, 16)
"""Candidates for the columns that kernels round up to."""
REPEATS = 4
"""Calls per reading: a model's activations are warm in cache, and so must the probes' be for most calls."""
LEAST_SHARE = 0.1
"""Of a probe's time that must be left for the term solved for, however noisy the others were."""

Seconds = dict[tuple[Kernel, int], float]


def measure_engine(engine: str, *, warmup: int = 2, rounds: int = 15) -> EngineConstants:
    """The constants of "onnxruntime" or "torch" on this machine, one thread, float32.

    Raises:
        InputError: another engine.
        MissingDependencyError: ONNX Runtime is asked for and not installed.
    """
    build, version = _engine(engine)
    all_probes = probes()
    with pinned_threads(1):
        runners = {probe.name: build(probe) for probe in all_probes}
        timings = compare(runners, warmup=warmup, rounds=rounds, repeats=REPEATS)
    # The tenth percentile: a neighbour on the machine makes a round slower, never faster.
    fast = {probe.name: timings[probe.name].p10 for probe in all_probes}
    empty = next(fast[probe.name] for probe in all_probes if probe.kernel is Kernel.EMPTY)
    seconds: Seconds = {(p.kernel, p.rank): _left(fast[p.name], empty) / p.copies for p in all_probes}
    return _solve(engine, version, seconds, {(p.kernel, p.rank): p for p in all_probes})


def _engine(engine: str) -> tuple[Callable[[Probe], Runner], str]:
    if engine == "onnxruntime":
        from .probes_onnxruntime import onnxruntime_runner, onnxruntime_version

        return onnxruntime_runner, f"onnxruntime {onnxruntime_version()}"
    if engine == "torch":
        from .probes_torch import torch_runner, torch_version

        return torch_runner, f"torch {torch_version()}"
    raise InputError("Unknown engine.", given=repr(engine), expected="'onnxruntime' or 'torch'")


def _solve(engine: str, version: str, seconds: Seconds, sizes: dict[tuple[Kernel, int], Probe]) -> EngineConstants:
    big = sizes[Kernel.ADD, RANK]
    activation = FLOAT * big.rows * big.width
    node = min(s for (kernel, _), s in seconds.items() if kernel is Kernel.TINY_SITE) / NODES_OF_TINY_SITE
    bandwidth = 3 * activation / _left(seconds[Kernel.ADD, RANK], node)

    def rate(timed: list[tuple[Kernel, int]], flops: float, moved: float) -> float:
        taken = sum(seconds[key] for key in timed)
        return flops / _left(taken, len(timed) * node + moved / bandwidth)

    dense = sizes[Kernel.DENSE, RANK]
    dense_bytes = FLOAT * (2 * dense.rows * dense.width + dense.width**2)
    column = 2.0 * big.rows * big.width
    skinny = rate([(Kernel.DOWN, RANK), (Kernel.UP, RANK)], column * 2 * RANK, 2.0 * activation)
    lanes = _lanes(seconds, node + activation / bandwidth, column / skinny)
    batched = [(kernel, rank) for kernel in (Kernel.BATCHED_DOWN, Kernel.BATCHED_UP) for rank in ACTIVE_RANKS]
    issued = sum(lanes * math.ceil(rank / lanes) + rank for rank in ACTIVE_RANKS)
    ranks_bytes = FLOAT * 2 * big.rows * RANK
    return EngineConstants(
        engine=engine,
        seconds_per_node=node,
        gemm_flops=rate([(Kernel.DENSE, RANK)], 2.0 * dense.rows * dense.width**2, dense_bytes),
        skinny_flops=skinny,
        batched_skinny_flops=rate(batched, column * issued, len(batched) * activation),
        bytes_per_second=bandwidth,
        seconds_per_row=_left(seconds[Kernel.BROADCAST, RANK], node + ranks_bytes / bandwidth) / big.rows,
        lanes=lanes,
        machine=machine(),
        versions=version,
        measured_on=datetime.now(UTC).date().isoformat(),
    )


def _left(seconds: float, explained: float) -> float:
    return max(seconds - explained, LEAST_SHARE * seconds)


def _lanes(seconds: Seconds, fixed: float, per_column: float) -> int:
    """The rounding under which `fixed + per_column · rounded rank` is nearest to the timed down-projections."""

    def distance(lanes: int) -> float:
        modelled = {rank: fixed + per_column * lanes * math.ceil(rank / lanes) for rank in DOWN_RANKS}
        return sum(math.log(modelled[rank] / seconds[Kernel.DOWN, rank]) ** 2 for rank in DOWN_RANKS)

    return min(LANES, key=distance)


def machine() -> str:
    """Processor class and core count, in general terms."""
    name = platform.processor() or platform.machine()
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        rows = (row.partition(":") for row in listing.read_text().splitlines())
        name = next((value.strip() for key, _, value in rows if key.strip() == "model name"), name)
    return f"{name}, {os.cpu_count()} cores"
