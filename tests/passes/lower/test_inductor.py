"""Passes inside Inductor: they run on its graphs, after what stands there, and its cache knows them apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

# Inductor imports setuptools with it, which takes the place of distutils: at once, and not in the midst of some test.
import torch.utils.cpp_extension
from torch import Tensor, fx, nn
from torch._dynamo.utils import counters
from torch._inductor import config

from gatefx.passes.contract import Pass
from gatefx.passes.graph.edit import emit_attribute, own_tensor
from gatefx.passes.lower.inductor import InductorPass, patched
from gatefx.passes.pipeline import Pipeline
from gatefx.passes.report import Outcome
from gatefx.passes.simplify.dead_code import EliminateDeadCode
from gatefx.runtime.capabilities import capabilities
from gatefx.runtime.dynamo_backend import gatefx as backend

aten = torch.ops.aten


@dataclass(frozen=True)
class ScaleTanh(Pass):
    """tanh(x) → factor · tanh(x): a rewrite that shows."""

    factor: float

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        found = graph_module.graph.find_nodes(op="call_function", target=aten.tanh.default)
        for node in found:
            with graph_module.graph.inserting_after(node):
                own_tensor(graph_module, "factor", torch.tensor(self.factor))
                factor = emit_attribute(graph_module, "factor", origin=self.name, like=node)
            with graph_module.graph.inserting_after(factor):
                scaled = graph_module.graph.call_function(aten.mul.Tensor, (node, factor))
                scaled.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(scaled, delete_user_cb=lambda user, kept=scaled: user is not kept)
        return Outcome(tuple(node.name for node in found), ())


@pytest.fixture
def compiler() -> Iterator[None]:
    if not next(row.available for row in capabilities() if row.name == "torch.compile"):
        pytest.skip("Inductor needs a C++ compiler")
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh())


needs_torch = pytest.mark.filterwarnings(
    "ignore:`torch.jit:DeprecationWarning"
)  # torch's own, when it imports Inductor


@needs_torch
@pytest.mark.usefixtures("compiler")
def test_passes_rewrite_what_inductor_compiles() -> None:
    plain, x = model(), torch.randn(3, 5)
    seen: list[int] = []
    standing = config.post_grad_custom_pre_pass
    with config.patch(post_grad_custom_pre_pass=lambda graph: seen.append(len(graph.nodes)), fx_graph_cache=False):
        compiled = torch.compile(plain, backend=backend, options={"passes": [ScaleTanh(3.0)]})
        torch.testing.assert_close(compiled(x), 3 * plain(x))
    assert seen
    assert config.post_grad_custom_pre_pass is standing
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(plain, backend=backend)(x), plain(x))


@needs_torch
@pytest.mark.usefixtures("compiler")
def test_models_in_training_keep_their_gradients() -> None:
    plain, x = model(), torch.randn(3, 5)
    compiled = torch.compile(plain, backend=backend, options={"passes": [EliminateDeadCode()]})
    found = torch.autograd.grad(compiled(x).square().sum(), list(plain.parameters()))
    wanted = torch.autograd.grad(plain(x).square().sum(), list(plain.parameters()))
    torch.testing.assert_close(found, wanted)


def test_an_inductor_pass_edits_the_graph_it_is_given() -> None:
    def function(x: Tensor) -> tuple[Tensor]:
        return (torch.tanh(x),)

    from torch.fx.experimental.proxy_tensor import make_fx

    traced = make_fx(function, tracing_mode="fake")(torch.ones(2))
    graph, text = traced.graph, traced.code
    InductorPass(Pipeline((EliminateDeadCode(),)))(graph)
    traced.recompile()
    assert traced.code == text
    InductorPass(Pipeline((ScaleTanh(2.0),)))(graph)
    assert traced.graph is graph
    traced.recompile()
    graph.lint()
    torch.testing.assert_close(traced(torch.ones(2))[0], 2 * torch.ones(2).tanh())


def test_the_digest_tells_options_and_passes_apart() -> None:
    digests = [
        InductorPass(Pipeline(passes)).uuid()
        for passes in ((ScaleTanh(2.0),), (ScaleTanh(3.0),), (EliminateDeadCode(),), (ScaleTanh(2.0),))
    ]
    assert len(set(digests)) == 3
    assert digests[0] == digests[-1]


def test_passes_that_stand_in_the_config_stay_first() -> None:
    def standing(graph: fx.Graph) -> None:
        """Somebody else's."""

    for given in (standing, [standing], None):
        with config.patch(post_grad_custom_pre_pass=given):
            (chain,) = patched([EliminateDeadCode()], config).values()
        assert chain[:-1] == ([] if given is None else [standing])
        assert chain[-1] == InductorPass(Pipeline((EliminateDeadCode(),)))
