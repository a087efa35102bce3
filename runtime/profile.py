"""The papers' measuring protocol: what runs beside what, in which order, and which number is reported.

Candidates are timed in one process, one after the other in every round, in an order that changes from round to round,
so that a drifting clock or a busy neighbour hits all alike. Warm-up rounds are dropped, the garbage collector rests
while timing, medians and interquartile ranges are reported, and a candidate is compared with the baseline *within each
round*: the median of those ratios is far steadier than the ratio of two medians.
Source: CCM-LoRA, appendix B.4 (warm runs, synchronisation, fixed precision, median and IQR).

Threads: `pinned_threads(n)` sets torch's count and puts it back. ONNX Runtime takes its count from the session options.
`OMP_NUM_THREADS` and `OMP_WAIT_POLICY=passive` are read once, when the process starts: set them outside, before Python.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..passes.cost_constants import EngineConstants

Candidate = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one candidate.

    Attributes:
        median_s, iqr_s, p10, p90: over the rounds, in seconds.
        runs: the seconds of every timed round, in order; round i of all candidates lay next to each other.
    """

    median_s: float
    iqr_s: float
    p10: float
    p90: float
    runs: tuple[float, ...]

    @classmethod
    def of(cls, runs: Sequence[float]) -> Timing:
        """Summarise one candidate's rounds."""
        p10, p25, p50, p75, p90 = (float(p) for p in np.percentile(runs, (10, 25, 50, 75, 90)))
        return cls(p50, p75 - p25, p10, p90, tuple(runs))

    def to_json(self) -> dict[str, object]:
        """The fields as plain values."""
        return {
            "median_s": self.median_s,
            "iqr_s": self.iqr_s,
            "p10": self.p10,
            "p90": self.p90,
            "runs": list(self.runs),
        }


def compare(
    candidates: Mapping[str, Candidate],
    *,
    warmup: int = 5,
    rounds: int = 20,
    repeats: int = 1,
    seed: int = 0,
    synchronize: Candidate | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time every candidate once a round, in an order that changes each round.

    Args:
        candidates: name → a callable without arguments.
        warmup: rounds that run and are dropped.
        rounds: rounds that count.
        repeats: calls per reading of the clock, for candidates of a few microseconds; seconds stay per call.
        seed: of the order.
        synchronize: called before each reading of the clock, e.g. `torch.cuda.synchronize`.
        clock: seconds, monotone.

    Raises:
        InputError: no candidates, or a count that is out of range.
    """
    _check_counts(candidates, warmup=warmup, rounds=rounds, repeats=repeats)
    settle = synchronize or _nothing
    runs: dict[str, list[float]] = {name: [] for name in candidates}
    orders = _orders(list(candidates), random.Random(seed))
    with _collector_off():
        for number in range(warmup + rounds):
            for name in next(orders):
                run = candidates[name]
                settle()
                start = clock()
                for _ in range(repeats):
                    run()
                settle()
                elapsed = clock() - start
                if number >= warmup:
                    runs[name].append(elapsed / repeats)
    return {name: Timing.of(taken) for name, taken in runs.items()}


def ratios(timings: Mapping[str, Timing], baseline: str) -> dict[str, float]:
    """Each candidate's time over the baseline's: the median of the ratios taken round by round.

    Raises:
        InputError: no such baseline, or timings of different lengths.
    """
    if baseline not in timings:
        names = ", ".join(timings)
        raise InputError("Unknown baseline.", given=repr(baseline), expected=f"one of {names}")
    below = np.asarray(timings[baseline].runs)
    lengths = {name: len(timing.runs) for name, timing in timings.items()}
    if set(lengths.values()) != {len(below)}:
        raise InputError(
            "Ratios are taken round by round, and these timings have different numbers of rounds.",
            given=repr(lengths),
            expected="the timings of one call of compare()",
        )
    return {name: float(np.median(np.asarray(timing.runs) / below)) for name, timing in timings.items()}


@contextmanager
def pinned_threads(count: int) -> Iterator[None]:
    """Run torch on `count` threads inside the block, and on as many as before after it.

    Raises:
        InputError: `count` is below one.
    """
    import torch

    if count < 1:
        raise InputError("A thread count is at least one.", given=repr(count), expected="1 or more")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure_constants(engine: str) -> EngineConstants:
    """The cost model's constants of "onnxruntime" or "torch" on this machine: one thread, about a second.

    Raises:
        InputError: another engine.
        MissingDependencyError: ONNX Runtime is asked for and not installed.
    """
    # The probes bring torch and ONNX Runtime along; whoever only times something does not pay for them.
    from .measure import measure_engine

    return measure_engine(engine)


def _check_counts(candidates: Mapping[str, Candidate], **counts: int) -> None:
    if not candidates:
        raise InputError("Nothing to time.", given="no candidates", expected="a mapping of name to callable")
    least = {"warmup": 0, "rounds": 1, "repeats": 1}
    for name, count in counts.items():
        if count < least[name]:
            raise InputError(f"{name} is too small.", given=f"{name}={count}", expected=f"{least[name]} or more")


def _orders(names: list[str], source: random.Random) -> Iterator[list[str]]:
    """Endless orders: shuffled anew every len(names) rounds, and in between rotated to every starting point once."""
    while True:
        source.shuffle(names)
        for start in source.sample(range(len(names)), len(names)):
            yield names[start:] + names[:start]


@contextmanager
def _collector_off() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _nothing() -> None:
    return None
