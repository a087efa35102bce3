"""prepare: what it makes of a model, what it leaves alone, what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gatefx
from gatefx.errors import BudgetError, CaptureError, InputError, MethodError, SiteError
from gatefx.models.gates import RankRouter
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.methods.ccm_diagnostics import site_names
from gatefx.passes.methods.ccm_schedule import routers_of

from .sampling import rest_slow

peft = pytest.importorskip("peft")

SMALL = gatefx.CCM(rank=4, d_router=8, target_modules=("query", "value"))


def example(batch: int = 3, tokens: int = 6) -> dict[str, Tensor]:
    return tiny_inputs("bert", batch=batch, tokens=tokens)


def lora(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"], **options}
    model = peft.get_peft_model(tiny("bert"), peft.LoraConfig(**options))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def open_gates(model: nn.Module) -> None:
    for router in (module for module in model.modules() if isinstance(module, RankRouter)):
        router.register_forward_hook(lambda _m, _i, out: torch.ones_like(out))


def trainable(model: nn.Module) -> set[str]:
    return {name.removeprefix("graph_module.") for name, p in model.named_parameters() if p.requires_grad}


def test_a_bare_model_gets_lora_and_starts_as_itself() -> None:
    model = tiny("bert")
    gated = gatefx.prepare(model, SMALL, budget=2, example_inputs=example(), verify=True).eval()

    inputs = example(5, 9)
    assert torch.equal(gated(**inputs).logits, model(**inputs).logits)
    names = trainable(gated)
    assert {name for name in names if not name.startswith("rank_router")} == {
        *(
            f"bert.encoder.layer.{i}.attention.self.{n}.lora_{h}.default.weight"
            for i in (0, 1)
            for n in ("query", "value")
            for h in "AB"
        ),
        "classifier.weight",
        "classifier.bias",
    }
    assert gated.budget == 2
    assert [report.name for report in gated.report.passes] == ["AttachLora", "InsertRankRouter"]


def test_a_peft_model_with_open_gates_is_itself_bit_for_bit() -> None:
    model = lora(rank_pattern={"layer.1.attention.self.query": 7}, modules_to_save=["classifier"])
    gated = gatefx.prepare(model, SMALL, budget=2, example_inputs=example(), verify=True).eval()
    open_gates(gated)

    inputs = example(5, 9)
    assert torch.equal(gated(**inputs).logits, model(**inputs).logits)
    assert {router.max_rank for router in routers_of(gated.graph_module)} == {7}


def test_what_a_peft_user_trains_goes_on_training() -> None:
    model = lora(modules_to_save=["classifier"], bias="lora_only")
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    gated = gatefx.prepare(model, SMALL, budget=2, example_inputs=example())

    assert {name for name in trainable(gated) if not name.startswith("rank_router")} == names


@pytest.mark.parametrize("share_frozen", [False, True])
def test_training_the_gated_model_leaves_the_given_one(share_frozen: bool) -> None:
    model = lora().train()
    before = copy.deepcopy(model.state_dict())
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    gated = gatefx.prepare(model, SMALL, budget=2, example_inputs=example(), share_frozen=share_frozen).train()

    optimiser = torch.optim.SGD([p for p in gated.parameters() if p.requires_grad], lr=0.5)
    gated(**example(), labels=torch.tensor([0, 1, 1])).loss.backward()
    optimiser.step()

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert model.training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("budget", [0, -3, 5, 0.0, float("nan"), "6 %", "200%", True])
def test_budgets_that_cannot_be_are_refused_before_anything_is_made(budget: Any) -> None:
    with pytest.raises(BudgetError, match="an integer from 1 to 4"):
        gatefx.prepare(tiny("bert"), SMALL, budget=budget, example_inputs=example())


@pytest.mark.parametrize("method", ["masklora", "tspeft", "gatera"])
@pytest.mark.parametrize("budget", [0, 1.2, 3, "0%", "few"])
def test_a_wrong_share_is_refused_before_the_model_is_captured(method: str, budget: Any) -> None:
    with pytest.raises(BudgetError, match="share"):
        gatefx.prepare(tiny("bert"), method, budget, example_inputs={})  # which capture refuses


def test_a_share_is_of_the_largest_rank() -> None:
    assert gatefx.prepare(lora(), SMALL, budget="50%", example_inputs=example()).budget == 2.0


@pytest.mark.parametrize(
    ("model", "inputs", "error", "words"),
    [
        ("bert", {"input_ids": torch.ones(1, 6, dtype=torch.int64)}, InputError, "batch of input_ids has 1 entries"),
        ("bert", None, InputError, "name the model's inputs"),
        (None, example(), InputError, "no model to capture"),
        ("a path", example(), InputError, "no model to capture"),
        ("bert", {"pixel_values": torch.zeros(2, 3, 4, 4)}, CaptureError, "cannot be captured"),
    ],
)
def test_inputs_that_cannot_work_are_refused(model: Any, inputs: Any, error: Any, words: str) -> None:
    given = tiny("bert") if model == "bert" else model

    with pytest.raises(error, match=words):
        gatefx.prepare(given, SMALL, budget=2, example_inputs=inputs)


def test_methods_and_targets_that_do_not_exist_are_refused() -> None:
    with pytest.raises(MethodError, match="no method 'cmm'"):
        gatefx.prepare(tiny("bert"), "cmm", example_inputs=example())
    config = gatefx.CCM(rank=4, target_modules=("nonsense",))
    with pytest.raises(SiteError, match="nonsense"):
        gatefx.prepare(tiny("bert"), config, budget=2, example_inputs=example())
    with pytest.raises(SiteError, match="no adapter that a gate could act on"):
        gatefx.prepare(tiny("bert"), rank=512, budget=2, example_inputs=example())


def test_dora_is_refused_with_the_reason() -> None:
    with pytest.raises(SiteError, match="DoRA"):
        gatefx.prepare(lora(use_dora=True), SMALL, budget=2, example_inputs=example())


def test_a_gated_model_is_not_prepared_twice() -> None:
    gated = gatefx.prepare(lora(), SMALL, budget=2, example_inputs=example())

    with pytest.raises(InputError, match=r"gatefx's already(.|\n)*gatefx\.optimize"):
        gatefx.prepare(gated, SMALL, budget=2, example_inputs=example())


@pytest.mark.parametrize("dtype", rest_slow([torch.bfloat16, torch.float64]))
def test_other_precisions_work(dtype: torch.dtype) -> None:
    model = tiny("bert").to(dtype)
    gated = gatefx.prepare(model, SMALL, budget=2, example_inputs=example(), verify=True)

    assert torch.equal(gated.eval()(**example()).logits, model(**example()).logits)
    gated.train()(**example(), labels=torch.tensor([0, 1, 1])).loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in gated.parameters())


@pytest.mark.parametrize("family", rest_slow(["gpt2", "llama", "t5", "vit"], 2))
def test_other_families_are_prepared(family: str) -> None:
    model = tiny(family)
    inputs = tiny_inputs(model, batch=3, tokens=6)
    gated = gatefx.prepare(model, rank=4, budget=2, example_inputs=inputs, verify=True).eval()

    other = tiny_inputs(model, batch=2, tokens=9, seed=1)
    with torch.no_grad():  # with gradients torch picks kernels by what is frozen
        assert torch.equal(gated(**other).logits, model(**other).logits)
    assert len(site_names(gated.graph_module)) >= 8
