"""Every method on a small Bloom, whose positions are a linear bias on scores (ALiBi)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import gatefx
from gatefx.models.tiny import tiny_inputs
from gatefx.passes.decode.engine import engine_of
from gatefx.runtime.generation.loop import start_generation
from gatefx.runtime.generation.sampling import Sampling

from .sampling import rest_slow

METHODS: dict[str, tuple[Any, Any]] = {
    "masklora": (gatefx.methods.MaskLoRA(keep={0: 0.7, 1: 0.5}, floor=0.0), 0.5),
    "ccm": (gatefx.methods.CCM(d_router=8, prefix=4), 2),
    "tspeft": (gatefx.methods.TSPEFT(), 0.5),
    "gatera": (gatefx.methods.GateRA(update="lora"), 0.5),
    "weightlora": (gatefx.methods.WeightLoRA(), 5),
}


@pytest.fixture(scope="module")
def deployed(adapted_decoder: Any) -> Any:
    """Method → a Bloom with LoRA that it was deployed on; made once."""

    @cache
    def make(name: str) -> Any:
        data = [tiny_inputs("bloom", batch=4, tokens=24, seed=seed) for seed in range(2)]
        return gatefx.optimize(
            adapted_decoder("bloom"), *METHODS[name], data=data, distill_steps=3, verify=True, progress=False
        )

    return make


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", rest_slow(METHODS))
def test_compacted_generates_what_masked_does(deployed: Any, ragged_prompts: Any, name: str, side: str) -> None:
    short, dense = (
        start_generation(
            engine_of(deployed(name), masked=masked), *ragged_prompts(4, 22, side), max_new_tokens=6,
            sampling=Sampling(), stop=(), budget=None, cache=None,
        )
        for masked in (False, True)
    )  # fmt: skip
    assert torch.equal(short.tokens, dense.tokens)
    torch.testing.assert_close(short.logits, dense.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", rest_slow(METHODS))
def test_onnx_runtime_generates_torchs_tokens(deployed: Any, ragged_prompts: Any, name: str, tmp_path: Path) -> None:
    fast = deployed(name)
    session = gatefx.load(gatefx.export(fast, tmp_path / "out", generate=True), threads=1)
    for side in ("left", "right"):
        prompts = ragged_prompts(4, 22, side)
        ours, theirs = (gatefx.generate(engine, *prompts, max_new_tokens=8, stop=()) for engine in (fast, session))
        assert torch.equal(ours.tokens, theirs.tokens)
        torch.testing.assert_close(theirs.logits, ours.logits, atol=1e-4, rtol=1e-4)


def test_kept_tokens_weigh_by_their_places_in_the_text(deployed: Any, ragged_prompts: Any) -> None:
    """Rows of a cache that said they stand side by side would get another bias, and other logits."""
    model = deployed("masklora")
    engine = engine_of(model)
    cache = engine.prefill(*ragged_prompts(3, 20), engine.resolved(0.3))[1]
    closed = {
        name: torch.arange(value.shape[1]).expand_as(value) if "positions" in name else value
        for name, value in cache.entries.items()
    }
    token = torch.full((3, 1), 7)
    right, wrong = (
        engine.decode(token, torch.ones_like(token), type(cache)(entries, *list(vars(cache).values())[1:]))[0]
        for entries in (cache.entries, closed)
    )
    assert not torch.allclose(right, wrong, atol=1e-3)
