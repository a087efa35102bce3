from __future__ import annotations

from pathlib import Path

import onnx_ir
import pytest

import gatefx
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.lower.onnx_reshapes import drop_idle_reshapes

TEXT = """
<ir_version: 10, opset_import: ["" : 23]>
reshapes (float[batch,sequence,24] x, int64[3] sizes) => (float[batch,sequence,24] y) <float[{after}] r>
{{ r = Reshape(x, sizes) y = Neg(r) }}"""


@pytest.mark.parametrize(
    ("after", "idle"),
    [("batch,sequence,24", 1), ("batch,length,24", 0), ("batch,sequence,25", 0), ("batch,sequence,12,2", 0)],
)
def test_only_equal_shapes_are_idle(after: str, idle: int) -> None:
    graph = onnx_ir.from_onnx_text(TEXT.format(after=after))
    assert drop_idle_reshapes(graph) == idle
    assert [node.op_type for node in graph.graph] == ["Reshape", "Neg"][idle:]
    assert graph.graph[-1].inputs[0] is (graph.graph.inputs[0] if idle else graph.graph[0].outputs[0])
    assert drop_idle_reshapes(graph) == 0


def test_axes_without_a_name_and_answers_of_the_model_stay() -> None:
    nameless = onnx_ir.from_onnx_text(TEXT.format(after="batch,sequence,24"))
    nameless.graph[0].outputs[0].shape = onnx_ir.Shape([None, "sequence", 24])
    answered = onnx_ir.from_onnx_text(
        TEXT.replace("r = Reshape(x, sizes) y = Neg(r)", "y = Reshape(x, sizes)").format(after="batch,sequence,24")
    )
    assert drop_idle_reshapes(nameless) == drop_idle_reshapes(answered) == 0


def test_an_exported_encoder_attends_on_rows(tmp_path: Path) -> None:
    """transformers reshapes what attention answers: without the clean-up four tensors a layer would be copied."""
    model = tiny("bert")
    gated = gatefx.prepare(model, method="gatera", rank=4, example_inputs=tiny_inputs(model, batch=4, tokens=9))
    fast = gatefx.optimize(gated, data=[tiny_inputs(model, batch=4, tokens=9)], progress=False)
    folder = gatefx.export(fast, tmp_path / "out")
    attentions = [node for node in onnx_ir.load(folder / "model.onnx").graph if node.op_type == "Attention"]
    assert attentions
    assert all("q_num_heads" in node.attributes for node in attentions)
