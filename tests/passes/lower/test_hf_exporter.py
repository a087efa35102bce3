"""transformers' exporters, called as its users call them, run passes of gatefx on the graph."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx_ir
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.exporters.configs import DynamoConfig, OnnxConfig
from transformers.exporters.exporter_dynamo import DynamoExporter
from transformers.exporters.exporter_onnx import OnnxExporter
from transformers.exporters.quantizers import ExportQuantizer

from gatefx.errors import MissingDependencyError
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.lower.hf_exporter import passes_for_exporters
from gatefx.passes.simplify.fold_adapters import FoldAdapters

# The exporters warn about their own experiments.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def adapted() -> nn.Module:
    """A small BERT inside of which PEFT put LoRA that shows."""
    torch.manual_seed(0)
    model = get_peft_model(tiny("bert"), LoraConfig(r=4, target_modules="all-linear")).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return model.base_model.model


EXPORTS: list[tuple[Callable[[], object], Callable[..., object]]] = [
    (DynamoExporter, DynamoConfig),
    (OnnxExporter, OnnxConfig),
]


@pytest.mark.parametrize(("exporter", "config"), EXPORTS, ids=["dynamo", "onnx"])
def test_the_exported_model_has_its_adapters_folded(
    exporter: type[DynamoExporter], config: type[DynamoConfig], adapted: nn.Module
) -> None:
    hook = passes_for_exporters(FoldAdapters())
    batch = tiny_inputs("bert", batch=3, tokens=9)
    exported = exporter().export(adapted, batch, config=config(dynamic=True, quantizer=hook))
    other = tiny_inputs("bert", batch=2, tokens=6, seed=3)
    with torch.no_grad():
        torch.testing.assert_close(exported(**other).logits, adapted(**other).logits, rtol=0, atol=1e-5)
    sites = sum(name.endswith("lora_A") for name, _ in adapted.named_modules())
    (report,) = hook.reports
    assert len(report.fired) == sites > 0
    weights = (
        exported.program.graph.initializers if exporter is OnnxExporter else dict(exported.program.named_parameters())
    )
    assert len(weights) > 0
    assert not [name for name in weights if "lora" in name]


ELSEWHERE = """
import sys
sys.modules["gatefx"] = None
import numpy
given = dict(numpy.load(sys.argv[2]))
expected = given.pop("expected")
if sys.argv[1].endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {spec.name: given[spec.name] for spec in session.get_inputs()})
else:
    import torch
    import transformers.modeling_outputs  # the program answers one of these
    program = torch.export.load(sys.argv[1]).module()
    answer = program(**{name: torch.from_numpy(value) for name, value in given.items()}).logits.detach().numpy()
numpy.testing.assert_allclose(answer, expected, rtol=0, atol=1e-5)
"""


@pytest.mark.parametrize(("exporter", "config"), EXPORTS, ids=["dynamo", "onnx"])
def test_what_was_exported_runs_where_gatefx_is_not(
    exporter: type[DynamoExporter], config: type[DynamoConfig], adapted: nn.Module, tmp_path: Path
) -> None:
    hook = passes_for_exporters(FoldAdapters())
    batch = tiny_inputs("bert", batch=3, tokens=9)
    exported = exporter().export(adapted, batch, config=config(dynamic=True, quantizer=hook))
    save, name = (onnx_ir.save, "model.onnx") if exporter is OnnxExporter else (torch.export.save, "model.pt2")
    file = tmp_path / name
    save(exported.program, file)
    other = tiny_inputs("bert", batch=2, tokens=6, seed=3)
    with torch.no_grad():
        expected = adapted(**other).logits
    np.savez(tmp_path / "given.npz", expected=expected, **{name: value.numpy() for name, value in other.items()})
    command = [sys.executable, "-W", "ignore", "-c", ELSEWHERE, str(file), str(tmp_path / "given.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_hook_is_what_transformers_asks_for() -> None:
    assert ExportQuantizer.__abstractmethods__ == {"quantize"}
    assert list(inspect.signature(ExportQuantizer.quantize).parameters) == [
        "self",
        "model",
        "sample_inputs",
        "export_format",
    ]
    assert isinstance(passes_for_exporters(), ExportQuantizer)


def test_an_older_transformers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: "5.22.1")
    with pytest.raises(MissingDependencyError, match=r"Running passes in .* needs a newer transformers"):
        passes_for_exporters(FoldAdapters())
