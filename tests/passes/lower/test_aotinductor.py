"""A `.pt2` runs where gatefx is not; what it could not hold is refused before anything is written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import gatefx
from gatefx.config import AdapterConfig
from gatefx.errors import ArtifactError, CaptureError, InputError, MissingDependencyError
from gatefx.methods import CCM, MaskLoRA
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.lower import aotinductor as module

from ...sampling import rest_slow

SIZES = ((4, 7), (1, 10), (3, 13))
RUN_WITHOUT_GATEFX = """
import sys
sys.modules["gatefx"] = None  # any import of it raises
import torch
package, file = sys.argv[1:]
batches, wanted = torch.load(file)
model = torch._inductor.aoti_load_package(package)
for batch, logits in zip(batches, wanted, strict=True):
    torch.testing.assert_close(model(*batch.values())["logits"], logits, rtol=0, atol=1e-5)
assert not any(name.startswith("gatefx.") for name in sys.modules)
print("equal", len(batches))
"""


def deployed(config: AdapterConfig, budget: float, forms: str) -> Any:
    batches = [tiny_inputs("bert", 4, 7, seed) for seed in range(2)]
    gated = gatefx.prepare(tiny("bert"), config, budget, example_inputs=batches[0])
    for name, buffer in gated.named_buffers():
        if name.endswith("updates"):
            buffer.fill_(1)  # gates count as trained, so that none are fitted
    with torch.no_grad():
        for parameter in gated.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    return gatefx.optimize(gated, budget=budget, data=batches, forms=forms, progress=False)


def inputs(model: Any, size: tuple[int, int], seed: int) -> dict[str, Tensor]:
    given = tiny_inputs("bert", *size, seed)
    return {name: given[name] for name in model.signature.input_names}


@pytest.fixture(scope="module")
def masked() -> Any:
    return deployed(CCM(rank=8), 4, "masked")


@pytest.mark.slow  # a compile takes more than a minute on a busy machine
@torch.no_grad()
def test_a_process_without_gatefx_answers_the_same(masked: Any, tmp_path: Path) -> None:
    package = gatefx.export(masked, tmp_path / "new" / "model.pt2", backend="aotinductor")
    batches = [inputs(masked, size, seed) for seed, size in enumerate(SIZES)]
    torch.save((batches, [masked(**batch)["logits"] for batch in batches]), tmp_path / "wanted.pt")

    command = [sys.executable, "-c", RUN_WITHOUT_GATEFX, str(package), str(tmp_path / "wanted.pt")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300)

    assert ran.stdout.strip() == f"equal {len(SIZES)}", ran.stderr
    assert [path.name for path in package.parent.iterdir()] == ["model.pt2"]


@pytest.mark.parametrize(
    ("config", "budget", "forms", "operator", "masked_helps"),
    [
        (CCM(rank=8), 4, "gathered", "gatefx::gated_lora", True),
        (MaskLoRA(rank=4), 0.5, "masked", "gatefx::select_tokens", False),
    ],
)
def test_operators_of_gatefx_are_named_and_refused(
    config: AdapterConfig, budget: float, forms: str, operator: str, masked_helps: bool, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=operator) as caught:
        gatefx.export(deployed(config, budget, forms), tmp_path / "new" / "model.pt2", backend="aotinductor")
    assert ('forms="masked"' in caught.value.remedy) == masked_helps
    assert 'backend="onnxruntime"' in caught.value.remedy
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options", [{"tokenizer": SimpleNamespace(save_pretrained=print)}, {"opset": 18}, {"generate": True}]
)
def test_options_of_a_folder_are_refused(masked: Any, options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        gatefx.export(masked, tmp_path / "model.pt2", backend="aotinductor", **options)
    assert caught.value.given == next(iter(options))


def test_a_missing_compiler_says_what_to_install(masked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingDependencyError, match="no-such-compiler") as caught:
        gatefx.export(masked, tmp_path / "model.pt2", backend="aotinductor")
    assert "apt install g++" in caught.value.remedy


def test_another_ending_and_a_name_that_is_taken_are_refused(masked: Any, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"\.pt2"):
        gatefx.export(masked, tmp_path / "out", backend="aotinductor")
    (tmp_path / "model.pt2").write_text("old")
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(ArtifactError, match="exists"):
        gatefx.export(masked, tmp_path / "model.pt2", backend="aotinductor")
    with pytest.raises(ArtifactError, match="exists"):
        gatefx.export(masked, tmp_path / "folder.pt2", backend="aotinductor", overwrite=True)
    assert (tmp_path / "model.pt2").read_text() == "old"


@pytest.mark.parametrize(
    "error", rest_slow([RuntimeError("missing lowering"), OSError("disk full"), KeyboardInterrupt("stop")])
)
def test_a_failed_compile_leaves_the_old_file_and_nothing_else(
    masked: Any, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_program: object, *, package_path: str, **_options: object) -> None:
        Path(package_path).write_text("half")
        raise error

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    (tmp_path / "model.pt2").write_text("old")
    expected = CaptureError if isinstance(error, Exception) else type(error)
    with pytest.raises(expected, match=str(error)):
        gatefx.export(masked, tmp_path / "model.pt2", backend="aotinductor", overwrite=True)
    with pytest.raises(expected):
        gatefx.export(masked, tmp_path / "new" / "model.pt2", backend="aotinductor")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"model.pt2": "old"}


def test_a_finished_file_replaces_the_old_one(masked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(_program: object, *, package_path: str, **_options: object) -> None:
        Path(package_path).write_text("new")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", write)
    (tmp_path / "model.pt2").write_text("old")
    written = gatefx.export(masked, tmp_path / "model.pt2", backend="aotinductor", overwrite=True)
    assert written == tmp_path / "model.pt2"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"model.pt2": "new"}


def test_a_model_elsewhere_than_on_the_cpu_is_refused(tmp_path: Path) -> None:
    graph = torch.fx.symbolic_trace(torch.nn.Identity())
    with pytest.raises(InputError, match="meta"):
        module.save_aotinductor(graph, {"x": torch.empty(2, 3, device="meta")}, tmp_path / "model.pt2")
