"""A captured graph is its model bit for bit, in both modes and at other shapes, and the model stays as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from gatefx.errors import CaptureError, InputError
from gatefx.models.tiny import FAMILIES, tiny, tiny_inputs
from gatefx.passes.graph.capture import capture, named_tensors
from gatefx.passes.graph.legality import check_legality
from gatefx.passes.graph.signature import signature_of

from ...sampling import rest_slow

pytest.importorskip("transformers", reason="small models are built by transformers")

#: Families without dropout in their default config: train() and eval() compute the same.
WITHOUT_DROPOUT = {"modernbert", "llama", "mistral", "qwen3", "vit"}
#: Those whose graphs differ most; the others are slow together.
FIRST = ("bert", "deberta-v2", "modernbert", "t5", "gpt2", "llama", "vit")
CASES = rest_slow([*FIRST, *(family for family in FAMILIES if family not in FIRST)], len(FIRST))
SHAPES = [(3, 9), (1, 5), (4, 17), (2, 1), (1, 1)]


def answers(graph: fx.GraphModule, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return graph(*signature_of(graph).arrange(inputs))


@pytest.mark.parametrize("family", CASES)
def test_eval_mode_is_the_model_bit_for_bit_at_any_shape(family: str, captured_family: Any) -> None:
    model, captured = captured_family(family)
    graph = captured.graph_module.eval()

    for batch, tokens in SHAPES:
        inputs = tiny_inputs(model, batch=batch, tokens=tokens, seed=3)
        with torch.no_grad():
            wanted, found = named_tensors(model(**inputs)), answers(graph, inputs)
        assert found.keys() == {name for name in wanted if name in found}
        assert "logits" in found
        for name, value in found.items():
            assert torch.equal(value, wanted[name]), f"{family} {name} at {batch}x{tokens}"


@pytest.mark.parametrize("family", CASES)
def test_training_mode_draws_the_model_s_own_dropout(family: str, captured_family: Any) -> None:
    model, captured = captured_family(family)
    twin, graph = copy.deepcopy(model).train(), captured.graph_module.train()
    inputs = tiny_inputs(model, batch=4, tokens=7, seed=5)

    torch.manual_seed(2)
    wanted = twin(**inputs).logits
    torch.manual_seed(2)
    found = answers(graph, inputs)["logits"]
    torch.manual_seed(3)
    other = answers(graph, inputs)["logits"]
    graph.eval()

    assert torch.equal(found, wanted)
    assert torch.equal(found, other) == (family in WITHOUT_DROPOUT)
    assert torch.equal(answers(graph, inputs)["logits"], answers(graph, inputs)["logits"])


@pytest.mark.parametrize("family", CASES)
def test_graphs_are_legal_carry_provenance_and_the_model_s_names(family: str, captured_family: Any) -> None:
    model, captured = captured_family(family)

    check_legality(captured.graph_module)

    modules = dict(model.named_modules())
    for node in captured.graph_module.graph.nodes:
        if node.op != "output":
            assert node.meta["origin"] == "capture"
            assert node.meta["module_path"] in modules or node.op == "get_attr", node.format_node()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in captured.graph_module.named_parameters():
        assert torch.equal(parameter, parameters[name])
        assert parameter.requires_grad == parameters[name].requires_grad
        assert parameter.data_ptr() != parameters[name].data_ptr()


@pytest.mark.parametrize("family", ["bert", "t5", "gpt2"])
def test_gradients_are_the_model_s(family: str, captured_family: Any, tolerance: Any) -> None:
    model, captured = captured_family(family)
    twin, graph = copy.deepcopy(model).eval(), copy.deepcopy(captured.graph_module).eval()
    inputs = tiny_inputs(model, batch=3, tokens=6)

    twin(**inputs).logits.square().mean().backward()
    answers(graph, inputs)["logits"].square().mean().backward()

    wanted = {name: p.grad for name, p in twin.named_parameters(remove_duplicate=False) if p.grad is not None}
    found = {name: p.grad for name, p in graph.named_parameters() if p.grad is not None}
    assert len(found) == len({id(grad) for grad in wanted.values()})
    for name, grad in found.items():
        torch.testing.assert_close(grad, wanted[name], rtol=1e-4, atol=tolerance[torch.float32])


def _state(model: nn.Module) -> dict[str, Any]:
    config = model.config.to_dict()  # type: ignore[operator]
    return {
        "weights": {name: (value.clone(), value._version) for name, value in model.state_dict().items()},
        "pointers": {name: value.data_ptr() for name, value in model.named_parameters()},
        "requires_grad": {name: value.requires_grad for name, value in model.named_parameters()},
        "training": {name: module.training for name, module in model.named_modules()},
        "hooks": {name: len(module._forward_hooks) for name, module in model.named_modules()},
        "config": config,
        "grads": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
    }


@pytest.mark.parametrize("share_frozen", rest_slow([True, False]))
def test_the_caller_s_model_is_left_as_it_was(share_frozen: bool) -> None:
    model = tiny("gpt2")
    model.config.use_cache = True
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 2 == 0)
    model.transformer.h[0].train()
    model.transformer.h[1].register_forward_hook(lambda *_: None)
    rng = torch.get_rng_state()
    before = _state(model)

    captured = capture(model, tiny_inputs(model, batch=2, tokens=5), share_frozen=share_frozen)

    after = _state(model)
    assert torch.equal(torch.get_rng_state(), rng)
    for name, (value, _) in before.pop("weights").items():
        assert torch.equal(after["weights"][name][0], value)
    after.pop("weights")
    assert before == after
    own = dict(captured.graph_module.named_parameters())
    for name, parameter in model.named_parameters():
        if name in own:
            shared = own[name].data_ptr() == parameter.data_ptr()
            assert shared == (share_frozen and not parameter.requires_grad)
            assert own[name].requires_grad == parameter.requires_grad


def test_an_inference_tensor_or_an_input_of_the_caller_is_not_written_to() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x.add_(1)
            return self.linear(x)

    with pytest.raises(CaptureError, match=r"Writes.*add_"):
        capture(Writes(), {"x": torch.zeros(2, 3, 4)})


class _Wrapped(nn.Module):
    """A linear before the module under test, so that its path is not the root's."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.linear(x))


class _Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class _OnlyInTraining(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if self.training else x


class _StochasticDepth(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand(x.shape[0], 1, 1) + 0.99).floor() if self.training else x


class _Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


EXAMPLE = {"x": torch.zeros(3, 5, 8)}


def test_control_flow_on_data_is_refused_with_module_and_remedy() -> None:
    with pytest.raises(CaptureError) as caught:
        capture(_Wrapped(_Branch()), EXAMPLE)

    text = str(caught.value)
    assert "_Branch at inner" in text
    assert "data-dependent" in text
    assert "what to do: run model(**example_inputs) once" in text


def test_batch_statistics_are_refused_and_the_buffer_named() -> None:
    with pytest.raises(CaptureError, match=r"BatchNorm1d at inner writes to inner\.(num_batches|running)") as caught:
        capture(_Wrapped(nn.BatchNorm1d(5)), EXAMPLE)

    assert "LayerNorm" in str(caught.value)


def test_a_counting_buffer_is_refused_and_named() -> None:
    with pytest.raises(CaptureError, match=r"_Counter at inner writes to inner\.calls"):
        capture(_Wrapped(_Counter()), EXAMPLE)


@pytest.mark.parametrize(
    "inner", [nn.Dropout2d(0.5), nn.AlphaDropout(0.5), nn.RReLU(), _OnlyInTraining(), _StochasticDepth()]
)
@pytest.mark.filterwarnings("ignore:dropout2d")
def test_what_only_training_does_never_reaches_eval_mode(inner: nn.Module) -> None:
    model = _Wrapped(inner).eval()

    captured = capture(model, {"x": torch.randn(3, 5, 8)})

    x = torch.randn(4, 5, 8)
    assert torch.equal(captured.graph_module.eval()(x)["logits"], model(x))
    assert "eval mode" in captured.notes[0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "name the model's inputs"),
        (torch.zeros(2, 3), "name the model's inputs"),
        ({"labels": torch.zeros(2)}, "labels only"),
        ({"x": [[1, 2], [3, 4]]}, "x is no batch"),
        ({"x": torch.tensor(1.0)}, "x is no batch"),
        ({"x": torch.zeros(1, 5, 8)}, "batch of x has 1 entries"),
        ({"x": torch.zeros(3, 1, 8)}, "sequence of x has 1 entries"),
        ({"x": torch.zeros(0, 5, 8)}, "batch of x has 0 entries"),
    ],
)
def test_example_inputs_that_cannot_work_are_refused(given: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        capture(_Wrapped(nn.ReLU()), given)

    assert "tokenizer(" in str(caught.value)


def test_an_example_that_the_model_does_not_take_names_the_error() -> None:
    with pytest.raises(CaptureError, match=r"BertModel at bert .*\n.*input_ids"):
        capture(tiny("bert"), {"nonsense": torch.zeros(2, 3)})


def test_a_model_that_answers_nothing_by_name_is_refused() -> None:
    class Number(nn.Module):
        def forward(self, x: Tensor) -> int:
            return 3

    with pytest.raises(CaptureError, match=r"int, which holds no tensors"):
        capture(Number(), EXAMPLE)


def test_a_batch_size_that_the_model_fixes_is_refused() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(3, -1)

    with pytest.raises(CaptureError, match="batch axis of x became the constant 3"):
        capture(_Wrapped(Fixed()), EXAMPLE)


def test_a_width_that_the_model_fixes_is_part_of_the_signature() -> None:
    captured = capture(_Wrapped(nn.ReLU()), EXAMPLE)

    assert [axis.size for axis in signature_of(captured.graph_module).inputs[0].axes] == [None, None, 8]


def test_answers_that_are_tuples_and_mappings_have_names() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x + 1, x * 2

    captured = capture(Pair(), EXAMPLE)

    assert signature_of(captured.graph_module).outputs == ("output_0", "output_1")
