"""The probes of `probes.py` as eager torch calls."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from .probes import SLOTS_SEED, Kernel, Probe, Runner


def torch_version() -> str:
    """The version that the constants belong to."""
    return str(torch.__version__)


def torch_runner(probe: Probe) -> Runner:
    """A callable that runs `probe` once, without autograd."""
    source = torch.Generator().manual_seed(SLOTS_SEED)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source)

    x, u = random(probe.batch, probe.tokens, probe.width), random(probe.batch, probe.tokens, probe.rank)
    a = [random(probe.rank, probe.width) for _ in range(probe.copies)]
    b = [random(probe.width, probe.rank) for _ in range(probe.copies)]
    gathered = [random(probe.batch, probe.rank, probe.width) for _ in range(probe.copies)]
    other = random(*x.shape)
    wide = random(probe.width, probe.width)
    index = torch.zeros(probe.batch, probe.rank, dtype=torch.long)
    mask, slots = random(probe.batch, 1, probe.rank), random(probe.batch, probe.rank, 1)

    def tiny_sites() -> None:
        y = x
        for factor in a:
            rows, columns = functional.embedding(index, factor) * slots, functional.embedding(index, factor)
            y = y + torch.bmm(torch.bmm(y, rows.transpose(1, 2)), columns)

    def each(run: Callable[[Tensor], Tensor], factors: list[Tensor]) -> Runner:
        def run_each() -> None:
            # Results are dropped at once, as a model drops its intermediates.
            for factor in factors:
                run(factor)

        return run_each

    runs: dict[Kernel, Runner] = {
        Kernel.EMPTY: lambda: None,
        Kernel.TINY_SITE: tiny_sites,
        Kernel.ADD: each(lambda _: x + other, a),
        Kernel.BROADCAST: each(lambda _: u * mask, a),
        Kernel.DENSE: each(lambda factor: functional.linear(x, factor), [wide]),
        Kernel.DOWN: each(lambda factor: functional.linear(x, factor), a),
        Kernel.UP: each(lambda factor: functional.linear(u, factor), b),
        Kernel.BATCHED_DOWN: each(lambda factor: torch.bmm(x, factor.transpose(1, 2)), gathered),
        Kernel.BATCHED_UP: each(lambda factor: torch.bmm(u, factor), gathered),
    }
    return torch.inference_mode()(runs[probe.kernel])
