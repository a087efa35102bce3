"""Gates as small modules that stand in a graph: a rank router while training, its hardened form when deployed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .configs.ccm import CCM
from .gate_functions import (
    hard_concrete_gate,
    hard_concrete_offset,
    hard_concrete_open,
    ranks_within,
    select_ranks,
    straight_through,
)
from .pooling import StatePool

_MOMENTUM = 0.9
_MOVED = 3e-5  # share of the weights' sum: casts to half precision stay below it, optimiser steps do not
_MOST_COVERED = 1 - 1e-6  # of a router that starts
_LEVELS = (-1e4, -1e-6)  # of log(1 − c): finite in every precision


@dataclass(frozen=True)
class GateRecord:
    """What a router decided in its last call, for objectives and diagnostics.

    Attributes:
        probabilities: p, (B, S, r); sums to one over the rank axis for top-k, elementwise for the other gates.
        gate: g, (B, S, r), as it multiplied the adapters.
        count: the differentiable effective rank k(x), (B, S).
    """

    probabilities: Tensor
    gate: Tensor
    count: Tensor


class RankRouter(nn.Module):
    """Pool(H) → MLP → one gate per example, site and rank direction (CCM-LoRA §2.3, §2.4).

    Deviation: one trunk d → d_router serves all heads, the heads differ in d_router → r (the paper's "shared trunk +
    heads", table 14); a full MLP per site would own more parameters than the adapters it routes.

    Args:
        config: the method's options.
        width: d, channels of the pooled state.
        ranks: r of each site, S of them.
        head_of_site: which output head each site reads, S indices.
        budget: E[k] to start from, in ranks.
    """

    temperature: Tensor
    level: Tensor
    penalty: Tensor
    updates: Tensor
    running_rank: Tensor
    site_ranks: Tensor
    head_of_site: Tensor

    def __init__(
        self, config: CCM, *, width: int, ranks: tuple[int, ...], head_of_site: tuple[int, ...], budget: float
    ) -> None:
        super().__init__()
        self.config = config
        self.budget = budget
        self.max_rank = max(ranks)
        heads = max(head_of_site) + 1
        hidden = config.hidden_width(width)
        self.pool = StatePool(config.pool, width=width, prefix=config.prefix)
        self.trunk = nn.Linear(width, hidden)
        self.heads = nn.Linear(hidden, heads * self.max_rank)
        self.register_buffer("site_ranks", torch.tensor(ranks))
        self.register_buffer("head_of_site", torch.tensor(head_of_site))
        self.register_buffer("temperature", torch.tensor(config.temperature))
        # log(1 − c), not c: where p is peaked, what a budget leaves uncovered is far below the steps of c near one.
        self.register_buffer("level", torch.tensor(math.log1p(-min(budget / self.max_rank, _MOST_COVERED))))
        self.register_buffer("penalty", torch.tensor(config.penalty))
        self.register_buffer("updates", torch.tensor(0))
        self.register_buffer("running_rank", torch.tensor(float(budget)))
        self.record: GateRecord | None = None
        self._initialise()
        self._initial = self._fingerprint()

    def _initialise(self) -> None:
        """Xavier weights; a last bias that opens `budget` ranks on average (appendix B.2)."""
        for layer in (self.trunk, self.heads):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        if self.config.gate != "topk":
            share = min(self.budget / self.max_rank, 1 - 1e-3)
            offset = hard_concrete_offset(self.config.temperature) if self.config.gate == "hard_concrete" else 0.0
            nn.init.constant_(self.heads.bias, float(torch.logit(torch.tensor(share))) + offset)

    def _fingerprint(self) -> float:
        return float(self.heads.weight.detach().double().abs().sum())

    def has_moved(self) -> bool:
        """Whether the weights are no longer those the router was initialised with."""
        return abs(self._fingerprint() - self._initial) > _MOVED * abs(self._initial)

    def __getstate__(self) -> dict[str, object]:
        """Copies and pickles leave the last batch's record behind: it holds a graph of gradients."""
        return {**self.__dict__, "record": None}

    def extra_repr(self) -> str:
        """What the printed graph should show of a router."""
        return f"sites={len(self.site_ranks)}, gate={self.config.gate}, k={self.config.k}, budget={self.budget:g}"

    def logits(self, state: Tensor, mask: Tensor | None) -> Tensor:
        """Rank logits s(x): state (B, T, d) or (B, d), mask (B, T) → (B, S, r)."""
        pooled = self.pool(state, mask)
        hidden = nn.functional.gelu(self.trunk(pooled))
        by_head: Tensor = self.heads(hidden).unflatten(-1, (-1, self.max_rank))
        return by_head.index_select(1, self.head_of_site)

    def scores(self, state: Tensor, mask: Tensor | None) -> Tensor:
        """What hard decisions rank by: probabilities (B, S, r), zero beyond a site's own rank."""
        return self._probabilities(self.logits(state, mask))

    def _probabilities(self, logits: Tensor) -> Tensor:
        # Half precision cannot tell coverages apart: near c = 1 its steps are wider than a rank's probability.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        inside = ranks_within(self.site_ranks, self.max_rank)
        if self.config.gate == "topk":
            return torch.softmax((logits / self.temperature).masked_fill(~inside, float("-inf")), dim=-1)
        if self.config.gate == "hard_concrete":
            return hard_concrete_open(logits, self.temperature) * inside
        return torch.sigmoid(logits / self.temperature) * inside

    def forward(self, state: Tensor, mask: Tensor | None = None) -> Tensor:
        """The gate g(x), (B, S, r), for state (B, T, d) or (B, d) and mask (B, T)."""
        logits = self.logits(state, mask)
        probabilities = self._probabilities(logits)
        if self.config.gate == "topk":
            gate, count = self._top_k(probabilities)
        elif self.config.gate == "hard_concrete":
            inside = ranks_within(self.site_ranks, self.max_rank)
            gate = hard_concrete_gate(logits, self.temperature, sample=self.training) * inside
            count = probabilities.sum(-1)
        else:
            gate, count = probabilities, probabilities.sum(-1)
        self.record = GateRecord(probabilities, gate, count)
        return gate.to(state.dtype)

    def _top_k(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        level = self.level if config.k == "coverage" else torch.full_like(self.level, self.budget)
        _, mask = select_ranks(probabilities, level, self.site_ranks, rule=config.k, k_min=config.k_min, buckets=None)
        hard = mask.to(probabilities.dtype)
        # Σp = 1 whatever the router does, so the count has no gradient through p; the perplexity of p has, and grows
        # with the number of ranks needed to cover c.
        entropy = -(probabilities * torch.log(probabilities.clamp_min(1e-12))).sum(-1)
        count = straight_through(hard.sum(-1), entropy.exp())
        return straight_through(hard, probabilities), count

    @property
    def coverage(self) -> float:
        """c, the share of p that the active ranks of an example cover."""
        return -math.expm1(float(self.level))

    def observe(self, mean_rank: float, level: float) -> None:
        """One update of the dual variables after an optimiser step: λ, c, and the running mean of E[k].

        λ ← max(0, λ + η_λ(E k − budget)); log(1 − c) moves by `coverage_rate` of its way to `level`, that of the c at
        which the last batch would have met the budget (top-k with coverage only).
        """
        config, excess = self.config, mean_rank - self.budget
        self.running_rank.lerp_(torch.as_tensor(mean_rank, dtype=self.running_rank.dtype), 1 - _MOMENTUM)
        self.penalty.add_(config.penalty_rate * excess).clamp_(min=0.0)
        if config.gate == "topk" and config.k == "coverage":
            self.level.lerp_(torch.as_tensor(level).to(self.level), config.coverage_rate).clamp_(*_LEVELS)
        self.updates.add_(1)


class HardRankRouter(nn.Module):
    """The deployed router: which rank directions are active, most probable first.

    Reads the same trunk and heads as the router it hardens. The level it is called with is log(1 − c) of the
    calibrated coverage c (rule "coverage"), the number of ranks (rule "fixed"), or a probability threshold (rule
    "threshold"): a tensor of the graph, one for all routers, so that a budget changes without a new graph.
    """

    buckets: Tensor

    def __init__(self, router: RankRouter, *, rule: str, buckets: tuple[int, ...]) -> None:
        super().__init__()
        self.router = router
        self.rule = rule
        self.register_buffer("buckets", torch.tensor(buckets))

    def extra_repr(self) -> str:
        """What the printed graph should show of a hardened router."""
        return f"sites={len(self.router.site_ranks)}, rule={self.rule}, buckets={self.buckets.tolist()}"

    def forward(self, state: Tensor, mask: Tensor | None, level: Tensor) -> Tensor:
        """Indices of active ranks, (B, S, r): active ones first by falling probability, then −1; level ()."""
        indices, _ = select_ranks(
            self.router.scores(state, mask),
            level,
            self.router.site_ranks,
            rule=self.rule,
            k_min=self.router.config.k_min,
            buckets=self.buckets,
        )
        return indices


class RankMask(nn.Module):
    """Indices of active ranks (B, S, r) → the dense gate g ∈ {0, 1}, (B, S, r): what gathering must equal."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, indices: Tensor) -> Tensor:
        """One where a direction's index occurs."""
        directions = torch.arange(indices.shape[-1], device=indices.device)
        return (indices.unsqueeze(-1) == directions).any(dim=-2).to(self.dtype)
