"""Token-selective updates of adapters that are no plain LoRA: trained, deployed to their masked meaning, exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, HiraConfig, LoraConfig, get_peft_model
from torch import Tensor, nn

import gatefx
from gatefx.errors import InputError, MethodError
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.find.thresholds import thresholds_of
from gatefx.passes.methods.site_choice import site_sparsity

from ...sampling import rest_slow

DATA = [tiny_inputs("bert", batch=4, tokens=5 + 3 * index, seed=index) for index in range(3)]
LABELS = torch.tensor([0, 1, 1, 0])


class Parallel(nn.Module):
    """A bottleneck beside a layer (He et al. 2022's parallel adapter)."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.down, self.up = nn.Linear(layer.in_features, 4), nn.Linear(4, layer.out_features)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.layer(x) + 0.5 * self.up(torch.relu(self.down(x)))
        return answer


def parallel() -> nn.Module:
    model: Any = tiny("bert").requires_grad_(False)
    for layer in model.bert.encoder.layer:
        layer.output.dense = Parallel(layer.output.dense)
    return model


def peft(config: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model: nn.Module = get_peft_model(tiny("bert"), config)
        for name, value in model.named_parameters():
            if any(part in name for part in (".lora_B.", ".hira_B.", ".lora_E.")):
                nn.init.normal_(value)
        return model

    return make


KINDS: dict[str, Callable[[], nn.Module]] = {
    "dora": peft(LoraConfig(r=4, target_modules=["query"], use_dora=True)),
    "adalora": peft(AdaLoraConfig(init_r=6, target_r=4, target_modules=["query"], total_step=9)),
    "hira": peft(HiraConfig(r=4, target_modules=["query"])),
    "parallel": parallel,
}


@pytest.mark.parametrize("kind", rest_slow(KINDS))
def test_from_prepare_to_the_exported_model(kind: str, tmp_path: Path) -> None:
    model = KINDS[kind]().eval()
    gated = gatefx.prepare(model, "tspeft", 0.5, example_inputs=DATA[0], verify=True).eval()
    assert torch.equal(gated(**DATA[1])["logits"], model(**DATA[1])["logits"]), "τ = 0 is the adapter bit for bit"
    assert len(thresholds_of(gated.graph_module)) == 2

    optimiser = torch.optim.Adam([p for p in gated.parameters() if p.requires_grad], 1e-2)
    schedule = gated.schedule(4, optimiser)
    gated.train()
    for step in range(4):
        gated(**DATA[step % 3], labels=LABELS)["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    fast = gatefx.optimize(gated, data=DATA, verify=True)
    assert {site.form for site in fast.sites} == {"masked"}
    assert "no product B A" in str(fast.report)
    session = gatefx.load(gatefx.export(fast, tmp_path / "out"))
    for budget in (0.5, 0.2):
        fast.budget = session.budget = budget
        for batch in DATA:
            assert torch.equal(fast(**batch)["logits"], fast.reference(**batch)["logits"])
            answered = torch.as_tensor(session(**batch)["logits"])
            torch.testing.assert_close(answered, fast(**batch)["logits"], rtol=0, atol=2e-5)


def test_a_saved_dora_run_comes_back_exactly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = KINDS["dora"]()
    gated = gatefx.prepare(model, "tspeft", example_inputs=DATA[0]).eval()
    for name, value in gated.named_parameters():
        if "lora_" in name:
            nn.init.normal_(value)
    for gate in thresholds_of(gated.graph_module).values():
        gate.tau.fill_(0.3)
    gated.save_pretrained(tmp_path / "gates")
    again = gatefx.from_pretrained(model, tmp_path / "gates", example_inputs=DATA[0]).eval()

    assert torch.equal(again(**DATA[2])["logits"], gated(**DATA[2])["logits"])


def test_sites_are_chosen_by_their_sparsity() -> None:
    torch.manual_seed(0)
    model = peft(LoraConfig(r=4, target_modules=["query", "value"]))()
    gated = gatefx.prepare(model, "tspeft", example_inputs=DATA[0]).eval()
    gates = thresholds_of(gated.graph_module)
    for gate, tau in zip(gates.values(), (1e9, 0.0, 1e9, 0.0), strict=True):
        gate.tau.fill_(tau)
    names = tuple(gates)

    assert site_sparsity(gated, DATA) == dict(zip(names, (1.0, 0.0, 1.0, 0.0), strict=True))
    assert gated.select_sites("low_sparsity", 0.5, data=DATA) == (names[1], names[3])
    assert gated.select_sites("high_sparsity", 0.5, data=DATA) == (names[0], names[2])
    assert len(gated.select_sites("large_ratio", 0.7, data=DATA)) == 3
    chosen = gated.select_sites("low_sparsity", 0.5, data=[{**DATA[0], "labels": LABELS}])
    again = gatefx.prepare(tiny("bert"), gatefx.CCM(rank=2, target_modules=chosen), budget=1, example_inputs=DATA[0])
    assert len([name for name, _ in again.named_parameters() if ".lora_A." in name]) == 2


def test_a_choice_that_cannot_be_made_is_refused() -> None:
    model = peft(LoraConfig(r=4, target_modules=["query"]))()
    gated = gatefx.prepare(model, "tspeft", example_inputs=DATA[0])
    with pytest.raises(MethodError, match="no rule 'best'"):
        gated.select_sites("best", 0.5, data=DATA)
    with pytest.raises(InputError, match="share"):
        gated.select_sites("low_sparsity", 2, data=DATA)
    with pytest.raises(InputError, match="no batch"):
        gated.select_sites("low_sparsity", 0.5, data=[])
    other = gatefx.prepare(model, "ccm", budget=2, example_inputs=DATA[0])
    with pytest.raises(MethodError, match="tspeft"):
        other.select_sites("low_sparsity", 0.5, data=DATA)
