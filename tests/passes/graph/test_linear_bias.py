from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import fx, nn

from gatefx.models.regularization import AttentionDropout
from gatefx.models.tiny import tiny, tiny_decoder, tiny_inputs
from gatefx.passes.find.attention import find_attention
from gatefx.passes.find.cache_rows import find_cache_rows, key_positions
from gatefx.passes.graph import capture_decoder
from gatefx.passes.graph.capture import capture
from gatefx.passes.graph.linear_bias import PlaceLinearBias

from ...sampling import rest_slow


def as_it_is(model: nn.Module, family: str = "bloom") -> fx.GraphModule:
    """The model's graph before the pass."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gatefx.passes.graph.capture.with_linear_bias", lambda *_: None)
        return capture(model, tiny_inputs(family, batch=3, tokens=9)).graph_module


@cache
def placed(heads: int) -> tuple[nn.Module, fx.GraphModule]:
    """A model of so many heads, and its graph after the pass. Leave both as they are."""
    model = bloom(n_head=heads, hidden_size=24)
    result = PlaceLinearBias()(as_it_is(model), verify=True)
    assert len(result.reports[0].fired) == 2
    assert not [item for item in find_attention(result.graph_module) if not item.is_fused]
    return model, result.graph_module.eval()


def bloom(**options: Any) -> nn.Module:
    import transformers

    sizes = {**tiny_decoder("bloom").config.to_dict(), **options}
    torch.manual_seed(0)
    return transformers.BloomForCausalLM(transformers.BloomConfig(**sizes)).eval()


@pytest.mark.parametrize("heads", rest_slow([4, 3, 2], 2))  # slopes of 3 heads come from two series
@pytest.mark.parametrize("side", ["left", "right"])
def test_real_tokens_get_the_models_logits(ragged_prompts: Any, heads: int, side: str) -> None:
    model, graph = placed(heads)
    ids, mask = ragged_prompts(4, 19, side)
    with torch.no_grad():
        wanted = model(input_ids=ids, attention_mask=mask).logits
        answered = graph(ids, mask)["logits"]
    real = mask > 0
    torch.testing.assert_close(answered[real], wanted[real], atol=1e-5, rtol=0)


def test_biases_are_made_of_the_positions_of_keys_alone() -> None:
    graph = PlaceLinearBias()(as_it_is(bloom())).graph_module
    rows = find_cache_rows(graph)
    assert isinstance(rows, tuple)
    (keys,) = key_positions(rows)
    assert keys.target is torch.ops.aten.clone.default
    assert len({row.attention.mask for row in rows}) == 1, "layers share one mask"
    llama = find_cache_rows(capture(tiny_decoder("llama"), tiny_inputs("llama")).graph_module)
    assert isinstance(llama, tuple)
    assert not key_positions(llama)


def test_dropout_of_weights_stays_and_follows_train_and_eval() -> None:
    graph = PlaceLinearBias()(as_it_is(bloom(attention_dropout=0.5)), verify=True).graph_module
    dropped = [module for module in graph.modules() if isinstance(module, AttentionDropout)]
    assert [module.p for module in dropped] == [0.5, 0.5]
    batch = tuple(tiny_inputs("bloom").values())
    assert torch.equal(graph.eval()(*batch)["logits"], graph(*batch)["logits"])
    assert not torch.equal(graph.train()(*batch)["logits"], graph(*batch)["logits"])


@pytest.mark.parametrize("family", rest_slow(["llama", "gpt2"]))
def test_other_attention_is_declined_and_the_graph_stays(family: str) -> None:
    graph = as_it_is(tiny_decoder(family), family)
    result = PlaceLinearBias()(graph, verify=True)
    assert result.graph_module is graph
    assert "baddbmm" in result.reports[0].declined[0].reason


def test_a_graph_without_a_mask_is_declined() -> None:
    graph = capture(tiny("vit"), tiny_inputs("vit")).graph_module
    assert PlaceLinearBias()(graph).graph_module is graph


def test_a_graph_whose_logits_would_differ_is_captured_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that shuts out more than later keys cannot be told from its form: running both shows it."""
    monkeypatch.setattr(capture_decoder, "_gap", lambda *_: 1.0)
    captured = capture(tiny_decoder("bloom"), tiny_inputs("bloom", batch=2, tokens=6))
    assert isinstance(find_attention(captured.graph_module)[0].values, type(None))
    assert [note for note in captured.notes if "cannot generate" in note]
