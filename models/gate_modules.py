"""Every module that may stand in a graph as a gate."""

from __future__ import annotations

from torch import nn

from .adapter_weight import AdapterWeight
from .gates import HardRankRouter, RankMask, RankRouter
from .modulation import HardModulation, Modulation, SoftModulation
from .update_threshold import HardUpdateThreshold, UpdateThreshold

GATE_MODULES: tuple[type[nn.Module], ...] = (
    AdapterWeight,
    RankRouter,
    HardRankRouter,
    RankMask,
    Modulation,
    HardModulation,
    SoftModulation,
    UpdateThreshold,
    HardUpdateThreshold,
)
