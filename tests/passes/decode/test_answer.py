from __future__ import annotations

import pytest
import torch

from gatefx.errors import SiteError
from gatefx.models.tiny import tiny_inputs
from gatefx.passes.chain import Chain
from gatefx.passes.decode.answer import ReadAnswer
from gatefx.passes.graph.signature import signature_of
from gatefx.passes.harden.freeze import FreezeRegularization

_NEW = 20


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_tokens_and_logits_are_those_of_the_models_own_generate(answering, family: str) -> None:
    made = answering(family)
    source = tiny_inputs(family, 4, 13, seed=2)
    ids, mask = source["input_ids"], source["attention_mask"]
    wanted = made.model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=_NEW,
        do_sample=False,
        eos_token_id=None,
        forced_eos_token_id=None,
        use_cache=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens, cache, logits = wanted.sequences[:, :1], made.start(ids, mask), []
    for _ in range(_NEW):
        found, cache = made.go_on(tokens, cache)
        logits.append(found[:, -1])
        tokens = logits[-1].argmax(-1, keepdim=True)
    torch.testing.assert_close(torch.stack(logits, 1), torch.stack(wanted.logits, 1), atol=1e-5, rtol=0)
    assert torch.equal(torch.stack(logits, 1).argmax(-1), wanted.sequences[:, 1:])


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("cut", [1, 4, 11])
def test_several_tokens_at_once_are_the_same_tokens_one_by_one(answering, family: str, cut: int) -> None:
    made = answering(family)
    source = tiny_inputs(family, 3, 22, seed=5)
    with torch.no_grad():
        whole = made.model(**source).logits
    answer = source["decoder_input_ids"]
    first, cache = made.go_on(answer[:, :cut], made.start(source["input_ids"], source["attention_mask"]))
    rest, cache = made.go_on(answer[:, cut:], cache)
    torch.testing.assert_close(torch.cat([first, rest], 1), whole, atol=1e-5, rtol=0)
    assert cache["past_key_values.1.value"].shape == (3, 4, 12, 8)


def test_rows_of_the_source_that_were_taken_out_are_as_good_as_masked(answering) -> None:
    made = answering("t5")
    source = tiny_inputs("t5", 1, 15)
    cache = made.start(source["input_ids"], source["attention_mask"])
    kept = torch.tensor([0, 2, 3, 9, 14])
    shut = cache | {"past_cross_mask": torch.zeros(1, 15).long().index_fill(1, kept, 1)}
    taken = {name: v.index_select(v.dim() // 2, kept) if "cross" in name else v for name, v in cache.items()}
    start = torch.tensor([[0]])
    dense, short = made.go_on(start, shut)[0], made.go_on(start, taken)[0]
    torch.testing.assert_close(short, dense, atol=1e-5, rtol=0)
    assert not torch.allclose(short, made.go_on(start, cache)[0], atol=1e-3), "dropping rows shows"


def test_names_and_axes(answering) -> None:
    signature = signature_of(answering("bart").decode)
    shown = {spec.name: [str(axis) for axis in spec.axes] for spec in signature.inputs}
    assert shown["decoder_input_ids"] == ["batch", "length_2"]
    assert shown["past_key_values.1.key"] == ["batch", "4", "past_0", "8"]
    assert shown["past_cross.0.value"] == ["batch", "4", "sequence", "8"]
    assert shown["past_cross_mask"] == ["batch", "sequence"]
    assert not {"input_ids", "attention_mask"} & set(shown)


def test_a_graph_without_an_answer_is_refused(answering) -> None:
    with pytest.raises(SiteError, match="its inputs are input_ids, attention_mask, not"):
        Chain(answering("t5").encode).then(FreezeRegularization(), ReadAnswer())
