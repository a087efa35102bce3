"""The ONNX bodies of the operators on updates mean what their references mean, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from gatefx.runtime.ops.onnx_functions import DOMAIN, VERSION, function_protos
from gatefx.runtime.ops.reference_updates import routed_linear_reference, token_gated_lora_reference


def answer(operator: str, feed: Mapping[str, np.ndarray], opset: int) -> np.ndarray:
    """What a model of one node says."""
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), [None] * v.ndim)
        for name, v in feed.items()
    ]
    middle = next(iter(feed.values())).ndim
    element = values[0].type.tensor_type.elem_type
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(operator, list(feed), ["y"], domain=DOMAIN)],
        "one_node",
        values,
        [onnx.helper.make_tensor_value_info("y", element, [None] * middle)],
    )
    model = onnx.helper.make_model(
        graph,
        functions=list(function_protos(opset).values()),
        opset_imports=[onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, dict(feed))[0]
    return found


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("middle", [(3,), (3, 5), (2, 2, 3)])
@pytest.mark.parametrize("threshold", [0.0, 0.8, 1e9])
def test_token_gated_lora(opset: int, middle: tuple[int, ...], threshold: float) -> None:
    generator = np.random.default_rng(0)
    lora_b = generator.normal(size=(7, 3))
    feed = {
        "base": generator.normal(size=(*middle, 7)),
        "x": generator.normal(size=(*middle, 6)),
        "lora_a": generator.normal(size=(3, 6)),
        "lora_b": lora_b,
        "gram": lora_b.T @ lora_b,
        "threshold": np.array(threshold),
        "scale": np.array(-0.5),
    }
    tensors = {name: torch.from_numpy(value) for name, value in feed.items() if name != "gram"}
    meant = token_gated_lora_reference(**tensors).numpy()

    np.testing.assert_allclose(answer("TokenGatedLora", feed, opset), meant, rtol=0, atol=1e-10)


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("middle", [(3,), (3, 5), (2, 2, 3)])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_routed_linear(opset: int, middle: tuple[int, ...], share: float) -> None:
    generator = np.random.default_rng(0)
    feed = {
        "x": generator.normal(size=(*middle, 6)),
        "weight0": generator.normal(size=(7, 6)),
        "weight1": generator.normal(size=(7, 6)),
        "bias": generator.normal(size=7),
        "choice": generator.random(middle) < share,
    }
    meant = routed_linear_reference(**{name: torch.from_numpy(value) for name, value in feed.items()}).numpy()

    np.testing.assert_allclose(answer("RoutedLinear", feed, opset), meant, rtol=0, atol=1e-10)
