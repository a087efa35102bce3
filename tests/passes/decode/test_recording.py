from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import peft
import pytest
import torch

import gatefx
from gatefx.errors import InputError
from gatefx.models.tiny import tiny_decoder, tiny_inputs
from gatefx.runtime.generation.update_records import UpdateRecords

_DATA = [tiny_inputs("llama", batch=4, tokens=24, seed=seed) for seed in range(2)]
_METHODS: dict[str, Any] = {
    "tspeft": "tspeft",
    "gatera": gatefx.methods.GateRA(update="lora"),
    "soft": gatefx.methods.GateRA(update="lora", gate="soft"),
}


@pytest.fixture(scope="module")
def one_layer() -> Any:
    """A Llama of one layer with LoRA on three of its linear layers."""
    model = tiny_decoder("llama")
    model.model.layers, model.config.num_hidden_layers = model.model.layers[:1], 1
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"]))
    random = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=random) * 0.2)
    return adapted.eval()


@pytest.fixture(scope="module")
def gated(one_layer: Any) -> Callable[[str, str], Any]:
    """(method, forms) → it, on half of the tokens of a small Llama; made once."""

    def make(name: str, forms: str) -> Any:
        return gatefx.optimize(one_layer, _METHODS[name], 0.5, data=_DATA, distill_steps=4, forms=forms, progress=False)

    return cache(make)


@pytest.mark.parametrize("name", ["tspeft", "gatera"])
def test_phases_are_counted_apart_and_forms_decide_alike(gated: Any, ragged_prompts: Any, name: str) -> None:
    ids, mask = ragged_prompts()
    found = []
    for forms in ("gathered", "masked"):
        model, records = gated(name, forms), UpdateRecords()
        generation = gatefx.generate(model, ids, mask, max_new_tokens=5, stop=(), records=records)
        plain = gatefx.generate(model, ids, mask, max_new_tokens=5, stop=())
        assert torch.equal(generation.tokens, plain.tokens), "looking changes nothing"
        assert set(records.prefill) == set(records.decode) == {site.name for site in model.sites}
        assert {count.tokens for count in records.prefill.values()} == {int(mask.sum())}
        assert {count.tokens for count in records.decode.values()} == {4 * 4}, "the last token is never read"
        found.append((dict(records.prefill), dict(records.decode)))
    assert found[0] == found[1]
    shares = {count.share for phase in found[0] for count in phase.values()}
    assert min(shares) < max(shares), "gates that all say the same would show nothing"


def test_every_token_takes_the_update_where_everything_is_kept(gated: Any, ragged_prompts: Any) -> None:
    records = UpdateRecords()
    generation = gatefx.generate(
        gated("tspeft", "gathered"), *ragged_prompts(), max_new_tokens=3, stop=(), budget=1.0, records=records
    )
    assert generation.tokens.shape == (4, 3)
    assert {count.share for phase in (records.prefill, records.decode) for count in phase.values()} == {1.0}


def test_soft_gates_are_recorded_as_their_mean(gated: Any) -> None:
    records = UpdateRecords()
    _ = gatefx.generate(gated("soft", "masked"), [[5, 6, 7]], max_new_tokens=3, stop=(), records=records).tokens
    assert all(0 < count.share < 1 for count in records.prefill.values())
    assert {count.tokens for count in records.decode.values()} == {2}


def test_rows_that_stopped_count_no_more(gated: Any) -> None:
    model, prompts = gated("gatera", "gathered"), [[5, 6, 7, 8], [9, 10]]
    free = gatefx.generate(model, prompts, max_new_tokens=6, stop=()).tokens.tolist()
    stop = next(token for token in free[0] if token not in free[1])
    records = UpdateRecords()
    generation = gatefx.generate(model, prompts, max_new_tokens=6, stop=stop, records=records)
    lengths = generation.lengths.tolist()
    assert {count.tokens for count in records.decode.values()} == {lengths[0] + lengths[1] - 1}


def test_models_that_decide_nothing_per_token_are_refused(one_layer: Any, adapted_decoder: Any) -> None:
    ccm = gatefx.optimize(one_layer, "ccm", 2, data=_DATA, distill_steps=1, progress=False)
    with pytest.raises(InputError, match="per generated token"):
        gatefx.generate(ccm, [[5]], records=UpdateRecords())
    both = gatefx.optimize(
        adapted_decoder("llama"), ["tspeft", "masklora"], {"tspeft": 0.5, "masklora": 0.5}, data=_DATA,
        distill_steps=2, progress=False,
    )  # fmt: skip
    with pytest.raises(InputError, match="every token stays"):
        gatefx.generate(both, [[5]], records=UpdateRecords())
