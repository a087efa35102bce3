"""Laws of prompts in parts whose tokens are dropped: a compact cache generates what the masked one does."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from gatefx.passes.decode.engine import engine_of
from gatefx.passes.decode.part_choices import StreamChoices
from gatefx.runtime.generation.loop import Generation, start_generation
from gatefx.runtime.generation.sampling import Sampling

ONE, TWO = ((1, 0.5),), ((0, 0.7), (1, 0.5))
CASES = [
    ("llama", ONE),
    *(
        pytest.param(family, TWO, marks=pytest.mark.slow)
        for family in ("mistral", "llama", "gpt2", "opt", "qwen3", "phi")
    ),
]
COLD = 12  # small models have too few positions to get warm otherwise


@pytest.fixture(autouse=True)
def _soon_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gatefx.passes.decode.programs.StreamChoices", lambda: StreamChoices(cold=COLD))


def generation(model: Any, prompt: Any, chunk: int | None, *, masked: bool = False) -> Generation:
    return start_generation(
        engine_of(model, masked=masked), *prompt, max_new_tokens=4, sampling=Sampling(), stop=(), budget=None,
        cache=None, chunk=chunk,
    )  # fmt: skip


@pytest.mark.parametrize(("family", "cuts"), CASES)
def test_compacted_is_masked(family: str, cuts: Any, pruned_decoder: Any, ragged_prompts: Any) -> None:
    model = pruned_decoder(family, cuts, torch.float64)
    model.programs._forms.clear()

    @settings(max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        batch=st.integers(1, 4),
        tokens=st.integers(1, 40),
        chunk=st.integers(1, 45),
        side=st.sampled_from(["left", "right"]),
        seed=st.integers(0, 1000),
        share=st.sampled_from([0.7, 0.5, 0.3]) | st.floats(0.01, 0.99),
    )
    def holds(batch: int, tokens: int, chunk: int, side: str, seed: int, share: float) -> None:
        model.budget = share
        prompt = ragged_prompts(batch, tokens, side, seed)
        short, dense = (generation(model, prompt, chunk, masked=masked) for masked in (False, True))
        for _ in range(3):
            assert torch.equal(next(short), next(dense))
            torch.testing.assert_close(short.logits, dense.logits, atol=1e-6, rtol=0)  # logits are kept in float32
        for group in range(1, len({name for name in short.cache.entries if name.startswith("past_mask")})):
            seen, shown = (cache.entries[f"past_mask.{group}"] > 0 for cache in (short.cache, dense.cache))
            places, meant = (cache.entries[f"past_positions.{group}"] for cache in (short.cache, dense.cache))
            for row in range(batch):
                assert torch.equal(places[row][seen[row]], meant[row][shown[row]])
        assert max(short.prefill.rows) <= max(dense.prefill.rows)

    holds()
    model.programs._forms.clear()


@pytest.mark.parametrize("side", ["left", "right"])
def test_one_part_while_cold_is_the_prompt_read_at_once(
    pruned_decoder: Any, ragged_prompts: Any, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatefx.passes.decode.programs.StreamChoices", StreamChoices)
    model = pruned_decoder("llama", TWO, torch.float64)
    model.programs._forms.clear()
    for share in (0.7, 0.5, 0.3):
        model.budget = share
        prompt = ragged_prompts(4, 22, side)
        whole, found = generation(model, prompt, None), generation(model, prompt, 22)
        assert torch.equal(found.tokens, whole.tokens)
        torch.testing.assert_close(found.logits, whole.logits, atol=1e-6, rtol=0)
        assert found.prefill.rows == whole.prefill.rows
