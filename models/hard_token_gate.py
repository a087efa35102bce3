"""The deployed gate on tokens: how large a priority each token has at a cut, and how many each example keeps."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .configs.masklora import MaskLoRA
from .token_gate import TokenGate, must_stay
from .token_selection import MonotoneTable, kept_counts, priorities, tokens_of_share


class HardTokenGate(nn.Module):
    """The choice of tokens at one cut. The budget enters as a tensor, so that it changes without a new graph.

    Args:
        gate: the trained gate. Its predictor is copied: calibration may fit it again.
        config: the options to deploy with.
    """

    def __init__(self, gate: TokenGate, *, config: MaskLoRA) -> None:
        super().__init__()
        self.kept = gate.kept
        self.layer = gate.layer
        self.floor = config.floor
        self.predicts = config.scores == "predicted"
        self.predictor = copy.deepcopy(gate.predictor) if self.predicts else None
        self.own_share = MonotoneTable(gate.shares.table())
        self.cutoff: MonotoneTable | None = None

    def select_by(self, table: Sequence[tuple[float, float]]) -> None:
        """Choose by threshold from now on: (budget, κ) pairs."""
        device = self.own_share.starts.device
        self.cutoff = MonotoneTable(table).to(device)

    def extra_repr(self) -> str:
        """What the printed graph should show of a hardened gate."""
        rule = "topk" if self.cutoff is None else "threshold"
        return f"after layer {self.layer}, select={rule}, kept={self.kept}, floor={self.floor:g}"

    def scores(self, state: Tensor, path: Tensor | None) -> Tensor:
        """ŝ (B,T), in at least float32: predicted from the state (B,T,d), or that of the path (B,T)."""
        if self.predictor is not None:
            scores: Tensor = self.predictor(state).exp()
            return scores
        if path is None:
            raise TypeError("a gate on path scores reads the path")
        return path

    def forward(
        self,
        state: Tensor,
        mask: Tensor | None,
        n: Tensor,
        share: Tensor,
        protected: Tensor | None = None,
        path: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(priority (B,T), counts (B,) int64).

        Args:
            state: (B,T,d); mask: (B,T) what is left of the real tokens; n: (B,) how many there were.
            share: () the model's budget; protected: (B,T) bool; path: ŝ of the layers before, (B,T).
        """
        scores = self.scores(state, path)
        alive = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask > 0
        must = must_stay(self.kept, alive, protected)
        total = n.to(scores.dtype)
        if self.cutoff is None:
            wanted = tokens_of_share(self.own_share(share).to(scores.dtype), total)
        else:
            above = scores >= self.cutoff(share).to(scores.dtype)
            wanted = ((above & alive) | must).sum(-1).to(scores.dtype)
        counts = kept_counts(wanted, total=total, alive=alive, must=must, floor=self.floor)
        return priorities(scores, alive, must), counts
