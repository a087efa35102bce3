"""The commands on a tiny model: from adapter to artifact and back, the same function all the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import gatefx as library
from gatefx.methods import Flops
from gatefx.models.packaged_text import batches
from gatefx.tools.compiling import parse_budget
from gatefx.tools.model_folder import open_model_folder
from gatefx.tools.model_loading import example_batch, load_base, load_gated, load_tokenizer

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def fitted(gatefx: Command, adapter_folder: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fitted") / "gates"
    code, printed, err = gatefx(
        "optimize", adapter_folder, out, "--data", data_file, "--budget", "40%", "--distill-steps", 5
    )
    assert (code, err) == (0, "")
    assert "gates fitted by distillation in 5 steps" in printed
    assert f"written: {out}" in printed
    return out


@pytest.fixture(scope="module")
def artifact(gatefx: Command, gates_folder: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifact") / "model"
    code, printed, err = gatefx(
        "export", "onnx", gates_folder, out, "--data", data_file, "--forms", "gathered", "--json"
    )
    assert (code, err) == (0, "")
    result = json.loads(printed)
    assert result["folder"] == str(out)
    assert result["ranks"]["mean"] == pytest.approx(3, abs=0.5)
    assert {site["form"] for site in result["sites"]} == {"gathered"}
    return out


def test_the_exported_folder_answers_as_the_library_does(artifact: Path, gates_folder: Path, texts: list[str]) -> None:
    folder = open_model_folder(gates_folder)
    tokenizer = load_tokenizer(folder)
    data = batches(tokenizer, texts, batch_size=32)
    deployed = library.optimize(load_gated(folder, data[0]), data=data, forms="gathered")
    session = library.load(artifact)
    assert session.provider == "CPUExecutionProvider"
    for batch in data:
        np.testing.assert_allclose(session(**batch)["logits"], deployed(**batch)["logits"], atol=1e-4, rtol=0)
    assert (artifact / "tokenizer.json").is_file()


def test_optimize_keeps_the_calibrated_level_for_a_later_export_without_data(
    fitted: Path, adapter_folder: Path, data_file: Path, texts: list[str]
) -> None:
    manifest = json.loads((fitted / "gatefx.json").read_text())
    assert manifest["budget"] == pytest.approx(3.2)
    folder = open_model_folder(fitted)
    data = batches(load_tokenizer(folder), texts, batch_size=32)
    gated = load_gated(folder, example_batch(load_tokenizer(folder)))
    uncalibrated, calibrated = library.optimize(gated), library.optimize(gated, data=data)
    for batch in data:
        assert torch.equal(uncalibrated.effective_ranks(batch), calibrated.effective_ranks(batch))


def test_inspect_shows_an_artifact(gatefx: Command, artifact: Path) -> None:
    code, printed, err = gatefx("inspect", artifact)
    assert (code, err) == (0, "")
    for said in ("exported model for onnxruntime", "13 sites", "encoder.layer.1.attention.self.value", "CompactRanks",
                 "model.onnx", "opset", "installed here", "effective rank on the calibration data"):  # fmt: skip
        assert said in printed
    assert "\x1b" not in printed
    described = json.loads(gatefx("inspect", artifact, "--json")[1])
    assert described["verified"] is True
    assert described["installed"]["torch"] == torch.__version__
    assert described["report"]["facts"]["ccm"]["prediction"]["verdict"]


def test_inspect_shows_gates(gatefx: Command, gates_folder: Path) -> None:
    code, printed, _ = gatefx("inspect", gates_folder)
    assert code == 0
    assert "adapter and trained gates" in printed
    assert "gates.safetensors" in printed


def test_inspect_notices_a_truncated_file(gatefx: Command, artifact: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(artifact, tmp_path / "copy"))
    content = (copy / "model.onnx").read_bytes()
    (copy / "model.onnx").write_bytes(content[:-1])
    code, printed, err = gatefx("inspect", copy)
    assert (code, printed) == (2, "")
    assert "'model.onnx'" in err
    assert "truncated" in err


def test_an_exported_model_is_no_model_to_export(gatefx: Command, artifact: Path, tmp_path: Path) -> None:
    code, _, err = gatefx("export", "onnx", artifact, tmp_path / "out")
    assert code == 2
    assert "exported already" in err


def test_every_rank_needs_no_fitting(gatefx: Command, adapter_folder: Path, data_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, _ = gatefx("export", "onnx", adapter_folder, out, "--data", data_file, "--budget", "100%", "--fold")
    assert code == 0
    assert "13 merged" in printed
    assert "distillation" not in printed


def test_gatera_gates_the_lora_of_a_peft_adapter(
    gatefx: Command, adapter_folder: Path, data_file: Path, texts: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "gates"
    code, printed, err = gatefx(
        "optimize", adapter_folder, out, "--method", "gatera", "--budget", "0.5", "--data", data_file,
        "--distill-steps", 3, "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    facts = json.loads(printed)["report"]["facts"]["gatera"]
    assert facts["update_share"] == pytest.approx(0.5, abs=0.01)
    assert json.loads((out / "gatefx.json").read_text())["methods"]["gatera"]["options"]["update"] == "lora"

    code, printed, err = gatefx("inspect", out, "--json", "--data", data_file)
    assert (code, err) == (0, "")
    layers = json.loads(printed)["layers"]
    shares = facts["update_shares"]
    first = [share for name, share in shares.items() if ".layer.0." in name]
    assert layers[0]["sparsity"] == pytest.approx(1 - sum(first) / len(first), abs=1e-6)


def test_a_hira_adapter_is_refused_with_the_way_in_python(
    gatefx: Command, adapter_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(adapter_folder, tmp_path / "hira"))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "HIRA"}))
    code, _, err = gatefx("optimize", folder, tmp_path / "out", "--method", "gatera")
    assert code == 2
    assert "gatefx.optimize(peft_model" in err


def test_cuts_are_chosen_for_a_budget_in_flops_and_saved(
    gatefx: Command, adapter_folder: Path, data_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, printed, err = gatefx(
        "optimize", adapter_folder, out, "--data", data_file, "--method", "masklora", "--budget", "80%flops",
        "--distill-steps", 5,
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "80.0% of the FLOPs buy a schedule that keeps" in printed
    folder = open_model_folder(out)
    gated = load_gated(folder, example_batch(load_tokenizer(folder)))
    config = gated.methods["masklora"].config
    assert config.keep[-1][1] == gated.budget
    assert library.optimize(gated).budget == gated.budget


@pytest.mark.parametrize(
    ("text", "budget"),
    [("6", 6), ("0.4", 0.4), ("40%", "40%"), ("40%flops", Flops(0.4)), ("0.4 FLOPs", Flops(0.4)), ("few", "few")],
)
def test_budgets_as_people_type_them(text: str, budget: object) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["flops", "120%flops", "few flops", "0flops"])
def test_flops_that_are_no_share_are_refused(text: str) -> None:
    with pytest.raises(library.GatefxError, match="share"):
        parse_budget(text)


def test_a_base_without_weights_that_the_adapter_lacks_is_refused(
    base_folder: Path, gates_folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    short = Path(shutil.copytree(base_folder, tmp_path / "short"))
    tensors = load_file(short / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    save_file(kept, short / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(library.GatefxError, match="would be random"):
        load_base(open_model_folder(gates_folder, base=str(short)))
    without_head = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier")}
    save_file(without_head, short / "model.safetensors", metadata={"format": "pt"})
    assert load_base(open_model_folder(gates_folder, base=str(short))).config.num_labels == 3
