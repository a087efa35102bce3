"""Saved gates come back exactly, PEFT reads the adapter, and a folder that was touched is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gatefx
from gatefx.errors import ArtifactError, SiteError
from gatefx.models.gates import RankRouter
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.gated import GatedModel
from gatefx.passes.methods.ccm_schedule import routers_of

from .sampling import rest_slow

peft = pytest.importorskip("peft")

SMALL = gatefx.CCM(rank=4, d_router=8, target_modules=("query", "value"))
EXAMPLE = tiny_inputs("bert", batch=8, tokens=6)
BATCHES = [tiny_inputs("bert", batch=batch, tokens=tokens, seed=7) for batch, tokens in ((1, 4), (4, 9))]


def base(family: str = "bert") -> nn.Module:
    return tiny(family)


def lora(family: str = "bert", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"], **options}
    return peft.get_peft_model(base(family), peft.LoraConfig(**options))


def trained(model: nn.Module, config: gatefx.CCM = SMALL, steps: int = 3) -> GatedModel:
    inputs = tiny_inputs(model.config.model_type, batch=8, tokens=6)  # type: ignore[union-attr]
    gated = gatefx.prepare(model, config, budget=2, example_inputs=inputs).train()
    optimiser = torch.optim.AdamW([p for p in gated.parameters() if p.requires_grad], lr=0.05)
    schedule = gated.schedule(10)
    for _ in range(steps):
        gated(**inputs, labels=torch.arange(8) % 2).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    return gated.eval()


@pytest.fixture(scope="module")
def gated() -> GatedModel:
    return trained(base())


@pytest.fixture
def folder(gated: GatedModel, tmp_path: Path) -> Path:
    return gated.save_pretrained(tmp_path / "gates")


def logits(model: nn.Module, batch: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits


def exactly(first: nn.Module, second: nn.Module, batches: Any = BATCHES) -> None:
    for batch in batches:
        assert torch.equal(logits(first, batch), logits(second, batch))


def open_gates(model: GatedModel) -> None:
    for router in routers_of(model.graph_module):
        router.register_forward_hook(lambda _m, _i, out: torch.ones_like(out))


def test_what_was_saved_comes_back_exactly(gated: GatedModel, folder: Path) -> None:
    loaded = gatefx.from_pretrained(base(), folder, example_inputs=EXAMPLE).eval()

    exactly(loaded, gated)
    assert (loaded.method, loaded.budget) == (gated.method, gated.budget)
    saved, found = gated.state_dict(), loaded.state_dict()
    assert saved.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in saved.items())
    (router,) = routers_of(loaded.graph_module)
    assert (int(router.updates), router.budget) == (3, 2.0)


def test_a_loaded_model_trains_on_and_deploys(folder: Path) -> None:
    loaded = gatefx.from_pretrained(base(), folder, example_inputs=EXAMPLE)

    loaded.train()(**EXAMPLE, labels=torch.arange(8) % 2).loss.backward()
    names = {name for name, p in loaded.named_parameters() if p.grad is not None}
    assert any("lora_A" in name for name in names)
    assert any("classifier" in name for name in names)
    assert gatefx.optimize(loaded, data=[EXAMPLE]).calibration is not None


def test_the_adapter_is_peft_s_own(gated: GatedModel, folder: Path) -> None:
    model = peft.PeftModel.from_pretrained(base(), str(folder)).eval()
    opened = gatefx.from_pretrained(base(), folder, example_inputs=EXAMPLE).eval()
    open_gates(opened)

    exactly(model, opened)
    full = gatefx.optimize(gated, budget=4)
    exactly(model, full)


@pytest.mark.parametrize(
    "options",
    rest_slow(
        [
            {"rank_pattern": {"layer.1.attention.self.query": 7}, "alpha_pattern": {"value": 3}},
            {"use_rslora": True, "modules_to_save": ["classifier"], "lora_dropout": 0.2},
        ]
    ),
)
def test_peft_s_options_survive_saving(options: Any, tmp_path: Path) -> None:
    model = lora(**options)
    gated = trained(model)
    folder = gated.save_pretrained(tmp_path / "g")

    again = gatefx.from_pretrained(base(), folder, example_inputs=EXAMPLE).eval()
    exactly(again, gated)
    opened = gatefx.from_pretrained(lora(**options), folder, example_inputs=EXAMPLE).eval()
    exactly(opened, gated)
    open_gates(opened)
    exactly(peft.PeftModel.from_pretrained(base(), str(folder)).eval(), opened)


def test_trained_biases_survive_saving(tmp_path: Path) -> None:
    gated = trained(lora(bias="lora_only"))
    folder = gated.save_pretrained(tmp_path / "g")

    exactly(gatefx.from_pretrained(lora(bias="lora_only"), folder, example_inputs=EXAMPLE).eval(), gated)


def test_conv1d_adapters_are_peft_s_too(tmp_path: Path) -> None:
    config = gatefx.CCM(rank=4, d_router=8, target_modules=("c_attn",))
    gated = trained(base("gpt2"), config)
    folder = gated.save_pretrained(tmp_path / "g")
    inputs = tiny_inputs("gpt2", batch=3, tokens=5)

    opened = gatefx.from_pretrained(base("gpt2"), folder, example_inputs=inputs).eval()
    exactly(opened, gated, [inputs])
    open_gates(opened)
    exactly(peft.PeftModel.from_pretrained(base("gpt2"), str(folder)).eval(), opened, [inputs])


@pytest.mark.parametrize(
    "options", rest_slow([{"pool": "attention", "heads": "shared"}, {"router_input": "site", "gate": "soft"}])
)
def test_router_options_survive_saving(options: Any, tmp_path: Path) -> None:
    gated = trained(base(), gatefx.CCM(**{**vars(SMALL), **options}))
    folder = gated.save_pretrained(tmp_path / "g")

    exactly(gatefx.from_pretrained(base(), folder, example_inputs=EXAMPLE).eval(), gated)


def test_an_existing_folder_is_kept_unless_told(gated: GatedModel, folder: Path) -> None:
    with pytest.raises(ArtifactError, match="exists"):
        gated.save_pretrained(folder)
    gated.save_pretrained(folder, overwrite=True)


def test_two_adapters_on_a_layer_cannot_be_saved_and_nothing_is_left(tmp_path: Path) -> None:
    model = lora()
    model.add_adapter("other", peft.LoraConfig(r=3, target_modules=["query"]))
    model.base_model.set_adapter(["default", "other"])
    gated = gatefx.prepare(model, SMALL, budget=2, example_inputs=EXAMPLE)

    with pytest.raises(SiteError, match=r"several adapters(.|\n)*\[other\]"):
        gated.save_pretrained(tmp_path / "g")
    assert list(tmp_path.iterdir()) == []


FILES = ["adapter_model.safetensors", "adapter_config.json", "gates.safetensors", "gatefx.json"]


def test_a_folder_holds_these_files(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8.0)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "edited", "missing"])
def test_a_folder_that_was_touched_is_refused_and_the_file_named(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    data = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(data[:-10])
    elif damage == "edited":
        path.write_bytes(data[:40] + bytes([data[40] ^ 1]) + data[41:])
    else:
        path.unlink()

    with pytest.raises(ArtifactError) as caught:
        gatefx.from_pretrained(base(), folder, example_inputs=EXAMPLE)
    assert name in str(caught.value)


def test_folders_that_are_none_of_ours_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        gatefx.from_pretrained(base(), tmp_path / "nowhere", example_inputs=EXAMPLE)
    with pytest.raises(ArtifactError):
        gatefx.from_pretrained(base(), tmp_path, example_inputs=EXAMPLE)


def test_another_base_model_is_refused(folder: Path) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {"vocab_size": 100, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    other = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model("bert", num_hidden_layers=1, max_position_embeddings=128, **sizes)
    )
    with pytest.raises((ArtifactError, SiteError)):
        gatefx.from_pretrained(other, folder, example_inputs=EXAMPLE)
    with pytest.raises((ArtifactError, SiteError)):
        gatefx.from_pretrained(base("distilbert"), folder, example_inputs=tiny_inputs("distilbert", batch=3))


def test_routers_alone_are_read_from_the_folder(gated: GatedModel, folder: Path) -> None:
    model = peft.PeftModel.from_pretrained(base(), str(folder)).eval()
    fast = gatefx.optimize(model, SMALL, budget=2, data=[EXAMPLE], gates=folder)

    (mine,) = fast.hard_routers()
    (theirs,) = routers_of(gated.graph_module)
    assert isinstance(mine.router, RankRouter)
    assert torch.equal(mine.router.heads.weight, theirs.heads.weight)


def test_gates_of_before_levels_were_saved_come_back(gated: GatedModel, folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    from gatefx.passes.gated_files import GATES_FILE
    from gatefx.runtime.artifact import ArtifactWriter

    manifest = json.loads((folder / "gatefx.json").read_text())
    tensors = load_file(folder / GATES_FILE)
    old = {name: value for name, value in tensors.items() if not name.endswith(".level")}
    old |= {name.replace(".level", ".coverage"): 1 - tensors[name].exp() for name in tensors if name not in old}
    with ArtifactWriter(folder, overwrite=True) as writer:
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            (writer.path / name).write_bytes((folder / name).read_bytes())
        save_file(old, writer.path / GATES_FILE)
        written = ("files", "versions", "schema_version", "manifest_sha256")
        writer.commit({name: value for name, value in manifest.items() if name not in written})

    again = gatefx.from_pretrained(base(), folder, example_inputs=EXAMPLE).eval()
    assert len(old) == len(tensors)
    assert any(name.endswith(".coverage") for name in old)
    for router, wanted in zip(routers_of(again.graph_module), routers_of(gated.graph_module), strict=True):
        torch.testing.assert_close(router.level, wanted.level)
    assert torch.equal(logits(again, BATCHES[1]), logits(gated, BATCHES[1]))
