"""What is timed to learn an engine's constants: a few small graphs, named and sized alike for every engine.

The engines build them in `probes_torch.py` and `probes_onnxruntime.py`; `profile.measure_constants` times them and
solves for the constants of the cost model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Kernel(StrEnum):
    """The kernel that a probe repeats."""

    EMPTY = "empty"
    """Next to nothing: what one call of the engine costs before any work."""
    TINY_SITE = "tiny site"
    """A gathered LoRA site of width 8: six nodes that are all dispatch."""
    ADD = "add"
    """Sum of two activations into a third."""
    BROADCAST = "broadcast"
    """Activations (B, T, r) times a mask (B, 1, r)."""
    DENSE = "dense"
    """(rows, width) x (width, width), constant weight."""
    DOWN = "down"
    """(rows, width) x (width, rank), constant weight."""
    UP = "up"
    """(rows, rank) x (rank, width), constant weight."""
    BATCHED_DOWN = "batched down"
    """(B, T, width) x (B, rank, width)ᵀ, one matrix an example."""
    BATCHED_UP = "batched up"
    """(B, T, rank) x (B, rank, width), one matrix an example."""


@dataclass(frozen=True)
class Probe:
    """One timed graph: `copies` independent nodes (or tiny sites) of `kernel`."""

    kernel: Kernel
    batch: int
    tokens: int
    width: int
    rank: int
    copies: int

    @property
    def name(self) -> str:
        """A key for reports."""
        return f"{self.kernel} r={self.rank}"

    @property
    def rows(self) -> int:
        """Tokens of the whole batch."""
        return self.batch * self.tokens


DOWN_RANKS = (2, 4, 6, 8, 12, 16)
"""Ranks at which the down-projection is timed, to see how many columns the kernels round up to."""
ACTIVE_RANKS = (4, 6, 8, 12)
"""Ranks at which the batched multiplies are timed: a gathered site always runs below its full rank."""
BATCH, TOKENS, WIDTH, RANK = 4, 128, 768, 16
"""The probes' shape: activations of 1.5 MB, which live where a transformer's activations live, in the outer cache."""
TINY = 8
"""Width of the tiny site."""
SLOTS_SEED = 0
"""Seed of the probes' random factors."""

Runner = Callable[[], object]


def probes() -> tuple[Probe, ...]:
    """The probes of every engine. Together they take about 10 ms a round."""

    def sized(kernel: Kernel, copies: int, rank: int = RANK) -> Probe:
        return Probe(kernel, BATCH, TOKENS, WIDTH, rank, copies)

    return (
        Probe(Kernel.EMPTY, 1, TINY, TINY, TINY, 1),
        Probe(Kernel.TINY_SITE, 1, TINY, TINY, 2, 16),
        sized(Kernel.ADD, 2),
        sized(Kernel.BROADCAST, 3),
        Probe(Kernel.DENSE, 1, TOKENS, WIDTH, RANK, 1),
        *(sized(Kernel.DOWN, 2, rank) for rank in DOWN_RANKS),
        sized(Kernel.UP, 2),
        *(sized(kernel, 2, rank) for kernel in (Kernel.BATCHED_DOWN, Kernel.BATCHED_UP) for rank in ACTIVE_RANKS),
    )


NODES_OF_TINY_SITE = 6
"""Two gathers, a multiply that silences unused slots, two batched matrix multiplies, an add."""
