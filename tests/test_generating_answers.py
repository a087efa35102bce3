"""Encoder-decoders generate: the source is read once, answers token by token, as the deployed model answers at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gatefx
from gatefx.errors import BudgetError, InputError
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.decode.engine import engine_of
from gatefx.runtime.generation.update_records import UpdateRecords

_NEW = 10
_METHODS = {
    "ccm": ("ccm", 2),
    "masklora": (gatefx.methods.MaskLoRA(keep=((1, 0.5),), floor=0.0), None),
    "tspeft": ("tspeft", 0.5),
    "gatera": (gatefx.methods.GateRA(update="lora"), 0.5),
    "weightlora": ("weightlora", 3),
}


@cache
def adapted(family: str) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny(family), LoraConfig(r=4, target_modules="all-linear"))
    random = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=random) * 0.3)
    return model.eval()


@pytest.fixture(scope="module")
def deployed() -> Callable[[str, str], Any]:
    """(family, method) → that method deployed on it; made once."""

    @cache
    def make(family: str, name: str) -> Any:
        method, budget = _METHODS[name]
        data = [tiny_inputs(family, batch=4, tokens=14, seed=seed) for seed in range(2)]
        return gatefx.optimize(adapted(family), method, budget, data=data, distill_steps=3, progress=False)

    return make


def sources(family: str) -> tuple[Tensor, Tensor]:
    given = tiny_inputs(family, batch=4, tokens=13, seed=7)
    return given["input_ids"], given["attention_mask"]


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("bart", "masklora"),
        ("t5", "ccm"),
        *(pytest.param("t5", name, marks=pytest.mark.slow) for name in _METHODS if name != "ccm"),
        *(pytest.param("bart", name, marks=pytest.mark.slow) for name in _METHODS if name != "masklora"),
    ],
)
def test_tokens_are_those_of_the_whole_answer_read_at_once(deployed: Any, family: str, name: str) -> None:
    model, (ids, mask) = deployed(family, name), sources(family)
    generation = gatefx.generate(model, ids, mask, max_new_tokens=_NEW, stop=())
    start = torch.full((4, 1), model.config.decoder_start_token_id)
    answer = torch.cat([start, generation.tokens], 1)
    whole = model(input_ids=ids, attention_mask=mask, decoder_input_ids=answer).logits
    assert torch.equal(generation.tokens, whole[:, :-1].argmax(-1))
    torch.testing.assert_close(generation.logits, whole[:, _NEW - 1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("bart", "masklora"),
        *(pytest.param("t5", name, marks=pytest.mark.slow) for name in _METHODS),
        *(pytest.param("bart", name, marks=pytest.mark.slow) for name in _METHODS if name != "masklora"),
    ],
)
def test_the_exported_models_generate_the_same(deployed: Any, family: str, name: str, tmp_path: Path) -> None:
    model, (ids, mask) = deployed(family, name), sources(family)
    generation = gatefx.generate(model, ids, mask, max_new_tokens=_NEW, stop=())
    gatefx.export(model, tmp_path / "out", backend="onnxruntime", generate=True)
    session = gatefx.load(tmp_path / "out")
    exported = gatefx.generate(session, ids, mask, max_new_tokens=_NEW, stop=())
    assert torch.equal(exported.tokens, generation.tokens)
    torch.testing.assert_close(exported.logits, generation.logits, atol=1e-3, rtol=0)  # rounding of ten steps
    if name == "masklora":
        shorter, wanted = (
            gatefx.generate(m, ids, mask, max_new_tokens=3, stop=(), budget=0.3) for m in (session, model)
        )
        assert torch.equal(shorter.tokens, wanted.tokens)
        assert shorter.cache.rows == wanted.cache.rows < generation.cache.rows
    assert exported.cache.rows == generation.cache.rows
    assert exported.cache.bytes == generation.cache.bytes


@pytest.mark.parametrize("share", [0.7, 0.5, 0.3])
def test_tokens_of_the_source_that_are_dropped_are_not_cached_and_mean_what_masking_means(
    deployed: Any, share: float
) -> None:
    model, (ids, mask) = deployed("bart", "masklora"), sources("bart")
    short, cache = engine_of(model).prefill(ids, mask, share)
    dense, masked = engine_of(model, masked=True).prefill(ids, mask, share)
    torch.testing.assert_close(short, dense, atol=1e-5, rtol=0)
    assert cache.rows[:2] == masked.rows[:2] == (1, 1)
    assert cache.rows[2:] < masked.rows[2:] == (13, 13)
    kept = masked.entries["past_cross_mask"]
    assert torch.equal(cache.entries["past_cross_mask"].sum(1), kept.sum(1))
    assert (kept <= mask).all()


def test_with_every_token_kept_it_is_the_untouched_models_own_text(deployed: Any) -> None:
    model, (ids, mask) = deployed("bart", "masklora"), sources("bart")
    wanted = adapted("bart").generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=_NEW, do_sample=False, use_cache=True, eos_token_id=None,
        forced_eos_token_id=None,
    )  # fmt: skip
    found = gatefx.generate(model, ids, mask, max_new_tokens=_NEW, stop=(), budget=1.0).tokens
    assert torch.equal(found, wanted[:, 1:])


def test_lists_left_padding_samples_stops_and_going_on(deployed: Any) -> None:
    model, (ids, mask) = deployed("t5", "ccm"), sources("t5")
    whole = gatefx.generate(model, ids, mask, max_new_tokens=_NEW, stop=()).tokens
    rows = [row[real > 0].tolist() for row, real in zip(ids, mask, strict=True)]
    assert torch.equal(gatefx.generate(model, rows, max_new_tokens=_NEW, stop=()).tokens, whole)
    first = gatefx.generate(model, ids, mask, max_new_tokens=3, stop=())
    assert torch.equal(first.tokens, whole[:, :3])
    further = gatefx.generate(model, whole[:, 3:5], max_new_tokens=_NEW - 5, stop=(), cache=first.cache)
    assert torch.equal(further.tokens, whole[:, 5:]), "tokens of the answer go on from its cache"
    drawn = [gatefx.generate(model, ids, mask, max_new_tokens=4, temperature=1.0, seed=3).tokens for _ in range(2)]
    assert torch.equal(*drawn)
    ended = gatefx.generate(model, ids, mask, max_new_tokens=_NEW, stop=int(whole[0, 0]))
    assert ended.lengths[0] == 1
    rest = [row for row in range(4) if not (whole[row] == whole[0, 0]).any()]
    assert rest, "a row goes on after the first has stopped"
    assert torch.equal(ended.tokens[rest], whole[rest])
    with pytest.raises(InputError, match="go on together"):
        gatefx.generate(model, whole[:, :1], cache=ended.cache)


def test_wrong_use_says_what_to_do(deployed: Any) -> None:
    model, (ids, mask) = deployed("bart", "masklora"), sources("bart")
    with pytest.raises(InputError, match="A prompt is empty"):
        gatefx.generate(model, ids, torch.zeros_like(mask))
    with pytest.raises(InputError, match="longer than the model has positions"):
        gatefx.generate(model, torch.full((1, 129), 7))
    with pytest.raises(InputError, match="past the model's positions"):
        gatefx.generate(model, ids, mask, max_new_tokens=129)
    gatefx.generate(model, torch.full((1, 128), 7), max_new_tokens=128)  # each has positions of its own
    with pytest.raises(BudgetError):
        gatefx.generate(model, ids, mask, budget=0)
    cache = gatefx.generate(model, ids, mask, max_new_tokens=1, budget=0.7).cache
    with pytest.raises(InputError, match="another budget"):
        gatefx.generate(model, ids[:, :1], budget=0.5, cache=cache)
    with pytest.raises(InputError, match="without an encoder"):
        model.for_transformers()


@pytest.mark.slow
def test_what_an_encoder_decoder_decides_per_token_is_not_recorded(deployed: Any) -> None:
    with pytest.raises(InputError, match="not recorded"):
        gatefx.generate(deployed("t5", "tspeft"), *sources("t5"), records=UpdateRecords())
