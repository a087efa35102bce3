"""Editing helpers: copies that share tensors, new nodes that know shape and origin."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx, nn

from gatefx.errors import PassError
from gatefx.passes.graph.canonical import canonical_text
from gatefx.passes.graph.edit import (
    copy_graph,
    emit,
    emit_attribute,
    emit_module,
    get_tensor,
    module_path,
    own_module,
    own_tensor,
    shape_of,
    tensor_value,
)

aten = torch.ops.aten
MakeGraph = Callable[..., fx.GraphModule]


def test_a_copy_shares_tensors_and_modules_but_not_structure(capture_plain: MakeGraph) -> None:
    graph = capture_plain()
    copied = copy_graph(graph)

    own, theirs = dict(graph.named_parameters()), dict(copied.named_parameters())
    assert own.keys() == theirs.keys()
    assert all(own[name] is theirs[name] for name in own)
    assert copied.get_submodule("dropout_0") is graph.get_submodule("dropout_0")
    own_tensor(copied, "first.extra", torch.zeros(1))
    own_module(copied, "deep.er.module", nn.Dropout())
    assert "first.extra" not in graph.state_dict()
    assert "deep.er.module" not in dict(graph.named_modules())
    copied.meta["new"] = 1
    assert "new" not in graph.meta


@pytest.mark.parametrize("training", [True, False])
def test_a_copy_keeps_the_mode(capture_plain: MakeGraph, training: bool) -> None:
    graph = capture_plain().train(training)

    assert copy_graph(graph).training == training


def test_a_copy_leaves_modules_in_the_mode_they_are_in(capture_plain: MakeGraph) -> None:
    graph = capture_plain().train()
    graph.get_submodule("dropout_0").eval()

    copied = copy_graph(graph)

    assert not graph.get_submodule("dropout_0").training
    assert copied.training


def test_parameters_stay_parameters_and_buffers_buffers(capture_plain: MakeGraph) -> None:
    graph = capture_plain()

    own_tensor(graph, "new.weight", nn.Parameter(torch.ones(2)))
    own_tensor(graph, "new.table", torch.ones(3))

    assert "new.weight" in dict(graph.named_parameters())
    assert "new.table" in dict(graph.named_buffers())
    assert torch.equal(get_tensor(graph, "new.table"), torch.ones(3))


def test_new_nodes_know_shape_origin_and_module(capture_plain: MakeGraph) -> None:
    graph = capture_plain()
    like = graph.graph.find_nodes(op="call_function", target=aten.linear.default)[0]
    own_tensor(graph, "first.shift", torch.ones(10))
    own_module(graph, "extra", nn.Dropout(0.1))

    with graph.graph.inserting_after(like):
        shift = emit_attribute(graph, "first.shift", origin="Test", like=like)
    with graph.graph.inserting_after(shift):
        total = emit(graph.graph, aten.add.Tensor, (like, shift), origin="Test", like=like)
        dropped = emit_module(
            graph.graph, "extra", (like,), shape=shape_of(like), dtype=torch.float64, origin="Test", like=like
        )

    assert shape_of(shift) == (10,)
    assert shape_of(total) == shape_of(like)
    assert isinstance(shape_of(total)[0], torch.SymInt)
    assert tensor_value(dropped).dtype == torch.float64
    for node in (shift, total, dropped):
        assert node.meta["origin"] == "Test"
        assert module_path(node) == "first"


def test_nodes_without_shapes_and_names_without_tensors_are_refused(capture_plain: MakeGraph) -> None:
    graph = capture_plain()
    bare = graph.graph.find_nodes(op="placeholder")[0]
    del bare.meta["val"]

    with pytest.raises(PassError, match="carries no tensor shape"):
        shape_of(bare)
    with pytest.raises(PassError, match="carries no symbolic shape"), graph.graph.inserting_after(bare):
        emit_attribute(graph, "first.weight", origin="Test", like=bare)
    with pytest.raises(PassError, match="not a tensor"):
        get_tensor(graph, "first")


def test_editing_a_copy_leaves_the_text_of_the_original(capture_plain: MakeGraph) -> None:
    graph = capture_plain()
    before = canonical_text(graph)
    copied = copy_graph(graph)
    for node in list(copied.graph.find_nodes(op="call_function", target=aten.tanh.default)):
        node.replace_all_uses_with(node.args[0])
        copied.graph.erase_node(node)

    assert canonical_text(graph) == before
    assert canonical_text(copied) != before
