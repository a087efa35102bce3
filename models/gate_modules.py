"""Every module that may stand in a graph as a gate."""

from __future__ import annotations

from torch import nn

from .adapter_weight import AdapterWeight
from .gates import HardRankRouter, RankMask, RankRouter
from .hard_token_gate import HardTokenGate
from .modulation import HardModulation, Modulation, SoftModulation
from .streamed_token_gate import StreamedTokenGate
from .token_gate import TokenGate
from .token_scores import LayerShift, LogitShift, PathScore
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
    TokenGate,
    HardTokenGate,
    StreamedTokenGate,
    LayerShift,
    LogitShift,
    PathScore,
)
