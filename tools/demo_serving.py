"""Serve 32 sentences from exported folders, and time them beside each other in one engine and one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from ..loading import load
from ..runtime.profile import Timing, compare, ratios

MERGED, LORA, CCM = "merged", "lora", "ccm"

THREADS = 1
"""Of each session while timing: threads of several sessions that wait by spinning take time from each other."""

_WARMUP = 3


@dataclass(frozen=True)
class Served:
    """One batch of sentences through three exported models.

    Attributes:
        sentences, tokens: B and T of the batch, padding included.
        provider: what ONNX Runtime ran on; threads: of its pool.
        timings: seconds per batch by model; ratios: to the merged model, round by round.
        difference: largest absolute difference of a ccm logit from torch's on the batch.
    """

    sentences: int
    tokens: int
    provider: str
    threads: int
    timings: Mapping[str, Timing]
    ratios: Mapping[str, float]
    difference: float

    def overhead(self, name: str) -> float:
        """Median seconds per batch over the merged model."""
        return self.timings[name].median_s - self.timings[MERGED].median_s


def serve(folders: Mapping[str, Path], batch: Mapping[str, Tensor], expected: Tensor, *, rounds: int) -> Served:
    """Load every folder, run the batch, and compare their times.

    Args:
        folders: artifact of each of `MERGED`, `LORA`, `CCM`.
        batch: the sentences, as tensors by input name (B, T).
        expected: what ccm answers in torch, (B, C).
        rounds: timed rounds.
    """
    arrays = {name: tensor.numpy() for name, tensor in batch.items()}
    sessions = {name: load(folder, threads=THREADS) for name, folder in folders.items()}
    answer = sessions[CCM](**arrays)["logits"]
    timings = compare(
        {name: partial(sessions[name], **arrays) for name in (MERGED, LORA, CCM)}, warmup=_WARMUP, rounds=rounds
    )
    sentences, tokens = next(iter(arrays.values())).shape
    return Served(
        sentences,
        tokens,
        sessions[CCM].provider,
        THREADS,
        timings,
        ratios(timings, MERGED),
        float(np.abs(answer - expected.numpy()).max()),
    )
