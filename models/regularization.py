"""Dropout as modules of the graph, so that train() and eval() mean what they mean in the model it came from."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AttentionDropout(nn.Module):
    """Scaled dot-product attention whose weights drop out while training.

    The captured operator holds the probability as a constant; this module holds it where eval() reaches it.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def extra_repr(self) -> str:
        """The probability, as nn.Dropout shows it."""
        return f"p={self.p}"

    def forward(  # noqa: PLR0917  # the operator's own signature
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Attend: query (B, H, T, d), key and value (B, H, S, d), mask broadcastable to (B, H, T, S)."""
        return torch.nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            mask,
            dropout_p=self.p if self.training else 0.0,
            is_causal=is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
        )


REGULARIZATION_MODULES = (nn.Dropout, AttentionDropout)
