"""InsertTokenGates: open gates change nothing, shut tokens are gone for everyone who stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gatefx.config import AdapterConfig
from gatefx.models.configs.ccm import CCM
from gatefx.models.configs.gatera import GateRA
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.gate.lora import AttachLora
from gatefx.passes.gate.modulation import InsertModulation
from gatefx.passes.gate.rank_router import InsertRankRouter
from gatefx.passes.graph.capture import capture
from gatefx.passes.harden.freeze import FreezeRegularization

from ...sampling import rest_slow, rest_slow_rows

aten = torch.ops.aten
#: Those whose graphs differ most first; the others are slow together.
FAMILIES = [
    "bert",
    "deberta-v2",
    "t5",
    "vit",
    "modernbert",
    "roberta",
    "distilbert",
    "electra",
    "mpnet",
    "albert",
    "bart",
]
CASES = rest_slow(FAMILIES, 4)
TEXTS = rest_slow([family for family in FAMILIES if family != "vit"], 3)
# Every law of passes costs seconds a graph: held where the graphs differ most.
CHECKED = ("bert", "deberta-v2", "t5")


def double_inputs(family: str) -> dict[str, Tensor]:
    given = tiny_inputs(family, 3, 9)
    return {name: value.double() if value.is_floating_point() else value for name, value in given.items()}


@pytest.fixture(scope="module")
def exact() -> Any:
    """family → (its model, its graph) in float64 and eval mode; made once, so leave both as they are."""
    made: dict[str, Any] = {}

    def make(family: str) -> Any:
        if family not in made:
            model = tiny(family).double()
            made[family] = model, capture(model, double_inputs(family)).graph_module.eval()
        return made[family]

    return make


def kept_tokens(family: str) -> Tensor:
    """(B, T): position 0 and some others, another set in each row, with real tokens among those dropped."""
    keep = torch.rand(3, 17 if family == "vit" else 9, generator=torch.Generator().manual_seed(3)) < 0.5
    keep[:, 0], keep[0, 1:4] = True, torch.tensor([False, True, False])
    return keep


def logits(graph: Any, inputs: dict[str, Tensor]) -> Tensor:
    return graph(*inputs.values())["logits"]


@pytest.mark.parametrize("family", CASES)
def test_open_gates_are_the_ungated_model(token_gates: Any, exact: Any, checked: Any, family: str) -> None:
    graph = exact(family)[1]
    inputs = double_inputs(family)

    insert = token_gates.insert(0, 1)

    result = checked(insert, graph) if family in CHECKED else insert(graph)

    assert result.reports[0].fired == ("token_gate_0", "token_gate_1")
    assert result.reports[0].declined == ()
    torch.testing.assert_close(logits(result.graph_module, inputs), logits(graph, inputs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "t5"])
def test_a_frozen_graph_is_gated_alike(token_gates: Any, exact: Any, family: str) -> None:
    graph = exact(family)[1]
    inputs, keep = double_inputs(family), kept_tokens(family)
    before = FreezeRegularization()(token_gates.insert(1)(graph).graph_module).graph_module
    after = token_gates.insert(1)(FreezeRegularization()(graph).graph_module).graph_module

    token_gates.set(before, keep)
    token_gates.set(after, keep)

    assert torch.equal(logits(before, inputs), logits(after, inputs))


@pytest.mark.parametrize(
    ("family", "cuts"), rest_slow_rows([("bert", (0, 1)), ("t5", (0, 2)), *((family, (1,)) for family in FAMILIES)], 6)
)
def test_what_shut_tokens_hold_reaches_nobody(token_gates: Any, exact: Any, family: str, cuts: tuple[int, ...]) -> None:
    gated = token_gates.insert(*cuts)(exact(family)[1]).graph_module
    inputs, keep = double_inputs(family), kept_tokens(family)
    open_logits = logits(gated, inputs)

    token_gates.set(gated, keep)
    answer = logits(gated, inputs)

    assert torch.equal(token_gates.spoiled(gated, keep, inputs), answer)
    assert (answer - open_logits).abs().max() > 1e-3


@pytest.mark.parametrize("family", TEXTS)
def test_shut_after_the_embeddings_is_padding(token_gates: Any, exact: Any, family: str) -> None:
    _, graph = exact(family)
    gated = token_gates.insert(0)(graph).graph_module
    inputs, keep = double_inputs(family), kept_tokens(family)

    token_gates.set(gated, keep)

    padded = {**inputs, "attention_mask": inputs["attention_mask"] * keep.long()}
    torch.testing.assert_close(logits(gated, inputs), logits(graph, padded), rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", TEXTS)
def test_a_shut_end_is_a_shorter_sequence(token_gates: Any, exact: Any, family: str) -> None:
    model, graph = exact(family)
    gated = token_gates.insert(0)(graph).graph_module
    inputs = double_inputs(family)

    token_gates.set(gated, (torch.arange(9) < 5).expand(3, 9))

    short = {name: value if name.startswith("decoder") else value[:, :5] for name, value in inputs.items()}
    expected = model(**short).logits
    torch.testing.assert_close(logits(gated, inputs), expected, rtol=0, atol=1e-10)


def layers_and_head(family: str, model: nn.Module) -> Any:
    """The model's layers, and what it makes of the last state (1, K, d)."""
    if family == "bert":
        return model.bert.encoder.layer, lambda h: model.classifier(model.bert.pooler(h))
    if family == "roberta":
        return model.roberta.encoder.layer, model.classifier
    if family == "electra":
        return model.electra.encoder.layer, model.classifier
    if family == "distilbert":
        return model.distilbert.transformer.layer, lambda h: model.classifier(model.pre_classifier(h[:, 0]).relu())
    return model.vit.layers, lambda h: model.classifier(model.vit.layernorm(h)[:, 0])


def second_layer(family: str, model: nn.Module, h: Tensor, mask: Tensor | None = None) -> Tensor:
    """The logits from the state (1, K, d) after the first layer."""
    layers, head = layers_and_head(family, model)
    answer = layers[1](h, *(() if mask is None else (mask,)))
    return head(answer[0] if isinstance(answer, tuple) else answer)


@pytest.mark.parametrize("family", rest_slow(["bert", "vit", "roberta", "electra", "distilbert"], 2))
def test_shut_between_layers_is_the_rest_of_the_model_on_fewer_tokens(
    token_gates: Any, exact: Any, family: str
) -> None:
    model, graph = exact(family)
    gated = token_gates.insert(1)(graph).graph_module
    inputs, keep = double_inputs(family), kept_tokens(family)
    states: list[Tensor] = []
    hook = layers_and_head(family, model)[0][0].register_forward_hook(
        lambda _module, _given, answer: states.append(answer[0] if isinstance(answer, tuple) else answer)
    )
    model(**inputs)
    hook.remove()

    token_gates.set(gated, keep)
    answer = logits(gated, inputs)

    real = keep & inputs["attention_mask"].bool() if "attention_mask" in inputs else keep
    for row in range(3):
        expected = second_layer(family, model, states[0][row : row + 1, real[row]])
        torch.testing.assert_close(answer[row : row + 1], expected, rtol=0, atol=1e-10)


def test_soft_gates_weigh_keys_and_scale_states(token_gates: Any, exact: Any) -> None:
    model, graph = exact("bert")
    gated = token_gates.insert(1)(graph).graph_module
    inputs = {name: torch.ones_like(value) for name, value in double_inputs("bert").items()}
    inputs["input_ids"] = torch.randint(5, 100, (3, 9))
    gate = torch.rand(3, 9, dtype=torch.float64) * 0.9 + 0.1
    state = model(**inputs, output_hidden_states=True).hidden_states[1]

    token_gates.set(gated, gate)

    expected = second_layer("bert", model, state * gate[..., None], gate.log()[:, None, None])
    torch.testing.assert_close(logits(gated, inputs), expected, rtol=0, atol=1e-10)


def test_what_was_dropped_stays_dropped_and_the_next_gate_knows(token_gates: Any, exact: Any) -> None:
    gated = token_gates.insert(0, 1)(exact("bert")[1]).graph_module
    inputs, keep = double_inputs("bert"), kept_tokens("bert")

    token_gates.set(gated, keep, 0)
    first = logits(gated, inputs)
    second_gate = gated.get_submodule("token_gate_1")
    assert torch.equal(second_gate.mask, inputs["attention_mask"] * keep)
    token_gates.set(gated, keep, 1)

    assert torch.equal(logits(gated, inputs), first)
    assert second_gate.made_with == (AdapterConfig(), 1, 32, (0,))


def test_layers_share_one_mask_a_cut(token_gates: Any, exact: Any) -> None:
    model = tiny("bert")
    model.bert.encoder.layer.extend(tiny("bert", seed=1).bert.encoder.layer)
    graph = capture(model, tiny_inputs(model, 3, 9)).graph_module.eval()

    gated = token_gates.insert(1, 3)(graph).graph_module

    masks = [node.args[3] for node in gated.graph.nodes if "attention_dropout" in str(node.target)]
    assert len(masks) == 4
    assert masks[1] is masks[2]
    assert len({*masks}) == 3
    assert [mask.target for mask in masks[1:]] == [aten.where.ScalarOther] * 3


@pytest.mark.parametrize(
    "family", rest_slow(["bert", "deberta-v2", "vit", "modernbert", "t5", "bert in bfloat16", "mpnet"], 4)
)
def test_no_row_is_nan_and_no_gradient_either(token_gates: Any, captured_family: Any, family: str) -> None:
    family, _, coarse = family.partition(" ")
    inputs = tiny_inputs(family, 3, 9)
    graph = captured_family(family)[1].graph_module
    graph = capture(tiny(family).bfloat16(), inputs).graph_module if coarse else graph
    gated = token_gates.insert(0, 1)(graph).graph_module
    values = torch.rand(3, 17 if family == "vit" else 9)
    gate = torch.where(values < 0.7, 0.0, values)
    gate[:, 0], gate[0, 1:] = 1, 0  # the first example keeps one token
    gate.requires_grad_(True)

    token_gates.set(gated, gate)
    answer = logits(gated, inputs)
    of_gate, *rest = torch.autograd.grad(answer.float().square().sum(), (gate, *gated.parameters()), allow_unused=True)

    assert answer.isfinite().all()
    assert of_gate.isfinite().all()
    assert (of_gate != 0).any()
    assert all(gradient is None or gradient.isfinite().all() for gradient in rest)


def test_a_masked_pool_counts_open_tokens_only(token_gates: Any, checked: Any) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny("bert").bert

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            state = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            real = attention_mask.unsqueeze(-1).to(state.dtype)
            return (state * real).sum(1) / real.sum(1).clamp(min=1)

    inputs, keep = double_inputs("bert"), kept_tokens("bert")
    graph = capture(Pooled().double().eval(), inputs).graph_module.eval()
    gated = checked(token_gates.insert(0), graph).graph_module

    torch.testing.assert_close(logits(gated, inputs), logits(graph, inputs), rtol=0, atol=1e-12)
    token_gates.set(gated, keep)

    padded = {**inputs, "attention_mask": inputs["attention_mask"] * keep.long()}
    torch.testing.assert_close(logits(gated, inputs), logits(graph, padded), rtol=0, atol=1e-10)
    assert torch.equal(token_gates.spoiled(gated, keep, inputs), logits(gated, inputs))


@pytest.mark.parametrize("family", rest_slow(["llama", "gpt2"]))
def test_decoders_are_declined_and_left_alone(
    token_gates: Any, captured_family: Any, checked: Any, family: str
) -> None:
    graph = captured_family(family)[1].graph_module

    result = checked(token_gates.insert(1), graph)

    assert result.graph_module is graph
    (declined,) = result.reports[0].declined
    assert declined.reason.startswith("causal attention")


def test_a_cut_that_is_none_and_gates_twice_are_declined(token_gates: Any, exact: Any, checked: Any) -> None:
    result = checked(token_gates.insert(1, 7), exact("bert")[1])
    again = token_gates.insert(0)(token_gates.insert(1)(exact("bert")[1]).graph_module)

    assert [(item.where, item.reason) for item in result.reports[0].declined] == [
        ("layer 7", "cuts are possible after [0, 1] layers")
    ]
    assert again.reports[0].declined[0].reason == "the model's tokens are gated already"
    assert again.reports[0].fired == ()


def test_beside_other_gates(token_gates: Any, captured_family: Any, checked: Any) -> None:
    graph = AttachLora(4, 8.0, 0.0, "all-linear")(captured_family("bert")[1].graph_module).graph_module
    inputs = tiny_inputs("bert", 3, 9)
    modulated = InsertModulation(GateRA(update="lora"), 0.5)(graph).graph_module
    routed = InsertRankRouter(CCM(), 2.0)(modulated).graph_module.eval()

    gated = checked(token_gates.insert(1), routed).graph_module

    torch.testing.assert_close(logits(gated, inputs), logits(routed, inputs), rtol=0, atol=1e-5)
    by_site = InsertRankRouter(CCM(router_input="site"), 2.0)(graph).graph_module
    declined = checked(token_gates.insert(1), by_site).reports[0].declined
    assert declined
    assert all(item.reason == "RankRouter reads all tokens of a state at once" for item in declined)
