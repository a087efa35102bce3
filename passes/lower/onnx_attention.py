"""Attention on rows: heads that are split off for an attention alone, and joined after it, need not be copied.

    q, k, v (B, T, H·D) ─▶ Reshape ─▶ Transpose ─▶ Attention ─▶ Transpose ─▶ Reshape (B, T, H·D)
        →   q, k, v ─▶ Attention(q_num_heads=H, kv_num_heads=H) (B, T, H·D)

Exact: ONNX defines `Attention` on inputs of rank three as this very split and join (opset 23). A runtime then reads
heads with a stride, instead of copying four tensors a layer.

Declines queries, keys or values that something changes between split and attention (rotary positions, a cache, repeated
heads), attentions that answer with more than the mixed values, and splits whose sizes are not known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir

_OPERANDS = 3
_HEADS_FIRST = [0, 2, 1, 3]


def attend_on_rows(model: onnx_ir.Model) -> int:
    """Rewrite in place every attention that can be; how many were. Nodes that nothing reads any more stay."""
    found = [node for node in model.graph if node.op_type == "Attention" and not node.domain]
    return sum(_rewritten(model, node) for node in found)


def _rewritten(model: onnx_ir.Model, node: onnx_ir.Node) -> bool:
    import onnx_ir

    query, key, value = (_split(operand) for operand in node.inputs[:_OPERANDS])
    joined = _join(node)
    if query is None or key is None or value is None or joined is None or key[1] != value[1]:
        return False
    heads = {
        "q_num_heads": onnx_ir.AttrInt64("q_num_heads", query[1]),
        "kv_num_heads": onnx_ir.AttrInt64("kv_num_heads", key[1]),
    }
    attention = onnx_ir.Node(
        "",
        "Attention",
        [query[0], key[0], value[0], *node.inputs[_OPERANDS:]],
        {**node.attributes, **heads},
        num_outputs=1,
        metadata_props=dict(node.metadata_props),
    )
    answer = attention.outputs[0]
    answer.name, answer.shape, answer.type = joined.name, joined.shape, joined.type
    joined.name = f"{answer.name}_joined"
    model.graph.insert_before(node, attention)
    joined.replace_all_uses_with(answer, replace_graph_outputs=True)
    return True


def _split(operand: onnx_ir.Value | None) -> tuple[onnx_ir.Value, int] | None:
    """(rows (B, T, H·D), H) of which `operand` is the split (B, H, T, D) into heads, if it is one."""
    transpose = _made_by(operand, "Transpose")
    if transpose is None or list(transpose.attributes["perm"].as_ints()) != _HEADS_FIRST:
        return None
    reshape = _made_by(transpose.inputs[0], "Reshape")
    rows = None if reshape is None else reshape.inputs[0]
    if reshape is None or rows is None:
        return None
    count = _heads(rows, reshape.outputs[0])
    return None if count is None else (rows, count)


def _join(node: onnx_ir.Node) -> onnx_ir.Value | None:
    """(B, T, H·D), if all that happens to the attention's one answer (B, H, T, D) is that heads are joined."""
    transpose = _only_reader(node.outputs[0], "Transpose") if len(node.outputs) == 1 else None
    if transpose is None or list(transpose.attributes["perm"].as_ints()) != _HEADS_FIRST:
        return None
    reshape = _only_reader(transpose.outputs[0], "Reshape")
    if reshape is None or _heads(reshape.outputs[0], transpose.outputs[0]) is None:
        return None
    return reshape.outputs[0]


def _heads(rows: onnx_ir.Value, heads: onnx_ir.Value) -> int | None:
    """H, if `rows` (B, T, H·D) and `heads` (B, T, H, D) are known to be one tensor in two shapes."""
    if rows.shape is None or heads.shape is None or (len(rows.shape), len(heads.shape)) != (3, 4):
        return None
    width, count, size = rows.shape[2], heads.shape[2], heads.shape[3]
    if not (isinstance(width, int) and isinstance(count, int) and isinstance(size, int)):
        return None
    return count if width == count * size and list(rows.shape)[:2] == list(heads.shape)[:2] else None


def _made_by(value: onnx_ir.Value | None, operator: str) -> onnx_ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == operator and not node.domain else None


def _only_reader(value: onnx_ir.Value, operator: str) -> onnx_ir.Node | None:
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = uses[0].node
    return node if node.op_type == operator and not node.domain else None
