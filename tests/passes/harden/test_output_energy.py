"""Output energies: what each adapter adds to its layer on data."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gatefx.passes.harden.output_energy import output_energies


def test_the_first_site_s_energy_is_its_mean_square_over_real_tokens(adapted: Any, inputs: Any) -> None:
    graph, batches = adapted(), [inputs(seed=seed, tokens=4 + seed) for seed in range(3)]
    measured = output_energies(graph, batches, show=False)
    lora_a, lora_b = (graph.get_parameter(f"first.lora_{half}.default.weight").detach() for half in "AB")
    rows = torch.cat([batch["x"][batch["attention_mask"].bool()] for batch in batches])
    wanted = (2.0 * rows @ lora_a.T @ lora_b.T).square().sum(-1).mean()

    assert measured["first"] == pytest.approx(float(wanted), rel=1e-5)
    assert set(measured) >= {"first", "second"}


def test_a_silent_adapter_has_none(adapted: Any, inputs: Any) -> None:
    graph = adapted()
    graph.get_parameter("second.lora_B.default.weight").data.zero_()
    measured = output_energies(graph, [inputs()], show=False)

    assert measured["second"] == 0.0
    assert measured["first"] > 0.0
