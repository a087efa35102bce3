"""What `gatefx serve` may be told: one frozen record, checked before anything starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ...errors import InputError


@dataclass(frozen=True)
class ServeOptions:
    """How a folder is served.

    Attributes:
        replicas: processes that each hold the model.
        max_batch: examples that run together at most.
        wait_ms: how long a request waits for others, in milliseconds.
        width: of a length bucket, in tokens: only requests of one bucket are padded to one length.
        threads: of ONNX Runtime, in each replica; also the CPUs that a replica takes of the cluster.
        longest: tokens of the longest request that is taken; None takes the limit of the model's config, if it has one.
        queued: requests that one replica holds; those beyond are told to come back later.
        drain_s: seconds that requests in flight have at shutdown.
        measure_every: measure what one request in so many really spends, by a second session; 0 measures none.
        provider, native: as `gatefx.load`.

    Raises:
        InputError: a count below one, or a time that is negative or not finite.
    """

    replicas: int = 1
    max_batch: int = 8
    wait_ms: float = 5.0
    width: int = 32
    threads: int = 1
    longest: int | None = None
    queued: int = 256
    drain_s: float = 30.0
    measure_every: int = 0
    provider: str = "cpu"
    native: bool | None = None

    def __post_init__(self) -> None:
        counts = {"replicas": self.replicas, "max_batch": self.max_batch, "width": self.width}
        for name, count in (counts | {"threads": self.threads, "queued": self.queued}).items():
            _check_count(name, count)
        if self.longest is not None:
            _check_count("longest", self.longest)
        if self.measure_every != 0:
            _check_count("measure_every", self.measure_every)
        for name, time in (("wait_ms", self.wait_ms), ("drain_s", self.drain_s)):
            _check_time(name, time)


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"The option {name} is no count.", given=repr(value), expected="an integer from 1")


def _check_time(name: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        raise InputError(f"The option {name} is no time.", given=repr(value), expected="a finite number from 0")
