from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
import torch

import gatefx
from gatefx.methods import CCM
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.runtime.native.session_model import native_model
from gatefx.runtime.native.site_groups import group_sites

from .cases import BOUNDS, error
from .linear_cases import LINEAR_SHAPES, LinearCase
from .linear_sessions import FED, LAYER, WEIGHTS, fed
from .runs import all_equal_from_four_callers, opened

OWN = [*LAYER[1:], "indices", "scale"]
FIXED = [name for name in OWN if name in WEIGHTS]


def cases(shape: tuple[Any, ...], dtype: torch.dtype, count: int) -> list[LinearCase]:
    """Sites of one x: the second has fewer outputs and another rank than the others."""
    batch, middle, d_in, d_out, rank = shape
    sizes = [(d_out, rank), (max(1, d_out // 3), max(1, rank // 2)), (d_out, rank)][:count]
    return [LinearCase((batch, middle, d_in, out, r), dtype, seed) for seed, (out, r) in enumerate(sizes)]


def feed_of(sites: list[LinearCase]) -> dict[str, np.ndarray]:
    """Tensors of site i end in its number; all read the first one's x."""
    own = {f"{name}{place}": fed(case)[name] for place, case in enumerate(sites) for name in OWN}
    return {"x": fed(sites[0])["x"], **own}


def single_nodes(feed: dict[str, np.ndarray], count: int) -> onnx_ir.Model:
    """A node a site."""
    names = [name for name in feed if name.rstrip("0123456789") not in FIXED]
    open_axes: list[int | str] = [f"a{axis}" for axis in range(feed["x"].ndim - 1)]
    axes = {name: ["a0", feed[name].shape[1]] for name in names if name.startswith("indices")}
    axes["x"] = [*open_axes, feed["x"].shape[-1]]
    inputs = {
        name: onnx_ir.Value(
            name=name,
            type=onnx_ir.TensorType(onnx_ir.DataType.from_numpy(feed[name].dtype)),
            shape=onnx_ir.Shape(axes.get(name, feed[name].shape)),
        )
        for name in names
    }
    weights = {
        name: onnx_ir.Value(name=name, const_value=onnx_ir.tensor(feed[name]), shape=onnx_ir.Shape(feed[name].shape))
        for name in feed
        if name not in names
    }
    known = {**inputs, **weights}
    nodes = [
        onnx_ir.Node("gatefx", "GatedLinear", [known["x"], *(known[f"{name}{site}"] for name in OWN)], num_outputs=1)
        for site in range(count)
    ]
    for site, node in enumerate(nodes):
        node.outputs[0].name, node.outputs[0].type = f"y{site}", inputs["x"].type
        node.outputs[0].shape = onnx_ir.Shape([*open_axes, feed[f"weight{site}"].shape[0]])
    graph = onnx_ir.Graph(
        list(inputs.values()),
        [node.outputs[0] for node in nodes],
        nodes=nodes,
        initializers=list(weights.values()),
        opset_imports={"": 23, "gatefx": 1},
        name="sites",
    )
    return onnx_ir.Model(graph, ir_version=10)


def answers(model: onnx_ir.Model, folder: Path, threads: int, feed: dict[str, np.ndarray]) -> list[torch.Tensor]:
    made = opened(onnx_ir.to_proto(model), folder, threads)
    taken = {node.name: feed[node.name] for node in made.get_inputs()}
    return [torch.from_numpy(answer) for answer in made.run(None, taken)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", FED)
@pytest.mark.parametrize(("count", "name"), [(2, "GatedLinearPair"), (3, "GatedLinearTriple")])
def test_sites_of_one_x_are_one_node_and_each_answers_the_same_bits(
    native_folder: Path, isa: str, count: int, name: str, dtype: torch.dtype, threads: int
) -> None:
    for shape in LINEAR_SHAPES:
        sites = cases(shape, dtype, count)
        feed = feed_of(sites)
        single, joined = single_nodes(feed, count), single_nodes(feed, count)
        assert group_sites(joined) == 1
        assert [node.op_type for node in joined.graph] == [name]
        assert group_sites(joined) == 0
        expected, found = (answers(model, native_folder, threads, feed) for model in (single, joined))
        for one, other in zip(expected, found, strict=True):
            assert torch.equal(one, other), shape
        assert error(found[0], sites[0].rank_gated()[1]) <= BOUNDS[dtype], shape


def test_a_fourth_site_stays_alone() -> None:
    sites = [*cases((2, (3,), 5, 7, 3), torch.float32, 3), LinearCase((2, (3,), 5, 7, 3), torch.float32, 9)]
    model = single_nodes(feed_of(sites), 4)
    assert group_sites(model) == 1
    assert sorted(node.op_type for node in model.graph) == ["GatedLinear", "GatedLinearTriple"]


def from_the_first(model: onnx_ir.Model) -> None:
    """The second site's scale is computed from what the first answers."""
    first, second = model.graph
    scale = onnx_ir.Node("", "ReduceMax", [first.outputs[0]], [onnx_ir.AttrInt64("keepdims", 0)], num_outputs=1)
    model.graph.insert_before(second, scale)
    second.replace_input_with(len(OWN), scale.outputs[0])


def of_another_x(model: onnx_ir.Model) -> None:
    first, second = model.graph
    states = onnx_ir.Node("", "Neg", [first.inputs[0]], num_outputs=1)
    model.graph.insert_before(first, states)
    second.replace_input_with(0, states.outputs[0])


@pytest.mark.parametrize("change", [from_the_first, of_another_x])
def test_declined(change: Callable[[onnx_ir.Model], None]) -> None:
    model = single_nodes(feed_of(cases((2, (3,), 5, 7, 3), torch.float32, 2)), 2)
    change(model)
    assert group_sites(model) == 0
    assert [node.op_type for node in model.graph].count("GatedLinear") == 2


def test_what_stands_between_the_sites_is_put_in_order() -> None:
    model = single_nodes(feed_of(cases((2, (3,), 5, 7, 3), torch.float32, 2)), 2)
    first, second = model.graph
    used = onnx_ir.Node("", "Neg", [first.outputs[0]], num_outputs=1)
    needed = onnx_ir.Node("", "Neg", [second.inputs[len(OWN)]], num_outputs=1)
    for node in (used, needed):
        model.graph.insert_before(second, node)
    second.replace_input_with(len(OWN), needed.outputs[0])
    assert group_sites(model) == 1
    order = [node.op_type for node in model.graph]
    assert order == ["Neg", "GatedLinearPair", "Neg"]


def test_groups_that_need_each_other_are_not_both_joined() -> None:
    """Two sites of x and two of z; the second of each needs what the first of the other answers."""
    model = single_nodes(feed_of(cases((2, (3,), 5, 5, 3), torch.float32, 3)), 3)
    first, second, third = model.graph
    other = onnx_ir.Node(second.domain, second.op_type, second.inputs, second.attributes.values(), num_outputs=1)
    model.graph.append(other)
    states = onnx_ir.Node("", "Neg", [model.graph.inputs[0]], num_outputs=1)
    model.graph.insert_before(first, states)
    for node in (third, other):
        node.replace_input_with(0, states.outputs[0])
    for needing, needed in ((second, third), (other, first)):
        scale = onnx_ir.Node("", "ReduceMax", [needed.outputs[0]], [onnx_ir.AttrInt64("keepdims", 0)], num_outputs=1)
        model.graph.append(scale)
        needing.replace_input_with(len(OWN), scale.outputs[0])
    model.graph.sort()
    assert group_sites(model) == 1
    assert sorted(node.op_type for node in model.graph if node.domain) == [
        "GatedLinear",
        "GatedLinear",
        "GatedLinearPair",
    ]


def test_four_callers_of_one_session(native_folder: Path) -> None:
    sites = cases((3, (40,), 64, 96, 8), torch.float32, 3)
    model = single_nodes(feed_of(sites), 3)
    group_sites(model)
    feeds = [{**feed_of(sites), "x": fed(LinearCase(sites[0].shape, torch.float32, seed))["x"]} for seed in range(4)]
    assert all_equal_from_four_callers(opened(onnx_ir.to_proto(model), native_folder, 2), feeds)


def test_a_rank_of_another_site_is_refused(native_folder: Path) -> None:
    sites = cases((2, (3,), 5, 7, 3), torch.float32, 2)
    feed = feed_of(sites)
    model = single_nodes(feed, 2)
    group_sites(model)
    model.graph.initializers["lora_b1"].const_value = onnx_ir.tensor(np.zeros((2, 3), np.float32))
    model.graph.initializers["lora_b1"].shape = onnx_ir.Shape((2, 3))
    with pytest.raises(Exception, match="B is not"):
        answers(model, native_folder, 1, feed)


def test_an_encoders_queries_keys_and_values_are_read_together(native: Path, tmp_path: Path) -> None:
    model = tiny("bert")
    data = [tiny_inputs(model, batch=4, tokens=9, seed=seed) for seed in range(2)]
    gated = gatefx.prepare(model, CCM(rank=4), 2, example_inputs=data[0])
    generator = torch.Generator().manual_seed(0)
    for name, parameter in gated.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    fast = gatefx.optimize(gated, data=data, progress=False, forms="gathered")
    folder = gatefx.export(fast, tmp_path / "ccm")
    found = native_model(folder / "model.onnx")
    assert found is not None
    assert found.replaced.groups == found.replaced.attentions > 0
    with_them, without = (gatefx.load(folder, threads=1, native=wanted) for wanted in (True, False))
    given = {name: value.numpy() for name, value in tiny_inputs(model, batch=3, tokens=17, seed=5).items()}
    one, other = (
        session.run({spec.name: given[spec.name] for spec in session.inputs}) for session in (with_them, without)
    )
    for name, expected in other.items():
        assert torch.allclose(torch.as_tensor(one[name]), torch.as_tensor(expected), atol=1e-5, rtol=0)
