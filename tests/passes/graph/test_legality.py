"""Each rule of the graph, broken once."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import fx, nn

from gatefx.errors import PassError
from gatefx.passes.graph.legality import RULES, check_legality

aten = torch.ops.aten
MakeGraph = Callable[..., fx.GraphModule]


def add_node(graph_module: fx.GraphModule, target: object, args: tuple[object, ...] = (), op: str = "call_function"):
    """A node in front of the output that the output reads, with value and provenance of the node it replaces."""
    graph = graph_module.graph
    output = graph.output_node()
    (last,) = output.all_input_nodes
    with graph.inserting_before(output):
        node = graph.create_node(op, target, args or (last,))
    node.meta.update(last.meta)
    output.replace_input_with(last, node)
    return node


def test_captured_graphs_obey_every_rule(capture_plain: MakeGraph) -> None:
    check_legality(capture_plain())
    assert len({rule.name for rule in RULES}) == len(RULES)


@pytest.mark.parametrize(
    ("rule", "op", "target"),
    [
        ("known operation", "call_method", "relu"),
        ("ATen functions only", "call_function", torch.relu),
        ("ATen functions only", "call_function", operator.matmul),
        ("no in-place operator", "call_function", aten.relu_.default),
    ],
)
def test_foreign_nodes_are_named(capture_plain: MakeGraph, rule: str, op: str, target: object) -> None:
    graph = capture_plain()
    node = add_node(graph, target, op=op)

    with pytest.raises(PassError, match=rf"rule {rule!r} at node {node.name}") as caught:
        check_legality(graph)
    assert "addmm" in str(caught.value) or "linear" in str(caught.value), "the neighbourhood is printed"


def test_a_missing_tensor_is_named(capture_plain: MakeGraph) -> None:
    graph = capture_plain()
    del graph.first.weight  # type: ignore[union-attr]

    with pytest.raises(PassError, match=r"first\.weight|not well formed"):
        check_legality(graph)


def test_a_module_that_is_no_gate_is_named(capture_plain: MakeGraph) -> None:
    graph = capture_plain()
    graph.add_module("dropout_0", nn.ReLU())

    with pytest.raises(PassError, match="ReLU is no gate and no dropout"):
        check_legality(graph)


@pytest.mark.parametrize(("key", "rule"), [("val", "symbolic values"), ("module_path", "provenance")])
def test_nodes_without_facts_are_named(capture_plain: MakeGraph, key: str, rule: str) -> None:
    graph = capture_plain()
    node = graph.graph.find_nodes(op="call_function", target=aten.tanh.default)[0]
    del node.meta[key]

    with pytest.raises(PassError, match=rf"rule {rule!r} at node {node.name}"):
        check_legality(graph)


def test_unnamed_outputs_are_refused(capture_plain: MakeGraph) -> None:
    graph = capture_plain()
    output = graph.graph.output_node()
    output.args = (tuple(output.args[0].values()),)  # type: ignore[union-attr]

    with pytest.raises(PassError, match="named outputs"):
        check_legality(graph)


def test_dead_nodes_are_refused_and_unread_inputs_are_not(capture_plain: MakeGraph) -> None:
    graph = capture_plain()
    first = graph.graph.find_nodes(op="placeholder")[0]
    with graph.graph.inserting_after(graph.graph.find_nodes(op="placeholder")[-1]):
        dead = graph.graph.call_function(aten.sin.default, (first,))
    dead.meta.update(first.meta)

    with pytest.raises(PassError, match=r"no dead nodes.*sin.*nothing uses it"):
        check_legality(graph)


def test_an_argument_used_before_it_is_made_is_refused(capture_plain: MakeGraph) -> None:
    graph = capture_plain()
    first, second = graph.graph.find_nodes(op="call_function", target=aten.tanh.default)
    first.append(graph.graph.output_node())
    first.args = (second,)

    with pytest.raises(PassError, match="not well formed"):
        check_legality(graph)
