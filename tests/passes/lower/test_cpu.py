"""for_cpu: a deployed model over packed weights answers the same, follows its budget, and says why it cannot."""

from __future__ import annotations

import pytest
import torch

import gatefx
from gatefx.config import AdapterConfig
from gatefx.errors import BudgetError, ProviderError
from gatefx.methods import CCM, TSPEFT, GateRA
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.deployed import DeployedModel
from gatefx.passes.lower import cpu
from gatefx.runtime.native.library import NativeStatus

FORMS: dict[str, tuple[AdapterConfig, float, str]] = {
    "ccm": (CCM(rank=4), 2, "packed_gated_linear.default"),
    "tspeft": (TSPEFT(rank=4), 0.5, "packed_token_gated_linear.default"),
    "gatera": (GateRA(rank=4), 0.5, "packed_routed_linear.default"),
}


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the native library were there: the operators run as their definition."""
    monkeypatch.setattr(cpu, "use_torch_kernels", lambda: NativeStatus(True))


def deployed(name: str, family: str = "bert", dtype: torch.dtype = torch.float32) -> DeployedModel:
    config, budget, _ = FORMS[name]
    batch = tiny_inputs(family, 4, 9)
    gated = gatefx.prepare(tiny(family).to(dtype), config, 4 if name == "ccm" else 1.0, example_inputs=batch)
    for parameter_name, parameter in gated.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.2)
    return gatefx.optimize(gated, None, budget, data=[batch], forms="gathered", distill_steps=5, progress=False)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", FORMS)
def test_packed_layers_answer_as_the_model(name: str, tolerance: dict[torch.dtype, float]) -> None:
    fast = deployed(name)
    packed = fast.for_cpu()
    (report,) = (row for row in packed.report.passes if row.name == "PackLayers")
    assert report.op_changes[FORMS[name][2]] == len(report.fired) > 0
    for batch, tokens in ((1, 3), (4, 9)):
        given = tiny_inputs("bert", batch, tokens)
        expected = fast(**given).logits
        torch.testing.assert_close(packed(**given).logits, expected, rtol=0, atol=tolerance[torch.float32])


@pytest.mark.usefixtures("kernels")
def test_the_budget_is_followed_and_packed_weights_replace_the_others(tolerance: dict[torch.dtype, float]) -> None:
    fast, given = deployed("ccm"), tiny_inputs("bert", 4, 9)
    packed = fast.for_cpu()
    before = packed(**given).logits
    fast.budget = 3
    torch.testing.assert_close(packed(**given).logits, fast(**given).logits, rtol=0, atol=tolerance[torch.float32])
    assert not torch.equal(packed(**given).logits, before)
    names = set(packed.state_dict())
    for name in names:
        if name.endswith(".weight_packed"):
            assert name.removesuffix("_packed") not in names


@pytest.mark.usefixtures("kernels")
def test_its_budget_and_place_are_the_model_s() -> None:
    packed = deployed("ccm").for_cpu()
    with pytest.raises(BudgetError, match="follows the budget"):
        packed.budget = 3
    with pytest.raises(ProviderError, match="stays on the CPU"):
        packed.double()


@pytest.mark.usefixtures("kernels")
def test_layers_without_a_bias_are_packed(tolerance: dict[torch.dtype, float]) -> None:
    fast, given = deployed("ccm", "llama"), tiny_inputs("llama", 4, 9)
    torch.testing.assert_close(
        fast.for_cpu()(**given).logits, fast(**given).logits, rtol=0, atol=tolerance[torch.float32]
    )


@pytest.mark.usefixtures("kernels")
def test_models_without_such_layers_are_refused() -> None:
    batch = tiny_inputs("bert", 4, 9)
    merged = gatefx.optimize(
        gatefx.prepare(tiny("bert"), CCM(rank=4), 4, example_inputs=batch), fold=True, progress=False
    )
    with pytest.raises(ProviderError, match="No layer"):
        merged.for_cpu()
    with pytest.raises(ProviderError, match="widen"):
        deployed("ccm", dtype=torch.bfloat16).for_cpu()


def test_without_the_library_it_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "use_torch_kernels", lambda: NativeStatus(False, "it was not built"))
    with pytest.raises(ProviderError, match="build-native"):
        deployed("ccm").for_cpu()
