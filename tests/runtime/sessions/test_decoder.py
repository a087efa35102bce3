from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

import gatefx
from gatefx.errors import ArtifactError, BudgetError, InputError
from gatefx.models.tiny import tiny_inputs
from gatefx.runtime.cache_names import DECODE_FILE
from gatefx.runtime.sessions.decoder import OnnxDecoder
from gatefx.runtime.sessions.onnxruntime import OnnxSession

_CUTS = ((0, 0.7), (1, 0.5))


@pytest.fixture(scope="module")
def pruned(pruned_decoder: Any, tmp_path_factory: Any) -> tuple[Any, Path]:
    """(masklora on a small Mistral with two cuts, its folder)."""
    model = pruned_decoder("mistral", _CUTS)
    model.budget = 0.5
    return model, gatefx.export(model, tmp_path_factory.mktemp("pruned") / "out", generate=True)


@pytest.fixture(scope="module")
def routed(adapted_decoder: Any, tmp_path_factory: Any) -> tuple[Any, Path]:
    """(ccm on a small GPT-2, its folder)."""
    data = [tiny_inputs("gpt2", batch=4, tokens=24, seed=seed) for seed in range(2)]
    model = gatefx.optimize(adapted_decoder("gpt2"), "ccm", 2, data=data, distill_steps=5, progress=False)
    return model, gatefx.export(model, tmp_path_factory.mktemp("routed") / "out", generate=True)


@pytest.mark.parametrize("side", ["left", "right"])
def test_tokens_are_torchs_at_every_budget(pruned: Any, ragged_prompts: Any, side: str) -> None:
    model, folder = pruned
    session = gatefx.load(folder, threads=1)
    for share in (1.0, 0.7, 0.5, 0.3):
        prompt = ragged_prompts(4, 22, side)
        ours, theirs = (
            gatefx.generate(engine, *prompt, max_new_tokens=8, stop=(), budget=share) for engine in (model, session)
        )
        assert torch.equal(ours.tokens, theirs.tokens)
        torch.testing.assert_close(theirs.logits, ours.logits, atol=1e-4, rtol=0)
        assert (ours.decode.rows, ours.decode.bytes) == (theirs.decode.rows, theirs.decode.bytes)
    assert session.budget == 0.5, "a call's budget is its own"


def test_ranks_hold_over_a_generation_at_the_budget_of_its_prompt(routed: Any, ragged_prompts: Any) -> None:
    model, folder = routed
    session = gatefx.load(folder, threads=1)
    for ranks in (1, 2):
        ours, theirs = (
            gatefx.generate(engine, *ragged_prompts(), max_new_tokens=6, stop=(), budget=ranks)
            for engine in (model, session)
        )
        assert torch.equal(ours.tokens, theirs.tokens)


def test_memory_follows_the_kept_tokens(pruned: Any) -> None:
    session = gatefx.load(pruned[1], threads=1)
    prompt = [list(range(5, 65))]
    sizes = {
        share: gatefx.generate(session, prompt, max_new_tokens=1, budget=share).prefill.bytes for share in (1, 0.5)
    }
    assert sizes[1] == 60 * 2 * 2 * 2 * 8 * 4, "tokens · layers · keys and values · heads · channels · bytes"
    assert sizes[0.5] == (42 + 30) / 120 * sizes[1], "70 % behind the first cut, half behind the second"


def test_the_cache_stays_with_the_runtime_and_can_be_gone_on_from(pruned: Any) -> None:
    session = gatefx.load(pruned[1], threads=1)
    start = gatefx.generate(session, [[5, 6, 7, 8]], max_new_tokens=3, stop=(), budget=1.0)
    said = start.tokens[0].tolist()
    entries = start.cache.entries
    assert all(type(value).__name__ == "OrtValue" for value in entries.values())
    went_on = gatefx.generate(session, [[9]], max_new_tokens=3, stop=(), budget=1.0, cache=start.cache)
    whole = gatefx.generate(session, [[5, 6, 7, 8, *said, 9]], max_new_tokens=3, stop=(), budget=1.0)
    assert torch.equal(went_on.tokens, whole.tokens)
    with pytest.raises(InputError, match="another budget"):
        gatefx.generate(session, [[9]], budget=0.5, cache=start.cache)
    with pytest.raises(InputError, match="another model"):
        gatefx.generate(pruned[0], [[9]], budget=1.0, cache=start.cache)


def test_weights_stand_in_the_folder_once_and_axes_have_names(pruned: Any) -> None:
    model, folder = pruned
    decode = onnx.load(folder / DECODE_FILE, load_external_data=False)
    inside = [tensor for tensor in decode.graph.initializer if tensor.data_location != onnx.TensorProto.EXTERNAL]
    biggest = max(parameter.numel() for parameter in model.programs.decode.parameters())
    assert all(len(tensor.raw_data) < 4 * biggest for tensor in inside)
    shared = {entry.value for t in decode.graph.initializer for entry in t.external_data if entry.key == "location"}
    assert shared == {"model.onnx.data"}
    named = {value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in
             decode.graph.input}  # fmt: skip
    assert named["past_key_values.0.key"] == ["batch", 2, "past_1", 8]
    assert named["past_mask.2"] == ["batch", "past_2"]
    assert named["input_ids"] == ["batch", "sequence"]


def test_as_a_session_it_is_the_prefill(pruned: Any) -> None:
    session = gatefx.load(pruned[1])
    assert isinstance(session, OnnxDecoder)
    assert isinstance(session, OnnxSession)
    ids = torch.tensor([[5, 6, 7, 8]])
    answers = session(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=torch.arange(4)[None])
    assert answers["logits"].shape == (1, 1, 100)
    assert answers["present.1.key"].shape == (1, 2, 2, 8)


def test_wrong_use_is_refused(pruned: Any, routed: Any, tmp_path: Path) -> None:
    session = gatefx.load(pruned[1])
    for budget in (0, 1.5):
        with pytest.raises(BudgetError):
            gatefx.generate(session, [[5]], budget=budget)
    with pytest.raises(InputError, match="does not know"):
        gatefx.generate(session, [[100]])
    plain = gatefx.export(routed[0], tmp_path / "plain")
    with pytest.raises(InputError, match="generate=True"):
        gatefx.generate(gatefx.load(plain), [[5]])
    with pytest.raises(ArtifactError, match="no file"):
        OnnxDecoder.open(plain)
    assert json.loads((pruned[1] / "gatefx.json").read_text())["decoder"]["groups"] == [1, 2]
