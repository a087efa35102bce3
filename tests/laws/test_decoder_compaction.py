"""Laws of decoders whose prompts lose tokens: a compact cache generates what the masked one does, in any shape."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from gatefx.deploy import optimize
from gatefx.models.configs.masklora import MaskLoRA
from gatefx.models.tiny import DECODERS, tiny_inputs
from gatefx.passes.decode.engine import engine_of
from gatefx.runtime.generation.loop import Generation, start_generation
from gatefx.runtime.generation.sampling import Sampling

from ..sampling import rest_slow

ONE, TWO = ((1, 0.5),), ((0, 0.7), (1, 0.5))
FAST = [("llama", ONE)]
CASES = [
    *FAST,
    *(
        pytest.param(family, cuts, marks=pytest.mark.slow)
        for family in DECODERS
        for cuts in (ONE, TWO)
        if (family, cuts) not in FAST
    ),
]
SIDES = ["left", "right"]


def generation(model: Any, ids: torch.Tensor, mask: torch.Tensor, *, masked: bool, steps: int) -> Generation:
    return start_generation(
        engine_of(model, masked=masked), ids, mask, max_new_tokens=steps, sampling=Sampling(), stop=(), budget=None,
        cache=None,
    )  # fmt: skip


@pytest.mark.parametrize(("family", "cuts"), CASES)
def test_compacted_is_masked(family: str, cuts: Any, pruned_decoder: Any, ragged_prompts: Any, tolerance: Any) -> None:
    @settings(max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        batch=st.integers(1, 5),
        tokens=st.integers(1, 30),
        side=st.sampled_from(SIDES),
        seed=st.integers(0, 1000),
        share=st.sampled_from([0.7, 0.5, 0.3]) | st.floats(0.01, 1.0),
    )
    def holds(batch: int, tokens: int, side: str, seed: int, share: float) -> None:
        model = pruned_decoder(family, cuts, torch.float64)
        model.budget = max(share, 0.01)
        ids, mask = ragged_prompts(batch, tokens, side, seed)
        short, dense = (generation(model, ids, mask, masked=masked, steps=4) for masked in (False, True))
        for _ in range(3):
            assert torch.equal(next(short), next(dense))
            torch.testing.assert_close(short.logits, dense.logits, atol=1e-6, rtol=0)  # logits are kept in float32
        _same_kept_rows(short.cache, dense.cache, tolerance[torch.float64])

    holds()


def _same_kept_rows(short: Any, dense: Any, close: float) -> None:
    """Row by row, what the compact cache holds is what the masked one shows, at the positions it shows."""
    for group in range(1, sum(name.startswith("past_mask") for name in short.entries)):
        seen, shown = (cache.entries[f"past_mask.{group}"] > 0 for cache in (short, dense))
        assert torch.equal(seen.sum(1), shown.sum(1))
        assert int(seen.sum(1).max()) == seen.shape[1], "the cache holds no row more than its fullest sequence"
        places, meant = (cache.entries[f"past_positions.{group}"] for cache in (short, dense))
        for row in range(len(seen)):
            assert torch.equal(places[row][seen[row]], meant[row][shown[row]])


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", rest_slow(["mistral", "gpt2", "llama", "bloom", "phi"]))
def test_keeping_every_token_is_the_untouched_model(
    family: str, side: str, pruned_decoder: Any, adapted_decoder: Any, ragged_prompts: Any
) -> None:
    model, untouched = pruned_decoder(family, TWO), adapted_decoder(family)
    model.budget = 1.0
    ids, mask = ragged_prompts(4, 22, side)
    left_ids, left_mask = ragged_prompts(4, 22, "left")
    wanted = untouched.generate(
        input_ids=left_ids, attention_mask=left_mask, max_new_tokens=12, do_sample=False, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    assert torch.equal(generation(model, ids, mask, masked=False, steps=12).tokens, wanted[:, 22:])


@pytest.mark.parametrize("family", rest_slow(["llama", "gpt2"]))
def test_scores_of_the_path_choose_too(family: str, pruned_decoder: Any, ragged_prompts: Any) -> None:
    model = pruned_decoder(family, ONE, torch.float64, "path")
    for share in (0.7, 0.3):
        model.budget = share
        ids, mask = ragged_prompts(3, 20, "left")
        short, dense = (generation(model, ids, mask, masked=masked, steps=5) for masked in (False, True))
        assert torch.equal(short.tokens, dense.tokens)
        torch.testing.assert_close(short.logits, dense.logits, atol=1e-6, rtol=0)
        assert short.prefill.rows[1] < short.prefill.rows[0] == 20


def test_more_ends_can_be_kept(adapted_decoder: Any, ragged_prompts: Any) -> None:
    data = [tiny_inputs("llama", batch=4, tokens=24)]
    method = MaskLoRA(keep={1: 0.5}, sinks=3, recent=4, floor=0.0)
    model = optimize(adapted_decoder("llama"), method, data=data, distill_steps=3, progress=False)
    model.budget = 0.01
    ids, mask = ragged_prompts(4, 22, "left")
    entries = generation(model, ids, mask, masked=False, steps=1).cache.entries
    for row, length in enumerate(mask.sum(1).tolist()):
        places = entries["past_positions.1"][row][entries["past_mask.1"][row] > 0].tolist()
        assert places == sorted({*range(min(3, length)), *range(max(0, length - 4), length)})


def test_the_first_and_the_last_token_are_always_kept(pruned_decoder: Any, ragged_prompts: Any) -> None:
    model = pruned_decoder("llama", TWO)
    model.budget = 0.01
    for side in SIDES:
        ids, mask = ragged_prompts(4, 22, side)
        entries = generation(model, ids, mask, masked=False, steps=1).cache.entries
        for group in (1, 2):
            seen = entries[f"past_mask.{group}"] > 0
            for row, places in enumerate(entries[f"past_positions.{group}"]):
                kept = set(places[seen[row]].tolist())
                assert {0, int(mask[row].sum()) - 1} <= kept
