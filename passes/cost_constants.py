"""What an engine's nodes cost on a machine: the few measured numbers that turn FLOPs and bytes into seconds.

The shipped defaults were measured by `benchmarks/cost_constants.py` (method and figures beside it, in the .md file);
`runtime.profile.measure_constants(engine)` measures the same numbers on the machine at hand.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from ..errors import InputError

SKINNY_WIDTH = 64
"""A matrix multiply with an inner or outer dimension up to this width runs at the skinny rate."""


_RATES = (
    "seconds_per_node",
    "gemm_flops",
    "skinny_flops",
    "batched_skinny_flops",
    "bytes_per_second",
    "seconds_per_row",
)


@dataclass(frozen=True)
class EngineConstants:
    """Measured costs of one engine on one machine, float32, one thread.

    Attributes:
        engine: "onnxruntime" or "torch".
        seconds_per_node: fixed cost of one node (dispatch, allocation), in seconds.
        gemm_flops: arithmetic rate of a dense matrix multiply, in FLOP/s (a multiply-add is two).
        skinny_flops: rate where the inner or outer dimension is at most 64, in FLOP/s.
        batched_skinny_flops: the same with one small matrix per example, in FLOP/s.
        bytes_per_second: rate at which activations that the previous node just wrote are read and written.
        seconds_per_row: cost of one row of a broadcast multiply, such as a mask (B, 1, r) over (B, T, r).
        lanes: outer columns that the kernels round up to: fewer columns than a multiple of it cost as much.
        machine: processor class and core count, in general terms.
        versions: of the engine that was measured.
        measured_on: date, ISO 8601.
        fused: whether native kernels run a gated update inside its layer's own kernel, at the dense rate.

    Raises:
        InputError: a number that is not finite and positive.
    """

    engine: str
    seconds_per_node: float
    gemm_flops: float
    skinny_flops: float
    batched_skinny_flops: float
    bytes_per_second: float
    seconds_per_row: float
    lanes: int
    machine: str
    versions: str
    measured_on: str
    fused: bool = False

    def __post_init__(self) -> None:
        for name in _RATES:
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(
                    f"The engine constant {name} is no finite positive number.",
                    given=repr(value),
                    expected="a finite number above 0",
                    remedy="measure again with gatefx.runtime.profile.measure_constants(engine), on an idle machine",
                )
        if self.lanes < 1:
            raise InputError("lanes is below one.", given=repr(self.lanes), expected="a whole number from 1 up")

    def to_json(self) -> dict[str, object]:
        """The fields as plain values."""
        return asdict(self)


_MACHINE, _DATE = "AMD EPYC, 2 cores", "2026-11-22"
_DEFAULTS = {
    "onnxruntime": EngineConstants(
        engine="onnxruntime",
        seconds_per_node=7.4e-7,
        gemm_flops=9.5e10,
        skinny_flops=1.02e11,
        batched_skinny_flops=9.2e10,
        bytes_per_second=4.4e10,
        seconds_per_row=1.8e-8,
        lanes=8,
        machine=_MACHINE,
        versions="onnxruntime 1.31.1",
        measured_on=_DATE,
    ),
    "torch": EngineConstants(
        engine="torch",
        seconds_per_node=3.2e-6,
        gemm_flops=9.0e10,
        skinny_flops=7.6e10,
        batched_skinny_flops=6.5e10,
        bytes_per_second=5.5e10,
        seconds_per_row=8.5e-10,
        lanes=16,
        machine=_MACHINE,
        versions="torch 2.13.0+cpu",
        measured_on=_DATE,
    ),
}


def default_constants(engine: str) -> EngineConstants:
    """The shipped constants of "onnxruntime" or "torch".

    Raises:
        InputError: another engine.
    """
    if engine not in _DEFAULTS:
        raise InputError("Unknown engine.", given=repr(engine), expected=f"one of {', '.join(_DEFAULTS)}")
    return _DEFAULTS[engine]
