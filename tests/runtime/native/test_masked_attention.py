from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime
import pytest

from gatefx.runtime.native.masked_attention import mask_natively
from gatefx.runtime.native.places import FILES
from gatefx.runtime.native.session_model import native_model

TEXT = """
<ir_version: 10, opset_import: ["" : 23]>
attention (float[batch,sequence,24] q, float[batch,keys,12] k, float[batch,keys,15] v,
           {mask}[batch,1,sequence,keys] mask) => (float[batch,sequence,30] y)
{{ {attention} }}"""
ROWS = "q_num_heads = 6, kv_num_heads = 3"


def model(attention: str = f"y = Attention<{ROWS}, scale = 0.3>(q, k, v, mask)", mask: str = "bool") -> onnx_ir.Model:
    """Six heads of width 4 over three heads of keys, and of values of width 5."""
    return onnx_ir.from_onnx_text(TEXT.format(attention=attention, mask=mask))


def answer(model: bytes, library: Path | None, rows: int, tokens: int, keys: int) -> np.ndarray:
    random = np.random.default_rng(tokens)
    sizes = {"q": (rows, tokens, 24), "k": (rows, keys, 12), "v": (rows, keys, 15)}
    feed: dict[str, np.ndarray] = {name: random.standard_normal(size, np.float32) for name, size in sizes.items()}
    feed["mask"] = random.random((rows, 1, tokens, keys)) < random.random((rows, 1, tokens, 1))
    options = onnxruntime.SessionOptions()
    if library is not None:
        options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(model, options).run(["y"], feed)[0]


@pytest.mark.parametrize("attributes", [f"{ROWS}, scale = 0.3", ROWS, f"{ROWS}, is_causal = 0, softcap = 0.0"])
def test_the_node_becomes_ours_and_means_the_same(attributes: str, native_folder: Path, tmp_path: Path) -> None:
    text = f"y = Attention<{attributes}>(q, k, v, mask)"
    after = model(text)
    assert mask_natively(after) == 1
    assert [(node.domain, node.op_type) for node in after.graph] == [("gatefx", "MaskedAttention")]
    assert after.graph[0].attributes["scale"].as_float() == pytest.approx(0.3 if "scale" in attributes else 0.5)
    assert mask_natively(after) == 0
    onnx_ir.save(model(text), tmp_path / "model.onnx")
    native = native_model(tmp_path / "model.onnx")
    assert native is not None
    for sizes in ((1, 1, 1), (2, 5, 5), (3, 17, 4)):
        expected = answer((tmp_path / "model.onnx").read_bytes(), None, *sizes)
        np.testing.assert_allclose(
            answer(native.protobuf, native_folder / FILES["onnxruntime"], *sizes), expected, rtol=0, atol=2e-6
        )


@pytest.mark.parametrize(
    ("attention", "mask"),
    [
        (f"y = Attention<{ROWS}>(q, k, v)", "bool"),
        (f"y = Attention<{ROWS}>(q, k, v, mask)", "float"),
        (f"y = Attention<{ROWS}, is_causal = 1>(q, k, v, mask)", "bool"),
        (f"y = Attention<{ROWS}, softcap = 20.0>(q, k, v, mask)", "bool"),
        (f"y, keys_after, values_after = Attention<{ROWS}>(q, k, v, mask)", "bool"),
        (f"past = Identity(k) y = Attention<{ROWS}>(q, k, v, mask, past, past)", "bool"),
    ],
)
def test_declined(attention: str, mask: str, tmp_path: Path) -> None:
    graph = model(attention, mask)
    before = onnx_ir.to_proto(graph)
    assert mask_natively(graph) == 0
    assert onnx_ir.to_proto(graph) == before
    onnx_ir.save(graph, tmp_path / "model.onnx")
    assert native_model(tmp_path / "model.onnx") is None


@pytest.mark.parametrize("width", ["width", 6 * 257])
def test_heads_of_unknown_or_too_large_width_are_declined(width: str | int) -> None:
    for place in (0, 2):
        graph = model(f"y = Attention<{ROWS}, scale = 0.3>(q, k, v, mask)")
        graph.graph.inputs[place].shape = onnx_ir.Shape(["batch", "sequence", width])
        assert mask_natively(graph) == 0
