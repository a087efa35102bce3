"""The deployed gate on tokens of a prompt that comes in parts: κ follows the scores seen so far (MaskLoRA, appendix C).

    F_b   the histogram of example b's scores, of this part and of those before; tokens that an earlier cut dropped
          count as below every κ
    κ_b = F_b⁻¹(1 − ρ)                     the part's tokens with ŝ ≥ κ_b stay, and those that must
    fewer than `COLD` tokens so far        the ⌈ρ·m⌉ largest of the part's m tokens stay, as of a whole prompt

Of one part that is the whole prompt, that is the choice of `HardTokenGate` for tokens outside of the bin that holds κ,
1/128 of ten octaves wide; while cold, it is that choice.

Axes: B examples, T tokens of the part, N bins.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .hard_token_gate import HardTokenGate
from .score_histogram import BINS, COLD, HIGHEST, LOWEST
from .token_gate import must_stay
from .token_selection import kept_counts, priorities, tokens_of_share

_STEP = math.log(HIGHEST / LOWEST) / BINS  # of log ŝ, a bin


class StreamedTokenGate(nn.Module):
    """A hard gate by top-k, part by part.

    Args:
        gate: the gate over whole prompts, whose predictor and shares are read; cold: tokens, see above.
    """

    bins: Tensor

    def __init__(self, gate: HardTokenGate, cold: int = COLD) -> None:
        super().__init__()
        self.gate = gate
        self.cold = cold
        self.register_buffer("bins", torch.arange(BINS, device=gate.own_share.starts.device))

    def extra_repr(self) -> str:
        """What the printed graph should show."""
        return f"after layer {self.gate.layer}, κ of a running histogram, cold below {self.cold}"

    def forward(
        self, state: Tensor, mask: Tensor, n: Tensor, share: Tensor, protected: Tensor, seen: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(priority (B,T), counts (B,) int64, `seen` with this part in it).

        Args:
            state: (B,T,d); mask: (B,T) what is left of the part's real tokens; n: (B,) how many there were.
            share: () the model's budget; protected: (B,T) bool.
            seen: (B,N+1) float, counts of scores by bin, and last of all tokens, those that are gone too.
        """
        scores = self.gate.scores(state, None)
        alive = mask > 0
        must = must_stay(self.gate.kept, alive, protected)
        total = n.to(scores.dtype)
        counts = seen[:, :-1] + self._counts(scores, alive).to(seen.dtype)
        tokens = seen[:, -1:] + n.to(seen.dtype).unsqueeze(-1)
        rho = self.gate.own_share(share)
        level = self._level(counts, tokens, rho).to(scores.dtype)
        above = ((scores >= level) & alive) | must
        few = tokens_of_share(rho.to(scores.dtype), total)
        wanted = torch.where(tokens.squeeze(-1) < self.cold, few, above.sum(-1).to(scores.dtype))
        kept = kept_counts(wanted, total=total, alive=alive, must=must, floor=self.gate.floor)
        return priorities(scores, alive, must), kept, torch.cat([counts, tokens], 1)

    def _counts(self, scores: Tensor, alive: Tensor) -> Tensor:
        """How many scores of tokens that are left fall into each bin, (B,N)."""
        places = ((scores.log() - math.log(LOWEST)) / _STEP).floor().clamp(0, BINS - 1)
        return ((places.unsqueeze(-1) == self.bins) & alive.unsqueeze(-1)).sum(1)

    def _level(self, counts: Tensor, tokens: Tensor, rho: Tensor) -> Tensor:
        """κ, (B,1), 0 where all are kept: as `ScoreHistogram.level`."""
        below = (1 - rho) * tokens - (tokens - counts.sum(-1, keepdim=True))
        reached = counts.cumsum(-1)
        place = (reached < below).sum(-1, keepdim=True)
        inside = place.clamp_max(BINS - 1)
        own = counts.gather(-1, inside).clamp_min(1)
        part = (below - (reached.gather(-1, inside) - own)) / own
        logarithm = math.log(LOWEST) + _STEP * torch.where(place < BINS, inside + part, torch.full_like(part, BINS))
        return torch.where(below > 0, logarithm.exp(), torch.zeros_like(part))
