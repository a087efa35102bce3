"""What heads read of the tokens: positions, masked pools; and every other mixing, declined with node and reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gatefx.passes.find.heads import fill_of, pooled_masks
from gatefx.passes.find.token_flow import TokenFlow, follow_tokens
from gatefx.passes.graph.capture import capture
from gatefx.passes.graph.edit import shape_of

Head = Callable[[Tensor, Tensor], Tensor]


class Headed(nn.Module):
    """tanh(linear(x)) and whatever `head(h, mask)` makes of it."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.body = nn.Linear(12, 8)
        self.head = head

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)), attention_mask)


def flow_of(head: Head, inputs: Any) -> TokenFlow:
    graph = capture(Headed(head).eval(), inputs()).graph_module
    state = next(node for node in graph.graph.nodes if node.target is torch.ops.aten.tanh.default)
    return follow_tokens(graph, state)


def real(h: Tensor, mask: Tensor) -> Tensor:
    return mask.unsqueeze(-1).to(h.dtype)


@pytest.mark.parametrize(
    ("head", "positions"),
    [
        (lambda h, _: h[:, 0], [0]),
        (lambda h, _: h[:, -1], [-1]),
        (lambda h, _: h[:, 0:1], [0]),
        (lambda h, _: h[:, :2].flatten(1), [0, 1]),
        (lambda h, _: h.transpose(1, 2)[..., 0] + h[:, 1], [0, 1]),
        (lambda h, _: h.relu().view(h.shape[0], -1, 2, 4), []),
    ],
)
def test_constant_reads(inputs: Any, head: Head, positions: list[int]) -> None:
    flow = flow_of(head, inputs)

    assert sorted(flow.positions) == positions
    assert flow.misses == []


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (lambda h, _: h.mean(1), "counts those that are dropped"),
        (lambda h, _: h.amax(1), "counts those that are dropped"),
        (lambda h, _: h.sum(1), "without the attention mask"),
        (lambda h, m: (h * h.new_ones(h.shape)).sum(1) / m.sum(1, keepdim=True), "without the attention mask"),
        (lambda h, _: h.cumsum(1), "runs along the tokens"),
        (lambda h, m: h[torch.arange(h.shape[0]), m.sum(1) - 1], "computed positions"),
        (lambda h, m: h.gather(1, m[:, :1, None].expand(-1, 1, 8)), "computed positions"),
        (lambda h, _: h[:, 1:], "takes a part of the tokens"),
        (lambda h, _: torch.flip(h, [1]), "aten.flip.default is not known"),
        (lambda h, _: torch.cat([h, h], 1), "joins tokens and others"),
        (lambda h, _: h.flatten(0, 1), "merges the token axis"),
        (lambda h, _: torch.nn.functional.layer_norm(h.transpose(1, 2), h.shape[1:2]), "normalises over tokens"),
        (lambda h, _: torch.nn.functional.conv1d(h.transpose(1, 2), torch.ones(2, 8, 3)), "aten.conv1d.default"),
        (lambda h, _: h.transpose(1, 2) @ h, "weights that do not come from attention"),
        (lambda h, m: (h * real(h, m)).sum(1) / real(h, m).mean(1), "by what is no sum of the mask"),
    ],
)
def test_other_mixing_is_declined_naming_the_node(inputs: Any, head: Head, reason: str) -> None:
    flow = flow_of(head, inputs)

    misses = [*flow.misses, *pooled_masks(flow)[1]]

    assert any(reason in miss.reason for miss in misses), misses
    assert all(miss.where for miss in misses)


def expanded_mean(h: Tensor, mask: Tensor) -> Tensor:
    """The pooling of sentence embedding models."""
    weights = mask.unsqueeze(-1).expand(h.size()).float()
    return (h * weights).sum(1) / torch.clamp(weights.sum(1), min=1e-9)


@pytest.mark.parametrize(
    ("head", "readings"),
    [
        (lambda h, m: (h * real(h, m)).sum(1) / real(h, m).sum(1), 2),
        (lambda h, m: (h * real(h, m)).sum(1) / m.sum(1, keepdim=True).clamp(min=1), 2),
        (lambda h, m: (real(h, m) * h).sum(1, keepdim=True).squeeze(1), 1),
        (expanded_mean, 2),
    ],
)
def test_masked_pools_are_read_with_their_divisors(inputs: Any, head: Head, readings: int) -> None:
    flow = flow_of(head, inputs)

    found, misses = pooled_masks(flow)

    assert flow.misses == []
    assert misses == ()
    assert len(found) == readings
    for reading in found:
        assert shape_of(reading.mask)[:2] == shape_of(flow.state)[:2]
        assert reading.mask in reading.user.all_input_nodes


def test_attention_as_a_pool_needs_no_mask_of_its_own(inputs: Any) -> None:
    def pooled(h: Tensor, _: Tensor) -> Tensor:
        return (h * h.sum(-1, keepdim=True).softmax(1)).sum(1)

    flow = flow_of(pooled, inputs)

    assert flow.misses == []
    assert [item.key_axis for item in flow.attentions] == [1]


def test_dropped_positions_lose_where_positions_compete() -> None:
    assert fill_of("start_logits", torch.float32) == torch.finfo(torch.float32).min
    assert fill_of("end_logits", torch.float64) == torch.finfo(torch.float64).min
    assert fill_of("logits", torch.float32) == 0.0


def test_rows_that_become_tokens_again_stay_apart(inputs: Any) -> None:
    """Conv1D and OPT's layers work on (batch · tokens, channels) in between."""
    flow = flow_of(lambda h, _: torch.relu(h.flatten(0, 1) * 2).view(h.shape).select(1, 0), inputs)

    assert not flow.misses
    assert flow.positions == [0]
