"""HardenTokenGates: relaxed gates on tokens become one hard choice an example, as a dense mask."""

from __future__ import annotations

import copy
import operator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from gatefx.errors import PassError
from gatefx.models.configs.masklora import MaskLoRA
from gatefx.models.hard_token_gate import HardTokenGate
from gatefx.models.tiny import tiny_inputs
from gatefx.models.token_gate import SharePoint, TokenGate
from gatefx.passes.contract import Pass
from gatefx.passes.gate.token_gate import InsertTokenGates
from gatefx.passes.graph.canonical import canonical_text
from gatefx.passes.graph.edit import emit, emit_module, own_module, shape_of
from gatefx.passes.harden.freeze import FreezeRegularization
from gatefx.passes.harden.token_gate import SHARE, HardenTokenGates
from gatefx.passes.pipeline import Pipeline

aten, ops = torch.ops.aten, torch.ops.gatefx
OPTIONS = MaskLoRA(floor=0.0)
FROZEN = ("FreezeRegularization",)


def hard_of(gate: TokenGate) -> HardTokenGate:
    return HardTokenGate(gate, config=OPTIONS)


def hardening(share: float = 0.5) -> Pipeline:
    return Pipeline((HardenTokenGates(share, hard_of),), assumes=FROZEN)


def trained_gate(layer: int, width: int, *, kept: tuple[int, ...] = (), share: float = 0.5) -> TokenGate:
    """In eval mode, with scores that differ from token to token."""
    gate = TokenGate(OPTIONS, layer=layer, width=width, kept=kept, share=SharePoint(share, share, 0.5), layers=1)
    nn.init.normal_(gate.predictor.score.weight)
    return gate.eval()


class State(nn.Module):
    """What the graphs written by hand start from."""

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return x * attention_mask.unsqueeze(-1)


def before(capture_plain: Any, *, masked: bool) -> fx.GraphModule:
    """x · token_gate_1(x, mask) with a mask, or with None, over the signature of `State`."""
    graph: fx.GraphModule = capture_plain(State())
    x, mask = graph.graph.find_nodes(op="placeholder")
    (product,) = graph.graph.find_nodes(op="call_function", target=aten.mul.Tensor)
    own_module(graph, "token_gate_1", trained_gate(1, 12))
    given = (x, mask if masked else None)
    with graph.graph.inserting_before(product):
        gate = emit_module(
            graph.graph, "token_gate_1", given, shape=shape_of(x)[:2], dtype=torch.float32, origin="test", like=x
        )
        spread = emit(graph.graph, aten.unsqueeze.default, (gate, -1), origin="test", like=x)
    product.args = (x, spread)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


class Leaves(fx.Tracer):
    """Keeps every module a node."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


class Expected(nn.Module):
    """What the pass's docstring promises, written out."""

    token_share: Tensor

    def __init__(self, *, masked: bool) -> None:
        super().__init__()
        self.masked = masked
        self.register_buffer(SHARE, torch.tensor(0.5))
        self.hard_token_gate_1 = hard_of(trained_gate(1, 12))

    def forward(self, x: Any, attention_mask: Any) -> Any:
        counted = attention_mask if self.masked else aten.full_like.default(aten.select.int(x, 2, 0), 1)
        n = aten.sum.dim_IntList(counted, [1])
        both = self.hard_token_gate_1(x, attention_mask if self.masked else None, n, self.token_share)
        choice = ops.select_tokens.default(operator.getitem(both, 0), operator.getitem(both, 1))
        indices, valid = operator.getitem(choice, 0), operator.getitem(choice, 1)
        number, length = aten.to.dtype(valid, torch.float32), aten.sym_size.int(x, 1)
        gate = ops.scatter_tokens.default(number, indices, valid, length, 0.0)
        return {"logits": aten.mul.Tensor(x, aten.unsqueeze.default(gate, -1))}


def text_of(graph: fx.GraphModule) -> str:
    """Canonical, without the shapes that a traced module does not have."""
    return "\n".join(line.partition(" -> ")[0] for line in canonical_text(graph).splitlines())


@pytest.mark.parametrize("masked", [True, False])
def test_before_and_after(capture_plain: Any, checked: Any, masked: bool) -> None:
    result = checked(hardening(), before(capture_plain, masked=masked))

    module = Expected(masked=masked)
    assert text_of(result.graph_module) == text_of(fx.GraphModule(module, Leaves().trace(module)))
    report = result.reports[0]
    assert report.fired == ("token_gate_1",)
    assert "approximate" in report.exactness
    assert report.op_changes["TokenGate"] == -1
    assert report.op_changes["HardTokenGate"] == 1


@pytest.mark.parametrize("masked", [True, False])
def test_it_keeps_what_the_trained_gate_keeps_in_eval_mode(capture_plain: Any, inputs: Any, masked: bool) -> None:
    graph = before(capture_plain, masked=masked)
    hardened = hardening()(graph).graph_module

    for tokens in (1, 4, 9):
        given = inputs(batch=4, tokens=tokens, seed=tokens).values()
        answer = hardened(*given)["logits"]
        assert torch.equal(answer, graph(*given)["logits"])
    assert (answer == 0).all(-1).any(), "some tokens must be dropped for this to say anything"


@pytest.fixture(scope="module")
def gated_bert(captured_family: Any) -> Any:
    """(model, {cut: gate}, frozen graph) with a gate at each of two cuts; leave them as they are."""
    model, captured = captured_family("bert")
    shares = {0: 0.8, 1: 0.5}
    made: dict[int, TokenGate] = {}

    def gate(_config: object, *, layer: int, width: int, kept: tuple[int, ...]) -> TokenGate:
        made[layer] = trained_gate(layer, width, kept=kept, share=shares[layer])
        return made[layer]

    graph = InsertTokenGates(OPTIONS, (0, 1), gate)(captured.graph_module.eval()).graph_module
    return model, made, FreezeRegularization()(graph).graph_module.eval()


def kept_by_hand(gate: TokenGate, state: Tensor, alive: Tensor, counts: list[int]) -> Tensor:
    """(B, T) 0 and 1: position 0, then the largest predicted scores of what is alive."""
    scores = gate.predictor(state).detach().numpy()
    keep = np.zeros(alive.shape)
    for row, count in enumerate(counts):
        order = [t for t in np.argsort(-scores[row], kind="stable") if t != 0 and alive[row, t] > 0]
        keep[row, [0, *order[: count - 1]]] = 1
    return torch.tensor(keep, dtype=state.dtype)


def test_numbers_are_those_of_the_eager_model_that_masks(gated_bert: Any) -> None:
    """Each layer of transformers' own model, with the dropped tokens' keys masked as padding is."""
    model, made, frozen = gated_bert
    batch = tiny_inputs("bert", batch=3, tokens=9)
    hardened = hardening()(frozen).graph_module
    answer = hardened(*batch.values())["logits"]

    bert, real = model.bert, batch["attention_mask"]
    lengths = [int(n) for n in real.sum(1)]
    state, alive = bert.embeddings(input_ids=batch["input_ids"]), real
    for cut, share in ((0, 0.8), (1, 0.5)):
        alive = kept_by_hand(made[cut], state, alive, [int(np.ceil(share * n - 1e-5)) for n in lengths])
        state = bert.encoder.layer[cut](state, (1 - alive)[:, None, None, :] * torch.finfo(torch.float32).min)
        state = state[0] if isinstance(state, tuple) else state
    wanted = model.classifier(bert.pooler(state))
    torch.testing.assert_close(answer, wanted, rtol=0, atol=1e-5)
    assert (answer - model(**batch).logits).abs().max() > 1e-3


def test_cuts_share_one_budget_which_changes_in_place(gated_bert: Any, checked: Any) -> None:
    _, _, frozen = gated_bert
    result = checked(hardening(), frozen)
    hardened = result.graph_module

    assert result.reports[0].fired == ("token_gate_0", "token_gate_1")
    assert len(hardened.graph.find_nodes(op="get_attr", target=SHARE)) == 1
    counts = {}
    for budget in (0.25, 0.5, 1.0):
        seen: list[list[int]] = []
        handles = [
            module.register_forward_hook(lambda *call, seen=seen: seen.append(call[2][1].tolist()))
            for module in hardened.modules()
            if isinstance(module, HardTokenGate)
        ]
        hardened.get_buffer(SHARE).fill_(budget)
        hardened(*tiny_inputs("bert", batch=2, tokens=10, ragged=False).values())
        counts[budget] = seen
        for handle in handles:
            handle.remove()
    # 0.8 and 0.5 of ten tokens at a budget of one half; on straight lines to nothing and to everything elsewhere.
    assert counts == {0.25: [[4, 4], [3, 3]], 0.5: [[8, 8], [5, 5]], 1.0: [[10, 10], [10, 10]]}


def test_what_calibration_changes_later_stays_out_of_the_trained_gate(gated_bert: Any) -> None:
    _, made, frozen = gated_bert
    weights = copy.deepcopy(made[1].state_dict())
    hardened = hardening()(frozen).graph_module
    hardened.get_submodule("hard_token_gate_1.predictor.score").weight.data.zero_()

    assert all(torch.equal(value, weights[name]) for name, value in made[1].state_dict().items())


def test_a_graph_without_token_gates_is_left_alone(capture_plain: Any, checked: Any, gated_bert: Any) -> None:
    for graph in (capture_plain(State()), hardening()(gated_bert[2]).graph_module):
        assert checked(hardening(), graph).graph_module is graph


def test_it_must_follow_freezing() -> None:
    order: tuple[Pass, ...] = (HardenTokenGates(0.5, hard_of), FreezeRegularization())
    with pytest.raises(PassError, match="HardenTokenGates must run after FreezeRegularization"):
        Pipeline(order)


def test_a_gate_that_reads_no_state_is_refused(capture_plain: Any) -> None:
    graph = before(capture_plain, masked=True)
    (gate,) = graph.graph.find_nodes(op="call_module", target="token_gate_1")
    gate.args = (None, gate.args[1])

    with pytest.raises(PassError, match="token_gate_1 reads no state"):
        hardening()(graph)
