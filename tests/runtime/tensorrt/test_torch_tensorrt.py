"""The door to torch-tensorrt: what is missing is named; where the package is, graphs become whole engines.

Numbers are never compared: an engine runs on a GPU. See `conftest.py` for what stands in for one.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest
import torch

import gatefx
from gatefx.config import AdapterConfig
from gatefx.errors import CaptureError, MissingDependencyError, ProviderError
from gatefx.methods import CCM, TSPEFT, GateRA, MaskLoRA
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.runtime.artifact import Artifact, ArtifactWriter
from gatefx.runtime.tensorrt import torch_tensorrt as door
from gatefx.runtime.tensorrt.build_files import Profile, read_profile, write_torch_build_files

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("torch_tensorrt") is None,
    reason="torch-tensorrt is not installed here: no graph is compiled by it (make torch-tensorrt-checks)",
)
PROFILE: Profile = {"x": {"min": [1, 8], "opt": [2, 8], "max": [4, 8]}}
FAMILIES = ("bert", "roberta", "distilbert", "electra", "modernbert", "llama")
CONFIGS: dict[str, tuple[AdapterConfig, float | None]] = {
    "ccm": (CCM(rank=8), 3),
    "gatera": (GateRA(rank=8), 0.5),
    "masklora": (MaskLoRA(rank=8), 0.5),
    "tspeft": (TSPEFT(rank=8), None),
}


class Product(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class Unknown(torch.nn.Module):
    """A function that no engine has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x) + 1


def program(module: torch.nn.Module) -> torch.export.ExportedProgram:
    axes = ({0: torch.export.Dim("batch", min=1, max=4)},)
    return torch.export.export(module.eval(), (torch.ones(2, 8),), dynamic_shapes=axes, strict=False)


def exported(family: str, method: str, folder: Path, precision: str = "fp32", *, check: bool = False) -> Path:
    torch.manual_seed(0)
    model = tiny(family)
    data = [tiny_inputs(model, batch=4, tokens=9, seed=seed) for seed in range(2)]
    config, budget = CONFIGS[method]
    gated = gatefx.prepare(model, config, budget=budget, example_inputs=data[0])
    fast = gatefx.optimize(gated.eval(), data=data, forms="gathered" if method == "ccm" else None, progress=False)
    return gatefx.export(
        fast, folder / "out", backend="tensorrt", through="torch_tensorrt", precision=precision, check=check
    )


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(MissingDependencyError, match="'torch-tensorrt'") as caught:
        door.dry_run(program(Product()), PROFILE)
    assert 'through="onnx"' in caught.value.remedy


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = ModuleType("torch_tensorrt")
    other.__version__ = "2.14.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_tensorrt", other)
    with pytest.raises(MissingDependencyError, match=re.escape(door.VERSION)) as caught:
        door.import_torch_tensorrt()
    assert "2.14.0" in caught.value.given


def test_a_package_that_asks_for_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the real one is, where torch was built without CUDA: it raises whatever torch does."""
    (tmp_path / "torch_tensorrt.py").write_text("raise AssertionError('Torch not compiled with CUDA enabled')")
    monkeypatch.delitem(sys.modules, "torch_tensorrt", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ProviderError, match="GPU") as caught:
        door.import_torch_tensorrt()
    assert "not compiled with CUDA" in caught.value.given


def test_the_script_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with ArtifactWriter(tmp_path / "out") as writer:
        torch.export.save(program(Product()), writer.path / "program.pt2")
        write_torch_build_files(writer.path, PROFILE)
        described = {"methods": {}, "budget": 4, "inputs": ["x"], "outputs": ["y"], "axes": {}}
        folder = writer.commit({**described, "backend": "tensorrt", "built_later": ["model.engine"]}).path
    assert "torch_tensorrt import main" in (folder / "build_engine.py").read_text()
    assert door.main(folder) == 1
    assert "'torch-tensorrt'" in capsys.readouterr().err
    assert not (folder / "model.engine").exists()


class Selects(torch.nn.Module):
    """A program with an operator of gatefx's, as masklora's have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.gatefx.gather_tokens(x.unsqueeze(-1), torch.zeros(x.shape[0], 2, dtype=torch.int64), 1)


def test_a_fresh_process_reads_programs_with_our_operators(tmp_path: Path) -> None:
    """The folder's script imports this door alone."""
    torch.export.save(program(Selects()), tmp_path / "program.pt2")
    code = (
        "import sys; from gatefx.runtime.tensorrt import torch_tensorrt; import torch; "
        "print(torch.export.load(sys.argv[1]).module()(torch.ones(3, 8)).shape)"
    )
    call = [sys.executable, "-c", code, str(tmp_path / "program.pt2")]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "torch.Size([3, 2, 1])"), done.stderr


def test_a_program_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ArtifactWriter(tmp_path / "out") as writer:
        (writer.path / "program.pt2").write_bytes(b"nothing")
        write_torch_build_files(writer.path, PROFILE)
        described = {"methods": {}, "budget": 4, "inputs": ["x"], "outputs": ["y"], "axes": {}}
        folder = writer.commit({**described, "backend": "tensorrt", "built_later": ["model.engine"]}).path
    assert door.main(folder) == 1
    assert "does not load the program" in capsys.readouterr().err


@needs_package
@pytest.mark.usefixtures("torch_tensorrt_without_gpu")
def test_a_dry_run_counts_what_is_converted() -> None:
    found = door.checked_dry_run(program(Product()), PROFILE)
    assert found.compiler.startswith(f"torch-tensorrt {door.VERSION}.")
    assert (found.engines, found.in_torch) == (1, ())
    assert found.converted >= 1


@needs_package
@pytest.mark.usefixtures("torch_tensorrt_without_gpu")
def test_what_no_engine_takes_is_named() -> None:
    assert door.dry_run(program(Unknown()), PROFILE).in_torch == ("aten.special_bessel_j0.default",)
    with pytest.raises(CaptureError, match="whole graph") as caught:
        door.checked_dry_run(program(Unknown()), PROFILE)
    assert "bessel" in caught.value.given
    with pytest.raises(CaptureError):
        door.build_engine(program(Unknown()), PROFILE)


@needs_package
@pytest.mark.usefixtures("torch_tensorrt_without_gpu")
@pytest.mark.parametrize("method", CONFIGS)
def test_exported_graphs_become_one_engine(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every operator of gatefx is converted, and the folder's script builds."""
    folder = exported("bert", method, tmp_path, check=True)
    found = Artifact.open(folder).manifest["dry_run"]
    assert (found["engines"], found["in_torch"]) == (1, [])
    assert found["converted"] > 100
    assert door.main(folder) == 0
    assert f"written: {folder / 'model.engine'}" in capsys.readouterr().out
    assert (folder / "model.engine").stat().st_size > 1000
    Artifact.open(folder)


@needs_package
@pytest.mark.usefixtures("torch_tensorrt_without_gpu")
def test_an_engine_names_inputs_and_outputs_as_the_session_expects(tmp_path: Path) -> None:
    artifact = Artifact.open(exported("bert", "ccm", tmp_path))
    lowered = torch.export.load(artifact.file("program.pt2"))
    compiled = door._compiled(door.import_torch_tensorrt(), lowered, read_profile(artifact), dryrun=False)
    (engine,) = compiled.children()
    assert list(engine.input_binding_names) == artifact.manifest["inputs"]
    assert list(engine.output_binding_names) == list(artifact.manifest["engine_outputs"].values())


@pytest.mark.slow
@needs_package
@pytest.mark.usefixtures("torch_tensorrt_without_gpu")
# torch-tensorrt's advice on tables of a decoder's positions, which TensorRT folds itself.
@pytest.mark.filterwarnings("ignore:Both operands of the binary elementwise op:UserWarning")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(
    ("family", "method"),
    # A causal classifier keeps its tokens: masklora refuses it.
    [pair for pair in product(FAMILIES, CONFIGS) if pair != ("llama", "masklora")],
)
def test_families_and_precisions_become_engines(family: str, method: str, precision: str, tmp_path: Path) -> None:
    assert door.main(exported(family, method, tmp_path, precision, check=True)) == 0
