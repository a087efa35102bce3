"""CompactTokens: what follows a cut runs on kept tokens, answers come back at their places, the rest is declined."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.compact.tokens import CompactTokens
from gatefx.passes.flops import count_flops
from gatefx.passes.graph.edit import emit

aten = torch.ops.aten
ops = torch.ops.gatefx


class Answering(nn.Module):
    """A small BERT with answers of every kind: by example, by token, competing by token, a masked mean."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny("bert").bert
        self.head = nn.Linear(32, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        state = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        real = attention_mask.unsqueeze(-1).to(state.dtype)
        return {
            "logits": self.head(state),
            "start_logits": self.head(state)[..., 0],
            "last_hidden_state": state,
            "mean": (state * real).sum(1) / real.sum(1).clamp(min=1),
            "by_channel": state.transpose(1, 2),
        }


@pytest.fixture(scope="module")
def bert(masked_tokens: Any) -> fx.GraphModule:
    """The masked graph of a small BERT, cut after its first layer; leave it as it is."""
    model = tiny("bert").double()
    return masked_tokens(model, tiny_inputs(model, 3, 9), {1: 0.5})


@pytest.fixture(scope="module")
def answering(masked_tokens: Any) -> fx.GraphModule:
    """Likewise of `Answering`, with two cuts."""
    return masked_tokens(Answering().double().eval(), tiny_inputs("bert", 3, 9), {0: 0.7, 1: 0.4})


def gates_of(graph: fx.GraphModule, inputs: dict[str, Tensor]) -> Tensor:
    """(B, T): what every cut of a masked graph keeps."""
    kept: list[Tensor] = []

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n.target is ops.scatter_tokens.default:
                kept.append(value.bool())
            return value

    Recorder(graph).run(*inputs.values())
    return torch.stack(kept).all(0)


def targets(graph: fx.GraphModule) -> list[str]:
    """What follows the selection, without weights, linear layers and norms."""
    names = [str(node.target).removesuffix(".default") for node in graph.graph.nodes if node.op == "call_function"]
    after = names[names.index("gatefx.select_tokens") :]
    return [name for name in after if name not in ("aten.linear", "aten.layer_norm", "aten.gelu", "aten.tanh")]


def test_before_and_after(bert: fx.GraphModule, checked: Any) -> None:
    compacted = checked(CompactTokens(), bert).graph_module

    views = ["aten.view", "aten.transpose.int"] * 3
    attention = ["aten.scaled_dot_product_attention", "aten.reshape", "aten.transpose.int", "aten.contiguous"]
    bias = ["aten.clamp_min", "aten.log", "aten.eq.Scalar", "aten.masked_fill.Scalar"]
    head = ["aten.reshape", "aten.add.Tensor", "aten.add.Tensor", "aten.slice.Tensor", "aten.select.int"]
    chosen = ["gatefx.select_tokens", *["<built-in function getitem>"] * 2, "aten.to.dtype"]
    assert sorted(targets(bert)) == sorted(
        [
            *chosen, "aten.sym_size.int", "gatefx.scatter_tokens", "aten.unsqueeze", "aten.mul.Tensor", *bias,
            *["aten.unsqueeze"] * 2, "aten.where.ScalarOther", *views, *attention, *head,
        ]
    )  # fmt: skip
    # The mask is gathered where it is small: keys and queries before they are multiplied out.
    mask = ["gatefx.gather_tokens"] * 2 + ["aten.__and__.Tensor", "aten.expand"]
    assert sorted(targets(compacted)) == sorted(
        [
            *chosen, "aten.sym_size.int", "gatefx.gather_tokens", "aten.unsqueeze", "aten.mul.Tensor", *bias, *mask,
            *["aten.unsqueeze"] * 2, "aten.where.ScalarOther", *views, *attention, *head,
        ]
    )  # fmt: skip
    kept = {
        str(node.meta["val"].shape[1]) for node in compacted.graph.nodes if node.target is ops.gather_tokens.default
    }
    assert kept == {"1", next(iter(kept - {"1"}))}
    states = [
        node.meta["val"] for node in compacted.graph.nodes if "layer_1" in node.name or node.name == "layer_norm_4"
    ]
    assert states


def test_only_kept_tokens_are_computed(bert: fx.GraphModule) -> None:
    compacted = CompactTokens()(bert).graph_module

    masked, fewer = count_flops(bert), count_flops(compacted)

    assert set(fewer.sizes.values()) == {"batch", "sequence", "kept_1"}
    sizes = {"batch": 4, "sequence": 64}
    assert fewer.at({**sizes, "kept_1": 64}) == pytest.approx(masked.at(sizes))
    first_layer = fewer.at({**sizes, "kept_1": 0})
    half = fewer.at({**sizes, "kept_1": 32})
    assert first_layer < half < first_layer + (masked.at(sizes) - first_layer) / 2


def test_answers_come_back_at_their_places(answering: fx.GraphModule, checked: Any) -> None:
    compacted = checked(CompactTokens(), answering).graph_module
    inputs = tiny_inputs("bert", 4, 11, seed=3)
    kept = gates_of(answering, inputs)

    masked, answer = answering(*inputs.values()), compacted(*inputs.values())

    torch.testing.assert_close(answer["mean"], masked["mean"], rtol=0, atol=1e-10)
    fills = {"logits": 0.0, "start_logits": torch.finfo(torch.float64).min, "last_hidden_state": 0.0}
    for name, fill in fills.items():
        torch.testing.assert_close(answer[name][kept], masked[name][kept], rtol=0, atol=1e-10)
        assert (answer[name][~kept] == fill).all(), name
    assert torch.equal(answer["by_channel"].transpose(1, 2), answer["last_hidden_state"])
    assert 0 < kept.sum() < inputs["attention_mask"].sum()


@pytest.mark.parametrize("tokens", [1, 9])
def test_keeping_all_is_the_masked_graph_bit_for_bit(bert: fx.GraphModule, tokens: int) -> None:
    compacted = CompactTokens()(bert).graph_module
    inputs = {name: torch.ones_like(value) for name, value in tiny_inputs("bert", 3, tokens).items()}

    before = bert.get_buffer("token_share").clone()
    bert.get_buffer("token_share").fill_(1.0)  # shared with the compacted graph
    answers = bert(*inputs.values())["logits"], compacted(*inputs.values())["logits"]
    bert.get_buffer("token_share").copy_(before)

    assert torch.equal(*answers)


def test_the_budget_changes_without_a_new_graph(bert: fx.GraphModule) -> None:
    compacted = copy.deepcopy(CompactTokens()(bert).graph_module)
    inputs = tiny_inputs("bert", 2, 12, ragged=False)
    widths = []
    for share in (0.1, 0.5, 1.0):
        compacted.get_buffer("token_share").fill_(share)
        widths.append(_width(compacted, inputs))

    assert widths == [2, 6, 12]  # ⌈share·12⌉


def _width(graph: fx.GraphModule, inputs: dict[str, Tensor]) -> int:
    sizes: list[int] = []

    class Widths(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n.target is ops.select_tokens.default:
                sizes.append(value[0].shape[1])
            return value

    Widths(graph).run(*inputs.values())
    return sizes[0]


def declined(graph: fx.GraphModule, checked: Any) -> list[str]:
    """Why nothing was compacted; the graph is the same object."""
    result = checked(CompactTokens(), graph)
    assert result.graph_module is graph
    assert result.reports[0].fired == ()
    return [item.reason for item in result.reports[0].declined]


def test_keys_that_are_not_shut_are_declined(bert: fx.GraphModule, checked: Any) -> None:
    graph = copy.deepcopy(bert)
    (joined,) = graph.graph.find_nodes(op="call_function", target=aten.where.ScalarOther)
    joined.replace_all_uses_with(joined.args[0])
    graph.graph.eliminate_dead_code()
    graph.recompile()

    (reason,) = declined(graph, checked)

    assert reason == "dropped tokens are not shut out of it; the cut stays masked"


def test_causal_flags_are_declined(bert: fx.GraphModule, checked: Any) -> None:
    graph = copy.deepcopy(bert)
    attention = graph.graph.find_nodes(op="call_function", target=aten.scaled_dot_product_attention.default)[-1]
    attention.kwargs = {**attention.kwargs, "is_causal": True}
    graph.recompile()

    (reason,) = declined(graph, checked)

    assert reason.startswith("attention that is causal by a flag")


@pytest.mark.parametrize(
    ("target", "arguments", "says"),
    [
        (aten.cumsum.default, (1,), "runs along the tokens"),
        (aten.flip.default, ([1],), "is not known to leave tokens apart"),
        (aten.mean.dim, ([1], True), "counts those that are dropped"),
        (aten.sum.dim_IntList, ([1], True), "not shut out of it"),
    ],
)
def test_what_mixes_tokens_is_declined(
    bert: fx.GraphModule, checked: Any, target: Any, arguments: tuple[Any, ...], says: str
) -> None:
    graph = copy.deepcopy(bert)
    state = graph.graph.find_nodes(op="call_function", target=aten.layer_norm.default)[-1]
    (reader,) = state.users
    with graph.graph.inserting_after(state):
        mixed = emit(graph.graph, target, (state, *arguments), origin="test", like=state)
    with graph.graph.inserting_after(mixed):
        total = emit(graph.graph, aten.add.Tensor, (state, mixed), origin="test", like=state)
    reader.replace_input_with(state, total)
    graph.recompile()

    reasons = declined(graph, checked)

    assert says in reasons[0]


def test_an_ungated_graph_is_left_alone(captured_family: Any, checked: Any) -> None:
    graph = captured_family("bert")[1].graph_module

    assert declined(graph, checked) == []
