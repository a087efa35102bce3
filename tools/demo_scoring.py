"""Accuracy on the test sentences, and what the deployed routers do on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..models.rank_statistics import RankSummary, rank_summary
from ..passes.deployed import DeployedModel
from ..progress import track

Answers = Callable[..., Mapping[str, Any]]


@dataclass(frozen=True)
class RoutedRanks:
    """What the routers chose on the test sentences.

    Attributes:
        counts: k of every sentence and site, (N, S); usage: share of sentences that use each direction, (S, r).
    """

    counts: NDArray[np.int64]
    usage: NDArray[np.float64]

    @property
    def summary(self) -> RankSummary:
        """The distribution of k over sentences and sites."""
        return rank_summary(self.counts)


@torch.no_grad()
def accuracy(answer: Answers, test: Sequence[Mapping[str, Tensor]], *, description: str) -> float:
    """The share of test sentences whose largest logit is the label's.

    Args:
        answer: inputs by name → a mapping with "logits" (B, C), of torch or of numpy.
    """
    right = total = 0
    for batch in track(test, description):
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits = torch.as_tensor(answer(**inputs)["logits"])
        right += int((logits.argmax(-1) == batch["labels"]).sum())
        total += len(logits)
    return right / total


def accuracy_and_ranks(
    model: DeployedModel, test: Sequence[Mapping[str, Tensor]], *, description: str
) -> tuple[float, RoutedRanks | None]:
    """`accuracy` of a deployed model, and its routers' choices on the way; None where every gate turned static."""
    chosen: list[Tensor] = []
    # ccm pools the state that enters the first site, so one router decides for all sites.
    handles = [
        router.register_forward_hook(lambda *call: chosen.append(call[-1])) for router in model.hard_routers()[:1]
    ]
    try:
        score = accuracy(model, test, description=description)
    finally:
        for handle in handles:
            handle.remove()
    if not chosen:
        return score, None
    indices = torch.cat(chosen)
    rank = indices.shape[-1]
    usage = torch.stack([(indices == direction).any(-1) for direction in range(rank)], dim=-1)
    return score, RoutedRanks((indices >= 0).sum(-1).numpy(), usage.double().mean(0).numpy())
