"""Every exported graph keeps the rules of TensorRT, and where its builder is installed, becomes an engine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import gatefx
from gatefx.errors import InputError
from gatefx.models.configs.catalogue import METHODS
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.deployed import DeployedModel
from gatefx.runtime.tensorrt.axes import AxisRange, AxisRanges
from gatefx.runtime.tensorrt.half_precision import in_half_precision
from gatefx.runtime.tensorrt.lint import lint
from gatefx.runtime.tensorrt.verify import verify

needs_builder = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt-rtx is not installed here: no engine is built (pip install 'gatefx[tensorrt]')",
)
ExportedMethod = Callable[[str, str], Path]
STEPS = 8
BUDGETS: dict[str, float | None] = {"ccm": 3, "gatera": 0.5, "weightlora": None}


def deployed(family: str, method: str) -> DeployedModel:
    """A small model of `family`, trained for a few steps with `method` and hardened."""
    torch.manual_seed(0)
    model = tiny(family)
    data = [tiny_inputs(model, batch=4, tokens=9, seed=seed) for seed in range(3)]
    gated = gatefx.prepare(model, replace(METHODS[method], rank=8), budget=BUDGETS[method], example_inputs=data[0])
    optimiser = torch.optim.AdamW([p for p in gated.parameters() if p.requires_grad], lr=1e-2)
    schedule = gated.schedule(STEPS, optimiser)
    gated.train()
    for step in range(STEPS):
        next(iter(gated(**data[step % 3]).values())).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    options = {"forms": "gathered"} if method == "ccm" else {}
    return gatefx.optimize(gated.eval(), data=data, **options)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportedMethod:
    """family, method → the exported ONNX file; made once."""

    @cache
    def make(family: str, method: str) -> Path:
        folder = tmp_path_factory.mktemp("artifacts") / f"{family}-{method}"
        return gatefx.export(deployed(family, method), folder) / "model.onnx"

    return make


BATCH, LENGTH = AxisRange(1, 4, 8), AxisRange(8, 16, 32)


def axes_of(model: Path) -> AxisRanges:
    """Every open axis of the inputs: axis 0 is the batch, any other a length."""
    graph = onnx.load(model, load_external_data=False).graph
    dims = [(place, dim) for value in graph.input for place, dim in enumerate(value.type.tensor_type.shape.dim)]
    return {dim.dim_param: LENGTH if place else BATCH for place, dim in dims if dim.dim_param}


def one_product(folder: Path, *, width: int = 32, place: str = "n") -> Path:
    """A file of one MatMul (n, 32) · (width, 16)."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "one_product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [place, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [place, 16])],
        [numpy_helper.from_array(np.full((width, 16), 1e9, np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "m.onnx")
    return folder / "m.onnx"


@pytest.mark.parametrize("method", BUDGETS)
def test_exported_graphs_keep_the_rules(method: str, exported: ExportedMethod) -> None:
    path = exported("bert", method)
    assert lint(onnx.load(path, load_external_data=False), axes_of(path)) == ()


@needs_builder
@pytest.mark.parametrize("method", BUDGETS)
def test_exported_graphs_become_engines(method: str, exported: ExportedMethod) -> None:
    path = exported("bert", method)
    for verdict in verify(path, axes_of(path)):
        assert verdict.accepted, (verdict.precision, verdict.refusals)


@pytest.mark.slow
@needs_builder
@pytest.mark.parametrize("family", ["roberta", "distilbert", "electra", "mpnet", "albert", "modernbert", "llama"])
@pytest.mark.parametrize("method", BUDGETS)
def test_other_families_become_engines(family: str, method: str, exported: ExportedMethod) -> None:
    path = exported(family, method)
    for verdict in verify(path, axes_of(path)):
        assert verdict.accepted, (verdict.precision, verdict.refusals)


@needs_builder
def test_a_verdict_says_what_was_built(tmp_path: Path) -> None:
    (verdict,) = verify(one_product(tmp_path), {"n": BATCH}, ["fp32"])
    assert (verdict.precision, verdict.refusals, verdict.accepted) == ("fp32", (), True)
    assert verdict.builder.startswith("tensorrt-rtx 1.")
    assert verdict.layers > 0


@needs_builder
def test_a_graph_that_cannot_be_built_is_refused_in_words(tmp_path: Path) -> None:
    for verdict in verify(one_product(tmp_path, width=31), {"n": BATCH}):
        assert not verdict.accepted
        assert verdict.refusals


def test_an_axis_without_a_range_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="range for n as well"):
        verify(one_product(tmp_path), {"batch": BATCH})


def test_half_precision_leaves_no_float32_and_no_infinity(exported: ExportedMethod, tmp_path: Path) -> None:
    given = onnx.load(exported("bert", "ccm"))
    half = in_half_precision(given)

    assert {w.data_type for w in half.graph.initializer}.isdisjoint({TensorProto.FLOAT})
    assert {v.type.tensor_type.elem_type for v in half.graph.output} == {TensorProto.FLOAT16}
    assert not half.functions
    large = in_half_precision(onnx.load(one_product(tmp_path)))
    assert float(numpy_helper.to_array(large.graph.initializer[0]).max()) == np.finfo(np.float16).max
    assert TensorProto.FLOAT in {w.data_type for w in given.graph.initializer}
