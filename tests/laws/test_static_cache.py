"""Laws of caches of fixed size: whatever room they have, they generate what caches that grow do."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

import gatefx

_TWO = ((0, 0.7), (1, 0.5))


@pytest.mark.parametrize(
    "family", ["gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "mistral", "bloom"))]
)
def test_a_fixed_size_changes_no_token(family: str, pruned_decoder: Any, ragged_prompts: Any) -> None:
    @settings(max_examples=10, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        batch=st.integers(1, 5),
        tokens=st.integers(1, 30),
        side=st.sampled_from(["left", "right"]),
        seed=st.integers(0, 1000),
        share=st.floats(0.01, 1.0),
        steps=st.integers(1, 6),
        spare=st.integers(0, 9),
    )
    def holds(batch: int, tokens: int, side: str, seed: int, share: float, steps: int, spare: int) -> None:
        model = pruned_decoder(family, _TWO, torch.float64)
        prompt = ragged_prompts(batch, tokens, side, seed)
        options = {"max_new_tokens": steps, "stop": (), "budget": share}
        grown = gatefx.generate(model, *prompt, **options)
        static = gatefx.generate(model, *prompt, max_cache_len=tokens + steps - 1 + spare, **options)
        assert torch.equal(static.tokens, grown.tokens)
        torch.testing.assert_close(static.logits, grown.logits, atol=1e-6, rtol=0)  # logits are kept in float32
        behind = steps - 1 + spare
        assert static.decode.rows == tuple(rows + behind for rows in grown.prefill.rows)

    holds()
