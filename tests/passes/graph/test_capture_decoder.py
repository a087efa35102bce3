from __future__ import annotations

import peft
import pytest
import torch
from torch import nn

from gatefx.models.tiny import DECODERS, tiny, tiny_decoder, tiny_inputs
from gatefx.passes.find.last_token import VISIBLE
from gatefx.passes.graph.capture import capture
from gatefx.passes.graph.capture_decoder import decoder_arguments, token_positions, windows_of

from ...sampling import rest_slow


def reads_explicit_masks(graph: torch.fx.GraphModule) -> bool:
    return bool(graph.graph.find_nodes(op="call_function", target=VISIBLE))


#: Rotary, learned and linear positions; the others are slow together.
FIRST = ("llama", "gpt2", "bloom")
CASES = [*FIRST, *(family for family in DECODERS if family not in FIRST)]


@pytest.mark.parametrize("family", rest_slow(CASES, len(FIRST)))
def test_logits_of_real_tokens_are_the_models_own(family: str) -> None:
    model, example = tiny_decoder(family), tiny_inputs(family, batch=3, tokens=9)
    captured = capture(model, example)
    assert captured.notes == ()
    assert reads_explicit_masks(captured.graph_module)
    batch = tiny_inputs(family, batch=2, tokens=21, seed=4)
    real = batch["attention_mask"] > 0
    with torch.no_grad():
        wanted = model(**batch).logits[real]
        answered = captured.graph_module.eval()(*batch.values())["logits"][real]
    if family == "bloom":  # its attention becomes one operator, which sums in another order
        torch.testing.assert_close(answered, wanted, atol=1e-5, rtol=0)
    else:
        assert torch.equal(answered, wanted)


def test_padding_on_the_left_is_what_the_model_makes_of_its_positions() -> None:
    model, example = tiny_decoder("gpt2"), tiny_inputs("gpt2", batch=3, tokens=9)
    graph = capture(model, example).graph_module.eval()
    batch = {name: value.flip(1) for name, value in tiny_inputs("gpt2", batch=3, tokens=11, seed=2).items()}
    real = batch["attention_mask"] > 0
    with torch.no_grad():
        wanted = model(**batch, position_ids=token_positions(batch["attention_mask"])).logits[real]
        torch.testing.assert_close(graph(*batch.values())["logits"][real], wanted, atol=1e-5, rtol=0)


def test_positions_that_the_example_has_stay_an_input() -> None:
    example = tiny_inputs("llama", batch=2, tokens=6)
    example["position_ids"] = token_positions(example["attention_mask"])
    graph = capture(tiny_decoder("llama"), example).graph_module
    assert [str(node.target) for node in graph.graph.find_nodes(op="placeholder")] == list(example)


def test_adapters_of_peft_are_captured_with_explicit_masks_too() -> None:
    model = peft.get_peft_model(tiny_decoder("qwen3"), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    captured = capture(model, tiny_inputs("qwen3", batch=2, tokens=6))
    assert captured.notes == ()
    assert reads_explicit_masks(captured.graph_module)


def test_a_model_with_eager_attention_gets_masks_that_are_added() -> None:
    model, example = tiny_decoder("llama"), tiny_inputs("llama", batch=2, tokens=6)
    model.set_attn_implementation("eager")
    captured = capture(model, example)
    real = example["attention_mask"] > 0
    with torch.no_grad():
        wanted = model(**example).logits[real]
        answered = captured.graph_module.eval()(*example.values())["logits"][real]
    assert reads_explicit_masks(captured.graph_module)
    torch.testing.assert_close(answered, wanted, atol=1e-5, rtol=0)


class Stubborn(nn.Module):
    """A language model by name that looks at no positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(input_ids) * attention_mask.unsqueeze(-1))


class StubbornForCausalLM(Stubborn):
    pass


def test_a_decoder_that_takes_no_positions_is_captured_as_it_is_and_says_so() -> None:
    example = {"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.ones(2, 3).long()}
    captured = capture(StubbornForCausalLM(), example)
    assert not reads_explicit_masks(captured.graph_module)
    assert [note for note in captured.notes if "cannot generate" in note and "position_ids" in note]
    assert capture(Stubborn(), example).notes == ()


def test_a_model_with_another_bias_is_captured_as_it_is_and_says_so() -> None:
    from transformers import MptConfig, MptForCausalLM

    config = MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=100, max_seq_len=64, use_cache=False)
    captured = capture(MptForCausalLM(config).eval(), tiny_inputs("llama", batch=2, tokens=6))
    assert not reads_explicit_masks(captured.graph_module)
    assert [note for note in captured.notes if "cannot generate" in note]


def test_classifiers_and_other_inputs_are_left_alone() -> None:
    classifier = tiny("llama")
    assert decoder_arguments(classifier, tiny_inputs("llama"))[0](tiny_inputs("llama")).keys() == {
        "input_ids",
        "attention_mask",
    }
    assert decoder_arguments(tiny_decoder("llama"), {"input_ids": torch.ones(2, 3).long()})[1] is None


def test_windows_by_kind_of_layer() -> None:
    assert windows_of(tiny_decoder("llama").config) == {"full_attention": 0}
    assert windows_of(tiny_decoder("mistral").config) == {"sliding_attention": 16}
    config = tiny_decoder("qwen2").config
    config.layer_types, config.sliding_window = ["full_attention", "sliding_attention"], 4
    assert windows_of(config) == {"full_attention": 0, "sliding_attention": 4}
