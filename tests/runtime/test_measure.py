"""Measuring constants: the equations solved on made-up timings, and each engine's probes run once."""

from __future__ import annotations

import math

import pytest

from gatefx.errors import InputError
from gatefx.runtime import measure
from gatefx.runtime.probes import ACTIVE_RANKS, DOWN_RANKS, NODES_OF_TINY_SITE, RANK, Kernel, probes
from gatefx.runtime.probes_torch import torch_runner
from gatefx.runtime.profile import measure_constants

NODE, RATE, BATCHED, DENSE, BANDWIDTH, ROW, LANES = 1e-6, 9e10, 7e10, 1e11, 4e10, 1e-8, 8


def made_up() -> dict[tuple[Kernel, int], float]:
    """Seconds that an engine with exactly these constants would take."""
    big = next(p for p in probes() if p.kernel is Kernel.ADD)
    dense = next(p for p in probes() if p.kernel is Kernel.DENSE)
    rows, width = big.rows, big.width
    fixed = NODE + 4 * rows * width / BANDWIDTH
    column = 2 * rows * width
    dense_bytes = 4 * (2 * dense.rows * width + width * width)
    return {
        (Kernel.TINY_SITE, 2): NODES_OF_TINY_SITE * NODE,
        (Kernel.ADD, RANK): NODE + 12 * rows * width / BANDWIDTH,
        (Kernel.BROADCAST, RANK): NODE + 8 * rows * RANK / BANDWIDTH + rows * ROW,
        (Kernel.DENSE, RANK): NODE + 2 * dense.rows * width * width / DENSE + dense_bytes / BANDWIDTH,
        **{(Kernel.DOWN, r): fixed + column * LANES * math.ceil(r / LANES) / RATE for r in DOWN_RANKS},
        (Kernel.UP, RANK): fixed + column * RANK / RATE,
        **{(Kernel.BATCHED_DOWN, r): fixed + column * LANES * math.ceil(r / LANES) / BATCHED for r in ACTIVE_RANKS},
        **{(Kernel.BATCHED_UP, r): fixed + column * r / BATCHED for r in ACTIVE_RANKS},
    }


def test_constants_are_recovered_from_timings_they_explain() -> None:
    found = measure._solve("torch", "torch 0", made_up(), {(p.kernel, p.rank): p for p in probes()})
    assert found.lanes == LANES
    numbers = ("seconds_per_node", "skinny_flops", "batched_skinny_flops", "gemm_flops", "bytes_per_second")
    assert [getattr(found, n) for n in numbers] == pytest.approx([NODE, RATE, BATCHED, DENSE, BANDWIDTH])
    assert found.seconds_per_row == pytest.approx(ROW)


def test_noise_leaves_every_constant_positive() -> None:
    noisy = made_up() | {(Kernel.TINY_SITE, 2): 1.0}
    found = measure._solve("torch", "torch 0", noisy, {(p.kernel, p.rank): p for p in probes()})
    assert found.skinny_flops > 0


def test_every_probe_runs_in_torch() -> None:
    for probe in probes():
        torch_runner(probe)()


def test_every_probe_runs_in_onnxruntime() -> None:
    pytest.importorskip("onnxruntime")
    from gatefx.runtime.probes_onnxruntime import onnxruntime_runner

    for probe in probes():
        onnxruntime_runner(probe)()


def test_torch_end_to_end() -> None:
    found = measure_constants("torch")
    assert found.engine == "torch"
    assert found.versions.startswith("torch ")


def test_unknown_engine() -> None:
    with pytest.raises(InputError, match="tensorrt"):
        measure_constants("tensorrt")
