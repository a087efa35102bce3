from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gatefx.errors import InputError
from gatefx.runtime.ops.onnx_functions import DOMAIN, VERSION, function_protos
from gatefx.runtime.ops.reference_visible import visible_keys_reference
from gatefx.runtime.ops.visible_ops import visible_keys

Case = tuple[Tensor, Tensor, Tensor, int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Positions in any order, with gaps and repeats, padding anywhere, windows of any width; batches of none too."""
    batch, queries, keys = draw(st.integers(0, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 6))

    def numbers(count: int, most: int) -> Tensor:
        size = batch * count
        values = draw(st.lists(st.integers(0, most), min_size=size, max_size=size))
        return torch.tensor(values, dtype=torch.int64).view(batch, count)

    return numbers(queries, 9), numbers(keys, 9), numbers(keys, 1), draw(st.sampled_from([0, 1, 3, 20]))


@settings(deadline=None, max_examples=80)
@given(cases())
def test_the_operator_means_what_the_reference_means(case: Case) -> None:
    assert torch.equal(visible_keys(*case), visible_keys_reference(*case))


def test_by_hand() -> None:
    positions, mask = torch.tensor([[0, 0, 1, 2]]), torch.tensor([[0, 1, 1, 1]])  # padding on the left
    visible = visible_keys(positions, positions, mask, 2)[0, 0].tolist()
    assert visible[1:] == [[False, True, False, False], [False, True, True, False], [False, False, True, True]]
    assert visible[0] == [False, True, False, False], "padding stands at a position too"
    assert visible_keys(torch.tensor([[0]]), torch.tensor([[4, 5]]), torch.ones(1, 2), 0).all(), "none seen: all seen"


@settings(deadline=None, max_examples=20)
@given(cases())
def test_the_onnx_body_means_the_same(case: Case) -> None:
    names = ["query_positions", "key_positions", "key_mask", "window"]
    kind = onnx.TensorProto.INT64
    inputs = [onnx.helper.make_tensor_value_info(name, kind, [None, None]) for name in names[:3]]
    inputs.append(onnx.helper.make_tensor_value_info("window", kind, []))
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("VisibleKeys", names, ["y"], domain=DOMAIN)],
        "one_node",
        inputs,
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.BOOL, [None] * 4)],
    )
    model = onnx.helper.make_model(
        graph,
        functions=[function_protos(23)["VisibleKeys"]],
        opset_imports=[onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=10,
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    *tensors, window = case
    feed = dict(zip(names, [tensor.numpy() for tensor in tensors], strict=False))
    answer = session.run(None, {**feed, "window": np.array(window or 2**62)})[0]
    assert np.array_equal(answer, visible_keys_reference(*case).numpy())


def test_shapes_are_known_without_running() -> None:
    with FakeTensorMode():
        visible = visible_keys(torch.ones(2, 3).long(), torch.ones(2, 5).long(), torch.ones(2, 5), 0)
    assert visible.shape == (2, 1, 3, 5)
    assert visible.dtype is torch.bool


@pytest.mark.parametrize(
    ("queries", "keys", "mask"),
    [
        (torch.ones(2, 3).long(), torch.ones(2, 5).long(), torch.ones(2, 4)),
        (torch.ones(1, 3).long(), torch.ones(2, 5).long(), torch.ones(2, 5)),
        (torch.ones(2, 3), torch.ones(2, 5).long(), torch.ones(2, 5)),
        (torch.ones(2).long(), torch.ones(2, 5).long(), torch.ones(2, 5)),
    ],
)
def test_tensors_that_do_not_fit_are_refused(queries: Tensor, keys: Tensor, mask: Tensor) -> None:
    with pytest.raises(InputError, match="visible_keys"):
        visible_keys(queries, keys, mask, 0)
