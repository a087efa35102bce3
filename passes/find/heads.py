"""What heads read of the tokens: positions by number, and masked pools; and what an output holds where tokens are gone.

    select(h, 1, 0)                    position 0 is read: such tokens are always kept
    sum(h·m, 1) / clamp(sum(m, 1))     a mean over real tokens, m from the attention mask: both m become m·gate

A miss: a pool whose divisor or mask has a form that no gate can join.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from ..graph.edit import shape_of
from .adapters import Miss
from .token_flow import Pool, TokenFlow
from .token_rules import keeps_zeros, size_key

aten = torch.ops.aten
#: Outputs in which positions compete: one that is gone must lose.
_COMPETING = ("start_logits", "end_logits")
_SUMS = (aten.sum.dim_IntList, aten.sum.default)
_ON_THE_WAY = (
    aten.clamp.default,
    aten.clamp_min.default,
    aten.add.Tensor,
    aten.maximum.default,
    aten.to.dtype,
    aten.to.device,
    aten.unsqueeze.default,
    aten.expand.default,
    aten.view.default,
)


@dataclass(frozen=True)
class PooledMask:
    """One reading of a mask (B, T, …) that counts or weighs tokens in a head: `user` reads `mask`."""

    user: fx.Node
    mask: fx.Node


def fill_of(output: str, dtype: torch.dtype) -> float:
    """What an output holds at positions of dropped tokens: nothing, or what loses against every kept token."""
    return torch.finfo(dtype).min if output in _COMPETING else 0.0


def pooled_masks(flow: TokenFlow) -> tuple[tuple[PooledMask, ...], tuple[Miss, ...]]:
    """Every place where a gate must join a pool's mask, in numerator and divisor."""
    found: dict[tuple[fx.Node, fx.Node], PooledMask] = {}
    misses = []
    for pool in flow.pools:
        readings: list[PooledMask] = [PooledMask(pool.product, pool.mask)]
        divisor = _divisor(pool)
        if divisor is not None:
            counted = _counted(divisor)
            if counted is None:
                misses.append(Miss(divisor.name, "it divides a sum over tokens by what is no sum of the mask"))
                continue
            readings.append(counted)
        for reading in readings:
            if _shape(reading.mask)[:2] != _shape(flow.state)[:2]:
                misses.append(Miss(reading.mask.name, "a pool's mask is not (batch, tokens, …)"))
            found[reading.user, reading.mask] = reading
    return tuple(found.values()), tuple(misses)


def _divisor(pool: Pool) -> fx.Node | None:
    """What the pool's sum is divided by; None where it stays a sum."""
    node = pool.total
    while True:
        for user in node.users:
            if user.target is aten.div.Tensor and user.args[0] is node and isinstance(user.args[1], fx.Node):
                return user.args[1]
        onward = [user for user in node.users if keeps_zeros(user, node) and len(user.all_input_nodes) == 1]
        if len(onward) != 1:
            return None
        node = onward[0]


def _counted(divisor: fx.Node) -> PooledMask | None:
    """The sum over a mask that a divisor comes from."""
    node = divisor
    while node.target in _ON_THE_WAY:
        node = node.all_input_nodes[0]
    if node.target not in _SUMS:
        return None
    return PooledMask(node, node.all_input_nodes[0])


def _shape(node: fx.Node) -> tuple[object, ...]:
    return tuple(size_key(size) for size in shape_of(node))
