from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from gatefx.runtime.ops.onnx_functions import DOMAIN, VERSION, function_protos
from gatefx.runtime.ops.reference import gated_lora_reference

NAMES = ["base", "x", "lora_a", "lora_b", "indices", "scale"]
RANK = 4


def one_node_model(element: int, axes: int, opset: int) -> onnx.ModelProto:
    """A model of nothing but one `GatedLora` node, whose layers have `axes` axes."""
    ranks = {"base": axes, "x": axes, "lora_a": 2, "lora_b": 2, "indices": 2, "scale": 0}
    inputs = [
        onnx.helper.make_tensor_value_info(
            name, onnx.TensorProto.INT64 if name == "indices" else element, [None] * ranks[name]
        )
        for name in NAMES
    ]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("GatedLora", NAMES, ["y"], domain=DOMAIN)],
        "one_node",
        inputs,
        [onnx.helper.make_tensor_value_info("y", element, [None] * axes)],
    )
    return onnx.helper.make_model(
        graph,
        functions=list(function_protos(opset).values()),
        opset_imports=[onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=10,
    )


@pytest.mark.parametrize("opset", [18, 21, 23])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("middle", [(), (5,), (2, 3)])
def test_the_body_means_what_the_reference_means(opset: int, dtype: type, middle: tuple[int, ...]) -> None:
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model = one_node_model(element, len(middle) + 2, opset)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    evaluator = ReferenceEvaluator(model)
    generator = np.random.default_rng(0)
    for counts in ((0, 0, 0), (RANK, RANK, RANK), (1, 0, 3), (2, 2, 2)):
        indices = np.full((3, RANK), -1)
        for example, count in enumerate(counts):
            indices[example, :count] = generator.permutation(RANK)[:count]
        feed = {
            "base": generator.normal(size=(3, *middle, 5)).astype(dtype),
            "x": generator.normal(size=(3, *middle, 6)).astype(dtype),
            "lora_a": generator.normal(size=(RANK, 6)).astype(dtype),
            "lora_b": generator.normal(size=(5, RANK)).astype(dtype),
            "indices": indices,
            "scale": np.array(1.7, dtype=dtype),
        }
        meant = gated_lora_reference(*(torch.from_numpy(feed[name]) for name in NAMES)).numpy()
        bound = 1e-10 if dtype is np.float64 else 1e-5
        for answer in (session.run(None, feed)[0], evaluator.run(None, feed)[0]):
            assert answer.dtype == dtype
            np.testing.assert_allclose(answer, meant, rtol=0, atol=bound)


def test_bodies_name_the_opset_of_the_model_they_join() -> None:
    for opset in (18, 23):
        for proto in function_protos(opset).values():
            needed = {needed.domain: needed.version for needed in proto.opset_import}
            own = {DOMAIN: VERSION} if any(node.domain == DOMAIN for node in proto.node) else {}
            assert needed == {"": opset} | own
