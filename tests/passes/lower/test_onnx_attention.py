from __future__ import annotations

import numpy as np
import onnx_ir
import onnxruntime
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from gatefx.passes.lower.onnx_attention import attend_on_rows

SIGNATURE = """
<ir_version: 10, opset_import: ["" : 23]>
attention (float[batch,sequence,24] q, float[batch,sequence,{keys}] k, float[batch,sequence,{values}] v,
           bool[batch,1,sequence,sequence] mask) => (float[batch,sequence,{joined}] y)
<float[batch,sequence,6,4] qh, float[batch,sequence,{groups},4] kh, float[batch,sequence,{groups},{size}] vh,
 float[batch,sequence,6,{size}] back>
"""
BODY = """{{
  qs = Constant<value = int64[4] {{0, 0, 6, 4}}>()
  ks = Constant<value = int64[4] {{0, 0, {groups}, 4}}>()
  vs = Constant<value = int64[4] {{0, 0, {groups}, {size}}}>()
  joined = Constant<value = int64[3] {{0, 0, {joined}}}>()
  qh = Reshape(q, qs)
  qt = Transpose<perm = [0, 2, 1, 3]>(qh)
  kh = Reshape(k, ks)
  kt = Transpose<perm = [0, 2, 1, 3]>(kh)
  vh = Reshape(v, vs)
  vt = Transpose<perm = [0, 2, 1, 3]>(vh)
  {attention}
  back = Transpose<perm = [0, 2, 1, 3]>(mixed)
  y = Reshape(back, joined)
}}"""


def model(
    groups: int = 6, size: int = 4, attention: str = "mixed = Attention<scale = 0.3>(qt, kt, vt, mask)"
) -> onnx_ir.Model:
    """Six heads of width 4 over `groups` heads of keys and of values, the latter of width `size`."""
    sizes = {"groups": groups, "size": size, "keys": 4 * groups, "values": size * groups, "joined": 6 * size}
    return onnx_ir.from_onnx_text((SIGNATURE + BODY).format(**sizes, attention=attention))


def answer(graph: onnx_ir.Model, rows: int, tokens: int) -> np.ndarray:
    """On random values and a ragged mask, whose last row sees nothing."""
    random = np.random.default_rng(rows * tokens)
    feed = {
        value.name: random.standard_normal((rows, tokens, int(value.shape[2])), dtype=np.float32)
        for value in graph.graph.inputs[:3]
    }
    lengths = random.integers(1, tokens + 1, rows) * (np.arange(rows) < rows - 1)
    feed["mask"] = np.broadcast_to(
        (np.arange(tokens) < lengths[:, None])[:, None, None], (rows, 1, tokens, tokens)
    ).copy()
    session = onnxruntime.InferenceSession(onnx_ir.to_proto(graph).SerializeToString())
    return session.run(["y"], feed)[0]


def operators(graph: onnx_ir.Model) -> list[str]:
    """Those that `y` needs, in order."""
    RemoveUnusedNodesPass()(graph)
    return [node.op_type for node in graph.graph]


@pytest.mark.parametrize(("groups", "size"), [(6, 4), (6, 5), (3, 4), (1, 7)])
def test_the_answer_is_the_same_and_the_copies_are_gone(groups: int, size: int) -> None:
    before, after = model(groups, size), model(groups, size)
    assert attend_on_rows(after) == 1
    assert operators(after) == ["Attention"]
    attention = after.graph[0]
    assert attention.attributes["q_num_heads"].as_int() == 6
    assert attention.attributes["kv_num_heads"].as_int() == groups
    assert attention.attributes["scale"].as_float() == pytest.approx(0.3)
    for rows, tokens in ((1, 1), (2, 5), (3, 17)):
        np.testing.assert_allclose(answer(after, rows, tokens), answer(before, rows, tokens), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "attention",
    [
        "ht = Neg(qt) mixed = Attention(ht, kt, vt, mask)",
        "ht = Identity(vt) mixed = Attention(qt, kt, ht, mask)",
        "mixed, keys, values = Attention(qt, kt, vt, mask)",
        "plain = Attention(qt, kt, vt, mask) mixed = Neg(plain)",
        "mixed = Attention(qt, kt, vt, mask) more = Neg(mixed)",
    ],
)
def test_declined(attention: str) -> None:
    before, after = model(attention=attention), model(attention=attention)
    assert attend_on_rows(after) == 0
    assert [node.op_type for node in after.graph] == [node.op_type for node in before.graph]


def test_sizes_that_are_not_known_are_declined() -> None:
    graph = model()
    for node in graph.graph:
        if node.op_type == "Reshape":
            node.outputs[0].shape = None
    assert attend_on_rows(graph) == 0
