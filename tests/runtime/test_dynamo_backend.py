"""torch.compile's backend by the name gatefx: Inductor's code answers like the model, once for every length."""

from __future__ import annotations

import importlib
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch._dynamo import config as dynamo_config
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.utils import counters

import gatefx
from gatefx.errors import GatefxError
from gatefx.methods import CCM
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.simplify.dead_code import EliminateDeadCode
from gatefx.runtime.capabilities import capabilities
from gatefx.runtime.dynamo_backend import gatefx as backend

LENGTHS = (7, 10, 13)
ROOT = Path(__file__).resolve().parents[2]


def has_compiler() -> bool:
    return next(row.available for row in capabilities() if row.name == "torch.compile")


@pytest.mark.skipif(not has_compiler(), reason="Inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, when it imports Inductor
@pytest.mark.slow
@torch.no_grad()
def test_one_graph_answers_for_three_lengths() -> None:
    # In float64, where the rounding of fused sums does not blur a wrong answer.
    batches = [tiny_inputs("bert", 4, tokens, seed) for seed, tokens in enumerate(LENGTHS)]
    gated = gatefx.prepare(tiny("bert").double(), CCM(rank=8), 4, example_inputs=batches[0])
    for name, buffer in gated.named_buffers():
        if name.endswith("updates"):
            buffer.fill_(1)  # gates count as trained, so that none are fitted
    for parameter in gated.parameters():
        if parameter.requires_grad:
            parameter.normal_(std=0.3)
    model = gatefx.optimize(gated, budget=4, data=batches, progress=False)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    compiled(**batches[0])

    with dynamo_config.patch(error_on_recompile=True):
        for batch in batches:
            torch.testing.assert_close(compiled(**batch)["logits"], model(**batch)["logits"])

    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_torch_lists_it_where_gatefx_is_installed() -> None:
    try:
        metadata.distribution("gatefx")
    except metadata.PackageNotFoundError:
        pytest.skip("gatefx runs from its sources here: nothing says its entry points")
    assert "gatefx" in torch._dynamo.list_backends()


def test_unknown_options_are_refused() -> None:
    graph = torch.fx.symbolic_trace(torch.nn.ReLU())
    with pytest.raises(GatefxError, match=r"colour, speed[\s\S]*passes"):
        backend(graph, [torch.ones(2)], options={"speed": 1, "colour": "red"})


@pytest.mark.parametrize("passes", ["dead code", [torch.relu], 3, [EliminateDeadCode]])
def test_what_is_no_pass_is_refused(passes: object) -> None:
    graph = torch.fx.symbolic_trace(torch.nn.ReLU())
    with pytest.raises(GatefxError, match="holds gatefx passes"):
        backend(graph, [torch.ones(2)], options={"passes": passes})


def test_torch_compile_hands_the_refusal_on() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(torch.nn.ReLU(), backend=backend, options={"speed": 1})
    with pytest.raises(BackendCompilerFailed, match="speed") as caught:
        compiled(torch.ones(2))
    assert isinstance(caught.value.inner_exception, GatefxError)


def test_the_entry_point_names_this_function() -> None:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["torch_dynamo_backends"]
    module, _, name = points["gatefx"].partition(":")
    assert getattr(importlib.import_module(module), name) is backend


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"lower": "tensorrt"}, r"'inductor' or 'onnxruntime'"),
        ({"lower": None}, "names what runs the graph"),
        ({"provider": "cpu"}, r"lower='inductor'[\s\S]*provider"),
        ({"lower": "onnxruntime", "passes": []}, r"lower='onnxruntime'[\s\S]*passes"),
        ({"lower": "onnxruntime", "provider": 3}, "'provider' names"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, object], reason: str) -> None:
    graph = torch.fx.symbolic_trace(torch.nn.ReLU())
    with pytest.raises(GatefxError, match=reason):
        backend(graph, [torch.ones(2)], options=options)


def test_a_mode_is_refused() -> None:
    graph = torch.fx.symbolic_trace(torch.nn.ReLU())
    with pytest.raises(GatefxError, match="takes no mode"):
        backend(graph, [torch.ones(2)], mode="max-autotune")
