"""FLOPs counted from a graph: equal to torch's own counter on real calls, and to arithmetic by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode

import gatefx
from gatefx.errors import InputError
from gatefx.models.configs.masklora import MaskLoRA
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.flops import count_flops, flops_at_shares
from gatefx.passes.gate.token_scores import token_gates


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "t5", "modernbert", "gpt2"])
@pytest.mark.parametrize(("batch", "tokens"), [(2, 5), (3, 16)])
def test_counts_equal_torch_s_counter(family: str, batch: int, tokens: int, captured_family: Any) -> None:
    model, captured = captured_family(family)
    inputs = tiny_inputs(model, batch=batch, tokens=tokens)
    given = captured.graph_module.meta["signature"].arrange(inputs)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        captured.graph_module(*given)

    assert counted(captured.graph_module, given) == pytest.approx(counter.get_total_flops(), rel=1e-12)


def counted(graph: fx.GraphModule, given: list[Tensor], **kept: int) -> float:
    specs = graph.meta["signature"].inputs
    sizes = {
        axis.symbol: size
        for spec, value in zip(specs, given, strict=True)
        for axis, size in zip(spec.axes, value.shape, strict=True)
    }
    return count_flops(graph).at({**sizes, **kept})


@pytest.mark.parametrize("scores", ["predicted", "path"])
def test_what_choosing_tokens_costs_is_counted(scores: Any) -> None:
    """Predictors, and norms of the shifts on the path, on the tokens that each cut still sees."""
    example = tiny_inputs("bert", batch=3, tokens=10, ragged=False)
    config = MaskLoRA(rank=4, keep={1: 0.5}, scores=scores)  # type: ignore[arg-type]  # a mapping is taken too
    gated = gatefx.prepare(tiny("bert"), config, example_inputs=example)
    for _, gate in token_gates(gated.graph_module):
        gate.updates.fill_(1)
    graph = gatefx.optimize(gated).graph_module
    given = graph.meta["signature"].arrange(example)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        graph(*given)

    assert counted(graph, given, kept_1=5) == pytest.approx(counter.get_total_flops(), rel=1e-12)


def test_keeping_every_token_after_a_cut_costs_what_the_graph_costs(captured_family: Any) -> None:
    graph = captured_family("bert")[1].graph_module
    norms = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.layer_norm.default)
    state = norms[2]  # of the embeddings, of the first layer's attention, of the first layer
    sizes = {"batch": 4, "sequence": 32}
    full = count_flops(graph).at(sizes)

    assert flops_at_shares(graph, [(state, 1.0)], sizes, "sequence") == pytest.approx(full)
    half = flops_at_shares(graph, [(state, 0.5)], sizes, "sequence")
    assert full / 2 < half < full * 0.8, "one of two layers on half of the tokens"


def test_a_missing_size_is_named(captured_family: Any) -> None:
    with pytest.raises(InputError, match="sequence"):
        count_flops(captured_family("bert")[1].graph_module).at({"batch": 3})
