"""Exported decoders that read prompts in parts, of which masklora drops tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

import gatefx
from gatefx.errors import InputError
from gatefx.models.tiny import tiny_inputs
from gatefx.runtime.cache_names import PART_FILE


@pytest.fixture(scope="module")
def pruned(pruned_decoder: Any, tmp_path_factory: Any) -> tuple[Any, Path]:
    """(masklora on a small Mistral with two cuts, its folder)."""
    model = pruned_decoder("mistral", ((0, 0.7), (1, 0.5)))
    model.budget = 0.5
    return model, gatefx.export(model, tmp_path_factory.mktemp("parts") / "out", generate="parts")


@pytest.mark.parametrize("side", ["left", "right"])
def test_parts_keep_the_tokens_that_torch_keeps(pruned: Any, ragged_prompts: Any, side: str) -> None:
    model, session = pruned[0], gatefx.load(pruned[1], threads=1)
    prompt = ragged_prompts(4, 22, side)
    for share in (0.7, 0.5, 0.3):
        for chunk in (None, 22, 8):
            options = {"max_new_tokens": 6, "stop": (), "budget": share, "chunk": chunk}
            ours, theirs = (gatefx.generate(engine, *prompt, **options) for engine in (model, session))
            assert torch.equal(theirs.tokens, ours.tokens)
            assert theirs.prefill.rows == ours.prefill.rows
            torch.testing.assert_close(theirs.logits, ours.logits, atol=1e-4, rtol=0)


def test_generated_tokens_are_dropped_alike(pruned: Any, ragged_prompts: Any) -> None:
    options = {"max_new_tokens": 9, "stop": (), "budget": 0.5, "evict_every": 4}
    engines = (pruned[0], gatefx.load(pruned[1], threads=1))
    ours, theirs = (gatefx.generate(engine, *ragged_prompts(3, 20), **options) for engine in engines)
    assert torch.equal(theirs.tokens, ours.tokens)
    assert theirs.cache.rows == ours.cache.rows


def test_its_weights_are_those_of_the_prefill(pruned: Any) -> None:
    graph = onnx.load(pruned[1] / PART_FILE, load_external_data=False).graph
    shared = {entry.value for t in graph.initializer for entry in t.external_data if entry.key == "location"}
    assert shared == {"model.onnx.data"}
    names = {value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in
             graph.input}  # fmt: skip
    assert names["prompt_end"] == ["batch"]
    assert names["past_scores.hard_token_gate_1"] == ["batch", 129]
    assert json.loads((pruned[1] / "gatefx.json").read_text())["decoder"]["streams"] == ["masklora"]


def test_what_has_no_such_graph_says_so(adapted_decoder: Any, pruned: Any, tmp_path: Path) -> None:
    data = [tiny_inputs("llama", batch=2, tokens=8)]
    model = gatefx.optimize(adapted_decoder("llama"), "weightlora", 3, data=data, progress=False)
    with pytest.raises(InputError, match="chooses among the tokens of a part"):
        gatefx.export(model, tmp_path / "out", generate="parts")
    assert not (tmp_path / "out").exists()
    session = gatefx.load(gatefx.export(pruned[0], tmp_path / "whole", generate=True), threads=1)
    with pytest.raises(InputError, match=r"masklora at budget 0\.5"):
        gatefx.generate(session, [[5] * 9], chunk=4)
