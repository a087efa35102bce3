from __future__ import annotations

from typing import Any

import pytest

import gatefx
from gatefx.errors import PassError
from gatefx.models.configs.masklora import MaskLoRA
from gatefx.models.streamed_token_gate import StreamedTokenGate
from gatefx.models.tiny import tiny_inputs
from gatefx.passes.decode.part_choices import StreamChoices
from gatefx.passes.decode.read_part import ReadPart
from gatefx.passes.graph.signature import signature_of
from gatefx.passes.harden.token_calibration import hard_gates

TWO = ((0, 0.7), (1, 0.5))


def streamed(graph: Any) -> list[StreamedTokenGate]:
    return [module for module in graph.modules() if isinstance(module, StreamedTokenGate)]


@pytest.mark.parametrize("which", ["prefill", "reference"])
def test_every_gate_remembers_and_shares_its_predictor(pruned_decoder: Any, which: str) -> None:
    source = getattr(pruned_decoder("mistral", TWO).programs, which)
    result = StreamChoices(cold=5)(ReadPart()(source).graph_module, verify=True)
    gates = streamed(result.graph_module)
    assert [gate.cold for gate in gates] == [5, 5]
    assert [gate.gate for gate in gates] == [*hard_gates(source)]
    signature = signature_of(result.graph_module)
    names = [f"past_scores.hard_token_gate_{layer}" for layer in (0, 1)]
    assert signature.input_names[-3:] == ("prompt_end", *names)
    assert signature.outputs[-2:] == tuple(name.replace("past", "present") for name in names)


def test_a_graph_whose_gates_are_gone_stays(adapted_decoder: Any) -> None:
    data = [tiny_inputs("llama", batch=2, tokens=8)]
    model = gatefx.optimize(adapted_decoder("llama"), "weightlora", 3, data=data, progress=False)
    graph = ReadPart()(model.programs.prefill, verify=True).graph_module
    assert StreamChoices()(graph).graph_module is graph


def test_scores_of_the_path_are_refused(pruned_decoder: Any) -> None:
    graph = ReadPart()(pruned_decoder("llama", ((1, 0.5),), scores="path").programs.prefill).graph_module
    with pytest.raises(PassError, match="scores of the path"):
        StreamChoices()(graph)


def test_a_threshold_decides_token_by_token_and_remembers_nothing(adapted_decoder: Any, ragged_prompts: Any) -> None:
    data = [tiny_inputs("llama", batch=9, tokens=60, seed=seed, ragged=False) for seed in range(2)]
    method = MaskLoRA(keep={1: 0.5}, floor=0.0, select="threshold")
    model = gatefx.optimize(adapted_decoder("llama"), method, data=data, distill_steps=3, progress=False)
    assert hard_gates(model.programs.prefill)[0].cutoff is not None, "the histogram of the data is warm"
    assert not streamed(model.programs.part)
    options = {"max_new_tokens": 3, "stop": (), "budget": 0.5}
    ids, mask = ragged_prompts(1, 30)
    whole, parts = (gatefx.generate(model, ids, mask, chunk=chunk, **options).cache for chunk in (None, 7))
    kept, found = (set(cache.entries["past_positions.1"][0].tolist()) for cache in (whole, parts))
    assert found - kept <= {6, 13, 20, 27}, "beside those of the whole prompt, the last tokens of parts alone"
    assert kept <= found
