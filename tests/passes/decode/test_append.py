from __future__ import annotations

import pytest
import torch

from gatefx.errors import GatefxError, PassError, SiteError
from gatefx.models.tiny import DECODERS, tiny, tiny_inputs
from gatefx.passes.chain import Chain
from gatefx.passes.decode.append import ReadCache
from gatefx.passes.graph.capture import capture
from gatefx.passes.graph.capture_decoder import token_positions
from gatefx.passes.graph.signature import signature_of
from gatefx.passes.harden.freeze import FreezeRegularization
from gatefx.runtime.cache_names import CacheLayout

from ...sampling import rest_slow

_STEPS = 12


#: Those whose positions or windows differ; the others are slow together.
FIRST = ("llama", "mistral", "gpt2", "mixed")
FAMILIES = [*FIRST, *(family for family in DECODERS if family not in FIRST)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", rest_slow(FAMILIES, 4))
def test_greedy_tokens_are_those_of_the_model_with_its_own_cache(pairs, ragged_prompts, family: str, side: str) -> None:
    model, pair = pairs(family)
    ids, mask = ragged_prompts(4, 20, side)
    tokens, logits = pair.greedy(ids, mask, _STEPS)
    left_ids, left_mask = ragged_prompts(4, 20, "left")
    wanted = model.generate(
        left_ids,
        attention_mask=left_mask,
        max_new_tokens=_STEPS,
        do_sample=False,
        use_cache=True,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert torch.equal(tokens, wanted.sequences[:, 20:])
    torch.testing.assert_close(logits, torch.stack(wanted.logits, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "mixed"])
def test_several_tokens_at_once_are_the_same_tokens_one_by_one(pairs, ragged_prompts, family: str) -> None:
    model, pair = pairs(family)
    ids, mask = ragged_prompts(3, 24, "left", seed=9)
    cut = 15  # the rest is padded nowhere, the front may be
    with torch.no_grad():
        whole = model(input_ids=ids, attention_mask=mask, position_ids=token_positions(mask)).logits
    first = torch.cat([mask[:, :cut], torch.zeros_like(mask[:, cut:])], 1)
    start = pair.start(ids[:, :cut], first[:, :cut])
    answers = pair.go_on(ids[:, cut:], mask[:, cut:], token_positions(mask)[:, cut:], start)
    longest = mask[:, :cut].sum(1) > 0  # rows that are padding up to the cut have nothing to go on from
    torch.testing.assert_close(answers["logits"][longest], whole[longest, cut:], atol=1e-5, rtol=0)


def test_both_graphs_hold_the_models_parameters_once(pairs) -> None:
    _, pair = pairs("llama")
    assert {id(p) for p in pair.prefill.parameters()} == {id(p) for p in pair.decode.parameters()}


def test_names_and_axes_of_the_cache(pairs, ragged_prompts) -> None:
    _, pair = pairs("llama")
    signature = signature_of(pair.decode)
    shown = {spec.name: [str(axis) for axis in spec.axes] for spec in signature.inputs}
    assert shown["past_key_values.1.key"] == ["batch", "2", "past_0", "8"]
    assert shown["past_positions.0"] == shown["past_mask.0"] == ["batch", "past_0"]
    assert list(shown)[:3] == ["input_ids", "attention_mask", "position_ids"]
    answers = pair.start(*ragged_prompts(2, 7))
    assert answers["present.0.key"].shape == (2, 2, 7, 8)
    assert set(answers) == {*signature_of(pair.prefill).outputs, "present_positions.0", "present_mask.0"}
    assert set(answers) == set(signature.outputs)


def test_rows_that_were_taken_out_of_a_cache_are_as_good_as_masked(pairs, ragged_prompts) -> None:
    """Positions stay the original ones, so windows, rotary angles and linear biases do too."""
    for family in ("llama", "mistral", "gpt2", "mixed", "bloom"):
        _, pair = pairs(family)
        ids, mask = ragged_prompts(2, 19)
        ids, mask = ids[:1], mask[:1]
        cache = pair.start(ids, mask)
        kept = torch.tensor([0, 3, 4, 9, 17, 18])
        shut = dict(cache) | {"present_mask.0": torch.zeros(1, 19).long().index_fill(1, kept, 1)}
        taken = {name: value.index_select(value.dim() // 2, kept) for name, value in cache.items() if name != "logits"}
        assert taken["present.0.key"].shape[2] == taken["present_mask.0"].shape[1] == len(kept)
        new = (torch.tensor([[7, 8]]), torch.ones(1, 2).long(), torch.tensor([[19, 20]]))
        dense, short = (pair.go_on(*new, given)["logits"] for given in (shut, taken))
        torch.testing.assert_close(short, dense, atol=1e-5, rtol=0)
        assert not torch.allclose(short, pair.go_on(*new, cache)["logits"], atol=1e-3), "dropping rows shows"


def test_a_graph_without_explicit_masks_cannot_generate() -> None:
    graph = capture(tiny("bert"), tiny_inputs("bert", batch=2, tokens=6)).graph_module
    with pytest.raises(SiteError, match="cannot generate"):
        Chain(graph).then(FreezeRegularization(), ReadCache(CacheLayout((0, 0))))


def test_a_layout_of_another_depth_is_refused(pairs) -> None:
    graph = capture(pairs("llama")[0], tiny_inputs("llama", batch=2, tokens=6)).graph_module
    with pytest.raises(PassError, match="3 layers"):
        Chain(graph).then(FreezeRegularization(), ReadCache(CacheLayout((0, 0, 0))))
    assert issubclass(PassError, GatefxError)
