"""Exported decoders whose cache has a fixed size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import onnx
import pytest
import torch

import gatefx
from gatefx.errors import InputError
from gatefx.models.tiny import tiny_inputs
from gatefx.runtime.cache_names import DECODE_FILE
from gatefx.runtime.sessions.decoder import OnnxDecoder


@pytest.fixture(scope="module")
def pruned(pruned_decoder: Any, tmp_path_factory: Any) -> tuple[Any, Path]:
    """(masklora on a small Mistral with two cuts, its folder)."""
    model = pruned_decoder("mistral", ((0, 0.7), (1, 0.5)))
    model.budget = 0.5
    return model, gatefx.export(model, tmp_path_factory.mktemp("static") / "out", generate="static")


@pytest.fixture(scope="module")
def session(pruned: Any) -> Any:
    return gatefx.load(pruned[1], threads=1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_tokens_are_those_of_a_cache_that_grows(pruned: Any, session: Any, ragged_prompts: Any, side: str) -> None:
    prompt = ragged_prompts(4, 22, side)
    for share in (1.0, 0.5, 0.3):
        options = {"max_new_tokens": 8, "stop": (), "budget": share}
        grown = gatefx.generate(pruned[0], *prompt, **options)
        for length in (None, 29, 40):
            static = gatefx.generate(session, *prompt, max_cache_len=length, **options)
            assert torch.equal(static.tokens, grown.tokens)
            torch.testing.assert_close(static.logits, grown.logits, atol=1e-4, rtol=0)


def test_the_runtime_writes_into_one_set_of_buffers(session: Any, ragged_prompts: Any) -> None:
    generation = gatefx.generate(session, *ragged_prompts(4, 22), max_new_tokens=8, stop=(), max_cache_len=40)
    before = {name: value.data_ptr() for name, value in generation._cache.entries.items()}
    assert generation.prefill.rows == (16 + 18, 11 + 18), "what stays of 22 tokens, and room for 18 more"
    assert generation.prefill.bytes == (34 + 29) * 4 * 2 * 2 * 8 * 4, "batch, keys and values, heads, channels, bytes"
    _ = generation.tokens
    assert {name: value.data_ptr() for name, value in generation.cache.entries.items()} == before


def test_shapes_of_a_step_are_said_to_stay(pruned: Any) -> None:
    graph = onnx.load(pruned[1] / DECODE_FILE, load_external_data=False).graph
    shapes = {value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in
              (*graph.input, *graph.output)}  # fmt: skip
    assert shapes["present.1.key"] == shapes["past_key_values.1.key"] == ["batch", 2, "past_2", 8]
    assert shapes["present_mask.1"] == shapes["past_mask.1"] == ["batch", "past_1"]
    assert shapes["cache_position.2"] == ["sequence"]
    assert json.loads((pruned[1] / "gatefx.json").read_text())["decoder"]["cache"] == "static"


def test_going_past_it_is_refused_before_any_work(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    start = gatefx.generate(session, [[5, 6, 7]], max_new_tokens=2, stop=(), max_cache_len=5)
    _ = start.tokens
    cache = start.cache

    def worked(*_: object, **__: object) -> None:
        raise AssertionError("the decoder ran")

    monkeypatch.setattr(OnnxDecoder, "_bound", worked)
    with pytest.raises(InputError, match="max_cache_len of at least 10"):
        gatefx.generate(session, [[5, 6, 7]], max_new_tokens=8, max_cache_len=9)
    with pytest.raises(InputError, match="past its static cache"):
        gatefx.generate(session, [[8]], max_new_tokens=1, cache=cache)
    cache.static.after(1)
    with pytest.raises(InputError, match="were overwritten"):
        gatefx.generate(session, [[8]], max_new_tokens=1, cache=cache)


def test_gates_whose_budget_acts_in_a_step_write_new_buffers(adapted_decoder: Any, tmp_path: Path) -> None:
    """ONNX Runtime binds no replaced buffers: a budget of a call's own answers with copies, and the same tokens."""
    data = [tiny_inputs("llama", batch=4, tokens=24, seed=seed) for seed in range(2)]
    model = gatefx.optimize(adapted_decoder("llama"), "tspeft", 0.5, data=data, distill_steps=3, progress=False)
    session = gatefx.load(gatefx.export(model, tmp_path / "out", generate="static"), threads=1)
    for budget in (0.5, 0.8):
        options = {"max_new_tokens": 6, "stop": (), "budget": budget}
        ours, theirs = (gatefx.generate(engine, [[5, 6, 7, 8], [9, 10]], **options) for engine in (model, session))
        assert torch.equal(theirs.tokens, ours.tokens)
    with pytest.raises(InputError, match="one of True, False, 'static', 'parts', 'optimum'"):
        gatefx.export(model, tmp_path / "other", generate="fixed")  # type: ignore[arg-type]  # wrong on purpose
    grows = gatefx.load(gatefx.export(model, tmp_path / "grows", generate=True), threads=1)
    with (
        patch.object(type(grows), "prefill", side_effect=AssertionError("the prompt was read")),
        pytest.raises(InputError, match="exported with a cache that grows"),
    ):
        gatefx.generate(grows, [[5, 6]], max_new_tokens=2, max_cache_len=8)
