"""Layers with their adapters: what they compute, that their bodies in ONNX mean the same, and what they refuse."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from gatefx.errors import InputError
from gatefx.runtime.ops.linear_ops import gated_linear, token_gated_linear
from gatefx.runtime.ops.onnx_functions import DOMAIN, VERSION, bodies_needed
from gatefx.runtime.ops.reference import gated_lora_reference
from gatefx.runtime.ops.reference_updates import token_gated_lora_reference

MIDDLES = [(), (5,), (2, 3)]


def given(middle: tuple[int, ...], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Inputs of both operators: x (3, *, 6), W (7, 6), rank 4."""
    generator = torch.Generator().manual_seed(len(middle))

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, dtype=torch.float64).to(dtype)

    lora_b = normal(7, 4)
    return {
        "x": normal(3, *middle, 6),
        "weight": normal(7, 6),
        "bias": normal(7),
        "lora_a": normal(4, 6),
        "lora_b": lora_b,
        "indices": torch.tensor([[-1, -1, -1, -1], [2, 0, -1, -1], [0, 1, 2, 3]]),
        "gram": lora_b.t() @ lora_b,
        "threshold": torch.tensor(1.0, dtype=dtype),
        "scale": torch.tensor(-0.5, dtype=dtype),
    }


LAYER = ("x", "weight", "bias", "lora_a", "lora_b")
RANKS = (*LAYER, "indices", "scale")
TOKENS = (*LAYER, "gram", "threshold", "scale")


def reference(tensors: Mapping[str, Tensor], names: tuple[str, ...]) -> Tensor:
    base = functional.linear(tensors["x"], tensors["weight"], tensors["bias"])
    rest = [tensors[name] for name in ("x", *names[3:]) if name != "gram"]
    return (gated_lora_reference if names == RANKS else token_gated_lora_reference)(base, *rest)


@pytest.mark.parametrize("middle", MIDDLES)
@pytest.mark.parametrize(("operator", "names"), [(gated_linear, RANKS), (token_gated_linear, TOKENS)])
def test_the_layer_and_its_update(
    operator: torch.library.CustomOpDef, names: tuple[str, ...], middle: tuple[int, ...]
) -> None:
    tensors = given(middle)
    arguments = [tensors[name] for name in names]
    torch.testing.assert_close(operator(*arguments), reference(tensors, names), rtol=0, atol=1e-12)
    torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("middle", MIDDLES)
@pytest.mark.parametrize(("name", "names"), [("GatedLinear", RANKS), ("TokenGatedLinear", TOKENS)])
def test_the_body_in_onnx(name: str, names: tuple[str, ...], middle: tuple[int, ...], opset: int) -> None:
    tensors = given(middle)
    feed = {key: tensors[key].numpy() for key in names}
    values = [
        onnx.helper.make_tensor_value_info(key, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for key, value in feed.items()
    ]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(name, list(feed), ["y"], domain=DOMAIN)],
        "one_node",
        values,
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.DOUBLE, (3, *middle, 7))],
    )
    model = onnx.helper.make_model(
        graph,
        functions=list(bodies_needed([name], opset).values()),
        opset_imports=[onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, feed)[0], reference(tensors, names).numpy(), rtol=0, atol=1e-12)


def test_a_body_brings_those_that_it_uses() -> None:
    assert set(bodies_needed(["GatedLinear", "MatMul"], 18)) == {"GatedLinear", "GatedLora"}
    assert set(bodies_needed(["GatedLora"], 18)) == {"GatedLora"}
    assert set(bodies_needed([], 18)) == set()


@pytest.mark.usefixtures("portable_operators")
@pytest.mark.parametrize("name", ["x", "weight", "bias", "lora_a", "lora_b", "scale"])
@pytest.mark.parametrize(("operator", "names"), [(gated_linear, RANKS), (token_gated_linear, TOKENS)])
def test_what_does_not_fit_is_refused(operator: torch.library.CustomOpDef, names: tuple[str, ...], name: str) -> None:
    tensors = given((5,))
    wrong = tensors[name].unsqueeze(0) if name == "scale" else tensors[name][..., :-1]
    with pytest.raises(InputError, match="do not fit together"):
        operator(*(wrong if key == name else tensors[key] for key in names))
    with pytest.raises(InputError, match="do not fit together"):
        operator(*(tensors[key].float() if key == name else tensors[key] for key in names))
