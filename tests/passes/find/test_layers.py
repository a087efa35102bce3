"""find_cuts: the states between layers, found by structure, in every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gatefx.models.configs.masklora import MaskLoRA
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.find.adapters import Miss
from gatefx.passes.find.layers import Cut, find_cuts
from gatefx.passes.find.scored_layers import find_scored_layers
from gatefx.passes.gate.lora import AttachLora
from gatefx.passes.gate.token_cuts import PlaceTokenGates
from gatefx.passes.graph.capture import capture
from gatefx.passes.graph.edit import module_path, shape_of
from gatefx.passes.harden.freeze import FreezeRegularization

ENCODERS = ["bert", "roberta", "distilbert", "electra", "deberta-v2", "mpnet", "albert", "modernbert", "vit"]
SEQUENCE_TO_SEQUENCE = ["t5", "bart"]
DECODERS = ["gpt2", "llama", "mistral", "qwen3"]


def cuts_of(graph: Any) -> tuple[Cut, ...]:
    found = find_cuts(graph)
    assert isinstance(found, tuple), found
    return found


@pytest.mark.parametrize("family", ENCODERS + SEQUENCE_TO_SEQUENCE)
def test_layers_of_the_encoder_are_counted_as_long_as_something_attends_to_them(
    captured_family: Any, family: str
) -> None:
    graph = captured_family(family)[1].graph_module

    cuts = cuts_of(graph)

    # A decoder attends to what its encoder's last layer leaves; after an encoder's own last one nothing attends.
    assert [cut.layer for cut in cuts] == ([0, 1, 2] if family in SEQUENCE_TO_SEQUENCE else [0, 1])
    for cut in cuts:
        assert len(shape_of(cut.state)) == 3
        assert shape_of(cut.state)[2] == 32
        assert (cut.mask is None) == (family == "vit")
    assert cuts[0].mask is None or cuts[0].mask.target == "attention_mask"


@pytest.mark.parametrize(
    ("family", "path"),
    [
        ("bert", "bert.encoder.layer.0.output.LayerNorm"),  # after the norm
        ("vit", "vit.layers.0"),  # the residual sum before the next norm
        ("t5", "encoder.block.0.layer.1"),
        ("modernbert", "model.layers.0"),
    ],
)
def test_the_state_is_the_stream_between_two_layers(captured_family: Any, family: str, path: str) -> None:
    graph = captured_family(family)[1].graph_module

    assert module_path(cuts_of(graph)[1].state) == path
    assert module_path(cuts_of(FreezeRegularization()(graph).graph_module)[1].state) == path


@pytest.mark.parametrize("family", ["bert", "vit", "t5"])
def test_adapters_do_not_move_the_cuts(captured_family: Any, family: str) -> None:
    graph = captured_family(family)[1].graph_module
    adapted = AttachLora(4, 8.0, 0.1, "all-linear")(graph).graph_module

    states = [module_path(cut.state) for cut in cuts_of(adapted)]

    assert states[1:] == [module_path(cut.state) for cut in cuts_of(graph)][1:]


@pytest.mark.parametrize("family", DECODERS)
def test_causal_attention_is_declined_by_name(captured_family: Any, family: str) -> None:
    found = find_cuts(captured_family(family)[1].graph_module)

    assert isinstance(found, Miss)
    assert "attention" in found.where
    assert found.reason.startswith("causal attention (its mask compares positions in ")


def test_a_state_that_is_returned_leaves_no_single_value_between_layers() -> None:
    class EarlyState(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny("bert")

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
            answer = self.model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
            return {"logits": answer.logits, "embeddings": answer.hidden_states[0]}

    graph = capture(EarlyState().eval(), tiny_inputs("bert", 3, 9)).graph_module

    assert [cut.layer for cut in cuts_of(graph)] == [0]


def test_a_mask_of_several_sequences_an_example_is_declined() -> None:
    class Choices(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny("bert")

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            flat = input_ids.flatten(0, 1), attention_mask.flatten(0, 1)
            return self.model(input_ids=flat[0], attention_mask=flat[1]).logits[:, 0].view(input_ids.shape[:2])

    inputs = {name: value[:, None].repeat(1, 2, 1) for name, value in tiny_inputs("bert", 3, 9).items()}

    found = find_cuts(capture(Choices().eval(), inputs).graph_module)

    assert isinstance(found, Miss)
    assert found.where == "attention_mask"


def test_a_model_without_attention_is_declined(capture_plain: Any) -> None:
    found = find_cuts(capture_plain(dtype=torch.float32))

    assert isinstance(found, Miss)
    assert "no attention" in found.reason


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_gates_on_tokens_hide_no_later_cut(captured_family: Any, family: str) -> None:
    adapted = AttachLora(4, 8.0, 0.0, "all-linear")(captured_family(family)[1].graph_module).graph_module
    gated = PlaceTokenGates(MaskLoRA(keep=((0, 0.8), (1, 0.5))), 0.5)(adapted).graph_module

    assert [cut.layer for cut in cuts_of(gated)] == [cut.layer for cut in cuts_of(adapted)]
    layers = [find_scored_layers(graph) for graph in (adapted, gated)]
    names = [[[site.name for site in layer.sites] for layer in found] for found in layers if isinstance(found, tuple)]
    assert names[0] == names[1]
