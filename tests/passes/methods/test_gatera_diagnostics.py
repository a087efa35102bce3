"""What gates do on data, apart for prompts and for single tokens."""

from __future__ import annotations

import math

import pytest
import torch

import gatefx
from gatefx.models.configs.gatera import GateRA
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.find.modulations import find_modulated, modulations_of
from gatefx.passes.gated import GatedModel
from gatefx.passes.methods.gatera_diagnostics import modulation_diagnostics, token_gates


@pytest.fixture(scope="module")
def decoder() -> GatedModel:
    torch.manual_seed(0)
    model = tiny("llama")
    gated = gatefx.prepare(model, GateRA(rank=4), example_inputs=tiny_inputs("llama", batch=2, tokens=6))
    for gate in modulations_of(gated.graph_module):
        torch.nn.init.normal_(gate.score.weight, std=0.2)
    return gated


def test_phases_are_told_apart(decoder: GatedModel) -> None:
    prompts = [tiny_inputs("llama", batch=2, tokens=6, seed=seed) for seed in (1, 2)]
    single = {name: value[:, :1] for name, value in prompts[0].items()}
    found = modulation_diagnostics(decoder, [*prompts, single])
    names = [item.site.name for item in find_modulated(decoder.graph_module)]

    assert list(found.prefill) == list(found.decode) == names
    real = sum(int(batch["attention_mask"].sum()) for batch in prompts)
    assert {row.tokens for row in found.prefill.values()} == {real}
    assert {row.tokens for row in found.decode.values()} == {int(single["attention_mask"].sum())}
    assert not modulation_diagnostics(decoder, prompts).decode
    assert decoder.training


def test_figures_are_those_of_the_gates(decoder: GatedModel) -> None:
    batch = tiny_inputs("llama", batch=3, tokens=7, seed=3)
    found = modulation_diagnostics(decoder, [batch]).prefill
    for name, g in token_gates(decoder, batch).items():
        assert torch.equal(g.isnan(), batch["attention_mask"] == 0)
        real = g[~g.isnan()]
        assert found[name].mean == pytest.approx(float(real.mean()), abs=1e-6)
        assert found[name].open_share == pytest.approx(float((real >= 0.5).float().mean()), abs=1e-6)
        assert 0 < found[name].entropy <= math.log(2)


def test_a_shut_gate_shows(decoder: GatedModel) -> None:
    gate = modulations_of(decoder.graph_module)[1]
    bias = gate.score.bias.detach().clone()
    gate.score.bias.data.fill_(-60.0)
    try:
        row = list(modulation_diagnostics(decoder, [tiny_inputs("llama", batch=2, tokens=6)]).prefill.values())[1]
    finally:
        gate.score.bias.data.copy_(bias)
    assert (row.mean, row.open_share) == (pytest.approx(0, abs=1e-12), 0)
    assert row.entropy == pytest.approx(0, abs=1e-12)
