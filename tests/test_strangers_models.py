"""What a stranger brings: stacked, merged and disabled adapters, other types, other configs, odd data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gatefx
from gatefx import CCM
from gatefx.errors import BudgetError, InputError, MethodError, SiteError, UntrainedGateError
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.deployed import DeployedModel
from gatefx.passes.gated import GatedModel
from gatefx.passes.methods.ccm_diagnostics import site_names
from gatefx.passes.methods.ccm_schedule import routers_of

peft = pytest.importorskip("peft")
EXAMPLE = tiny_inputs("bert", batch=4, tokens=9)
OTHER = tiny_inputs("bert", batch=3, tokens=14, seed=5)


def adapted(**options: Any) -> nn.Module:
    config = {"r": 8, "lora_alpha": 16, "target_modules": ["query", "value"], "task_type": "SEQ_CLS", **options}
    model = peft.get_peft_model(tiny("bert"), peft.LoraConfig(**config))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def trained(model: nn.Module, budget: Any = 3, method: CCM | None = None) -> Any:
    gated = gatefx.prepare(model, method or CCM(), budget, example_inputs=EXAMPLE, verify=True)
    for router in routers_of(gated.graph_module):
        router.updates.fill_(1)
    return gated


@pytest.fixture(scope="module")
def gated() -> GatedModel:
    """Leave it as it is."""
    torch.manual_seed(0)  # made before the test's own seed is set
    return trained(adapted())


def apart(fast: DeployedModel, inputs: dict[str, Tensor]) -> float:
    with torch.no_grad():
        return float((fast(**inputs).logits - fast.reference(**inputs).logits).abs().max())


def stacked() -> nn.Module:
    model = adapted(task_type=None)
    model.add_adapter("b", peft.LoraConfig(r=4, target_modules=["query", "key"]))
    model.base_model.set_adapter(["default", "b"])
    for name, parameter in model.named_parameters():
        if "lora_B.b" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def test_adapters_stacked_on_one_layer_compact_in_one_run() -> None:
    fast = gatefx.optimize(trained(stacked()), data=[EXAMPLE], forms="gathered", verify=True)
    assert [site.form for site in fast.sites] == ["gathered"] * 8
    assert apart(fast, OTHER) < 1e-5


def test_a_budget_set_after_a_cast_reaches_both_graphs(gated: GatedModel) -> None:
    fast = gatefx.optimize(gated, data=[EXAMPLE]).double()
    fast.budget = 5
    assert apart(fast, OTHER) < 1e-10


def test_a_budget_changed_before_export_leaves_no_stale_ranks_behind(gated: GatedModel, tmp_path: Path) -> None:
    fast = gatefx.optimize(gated, data=[EXAMPLE])
    measured = fast.sites
    fast.budget = 5
    changed = gatefx.load(gatefx.export(fast, tmp_path / "changed")).manifest
    assert "ranks" not in changed
    assert {site["mean_rank"] for site in changed["sites"]} == {5.0}
    fast.budget = 3
    assert fast.sites == measured
    assert gatefx.load(gatefx.export(fast, tmp_path / "same")).manifest["ranks"]["mean"] == pytest.approx(3, abs=0.5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_types_that_onnx_runtime_cannot_run_are_refused_before_anything_is_written(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    fast = gatefx.optimize(trained(adapted().to(dtype)), data=[EXAMPLE])
    with pytest.raises(InputError, match="float32"):
        gatefx.export(fast, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_merged_and_disabled_adapters_are_refused_by_name() -> None:
    merged, disabled = adapted(), adapted()
    merged.merge_adapter()
    disabled.base_model.disable_adapter_layers()
    for model in (merged, disabled):
        with pytest.raises(SiteError, match="merged or disabled"):
            gatefx.prepare(model, budget=3, example_inputs=EXAMPLE)


def test_a_mean_that_sites_of_different_rank_cannot_reach_is_refused() -> None:
    model = adapted(r=4, rank_pattern={"layer.0.attention.self.query": 16})
    with pytest.raises(BudgetError, match="7 on average"):
        gatefx.prepare(model, budget=12, example_inputs=EXAMPLE)
    fast = gatefx.optimize(trained(model), data=[EXAMPLE])
    assert fast.calibration is not None
    assert fast.calibration.table[-1][0] <= 7


def test_deploying_with_other_options_than_the_trained_is_refused(gated: GatedModel) -> None:
    with pytest.raises(MethodError, match="gate='hard_concrete'"):
        gatefx.optimize(gated, CCM(gate="hard_concrete"), data=[EXAMPLE])
    assert gatefx.optimize(gated, CCM(buckets=(1, 3, 5)), data=[EXAMPLE]).method.buckets == (1, 3, 5)


def test_routers_trained_without_a_schedule_are_not_refitted_silently() -> None:
    gated = gatefx.prepare(adapted(), budget=3, example_inputs=EXAMPLE)
    optimiser = torch.optim.AdamW([p for p in gated.parameters() if p.requires_grad], lr=1e-3)
    gated.train()
    for _ in range(3):
        gated(**EXAMPLE, labels=torch.tensor([0, 1, 0, 1])).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    with pytest.raises(UntrainedGateError, match=r"schedule\.step"):
        gatefx.optimize(gated, data=[EXAMPLE])


def test_casting_a_router_is_not_training_it() -> None:
    (router,) = routers_of(gatefx.prepare(adapted(), budget=3, example_inputs=EXAMPLE).graph_module)
    assert not router.bfloat16().has_moved()


def test_sites_kept_masked_say_why(gated: GatedModel) -> None:
    fast = gatefx.optimize(gated, data=[EXAMPLE], forms="masked")
    compact = next(row for row in fast.report.passes if row.name == "CompactRanks")
    assert {declined.where for declined in compact.declined} == {site.name for site in fast.sites}


@pytest.mark.parametrize(
    "options",
    [
        {"data": [{"input_ids": [[1, 2], [3, 4]]}]},
        {"data": [{}]},
        {"workload": "8x128"},
        {"workload": (8,)},
        {"distill_steps": -3},
        {"distill_steps": 0},
    ],
)
def test_odd_arguments_are_refused_with_what_was_expected(gated: GatedModel, options: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        gatefx.optimize(gated, **{"data": [EXAMPLE], **options})
    assert caught.value.expected


def test_a_tokenizers_name_is_no_tokenizer(gated: GatedModel, tmp_path: Path) -> None:
    fast = gatefx.optimize(gated, data=[EXAMPLE])
    with pytest.raises(InputError, match="tokenizer"):
        gatefx.export(fast, tmp_path / "out", tokenizer="bert")


def test_asking_for_a_gate_loss_before_a_call_says_so() -> None:
    with pytest.raises(UntrainedGateError, match="decided nothing"):
        trained(adapted()).gate_loss()


def test_trained_biases_come_back_over_the_plain_base(tmp_path: Path) -> None:
    gated = trained(adapted(bias="lora_only"))
    with torch.no_grad():
        for name, parameter in gated.named_parameters():
            if name.endswith("base_layer.bias"):
                parameter.add_(0.3)
    gated.save_pretrained(tmp_path / "gates")
    again = gatefx.from_pretrained(tiny("bert"), tmp_path / "gates", example_inputs=EXAMPLE)
    with torch.no_grad():
        assert torch.equal(again.eval()(**OTHER).logits, gated.eval()(**OTHER).logits)


def test_a_module_trained_whole_gets_no_adapter_and_peft_reads_it(tmp_path: Path) -> None:
    method = CCM(rank=8, train_modules=("classifier", "pooler"))
    gated = trained(tiny("bert"), budget="100%", method=method)
    assert not any("pooler" in name for name in site_names(gated.graph_module))
    with torch.no_grad():
        for parameter in gated.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    gated.save_pretrained(tmp_path / "gates")
    reread = peft.PeftModel.from_pretrained(tiny("bert"), str(tmp_path / "gates")).eval()
    opened = gatefx.optimize(gated)
    with torch.no_grad():
        assert torch.equal(reread(**OTHER).logits, opened(**OTHER).logits)
