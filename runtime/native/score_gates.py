"""Gates by a linear score in the native library, in the model that a session of ONNX Runtime is started on.

    x (B, *, d) ─▶ MatMul(W) ─▶ Add(b) ─▶ Squeeze(-1) ─▶ GreaterOrEqual(level) ─▶ choice (B, *)
        →   x, W, b, level ─▶ gatefx::ScoreGate ─▶ choice (B, *)

One pass over x instead of four nodes, whose starts cost more than the score itself: a product with a single column is
what the runtime's matrix kernels are worst at. Both mean the same up to rounding of the score. The file keeps the
standard nodes, so that every runtime reads it.

Declines scores of several columns, of types other than float32 and float64 (in fewer bits the standard nodes round on
their way), levels and biases that are no single numbers, and scores that something else reads too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .native_nodes import replace_by_native

if TYPE_CHECKING:
    import onnx_ir

SCORE_GATE = "ScoreGate"


@dataclass(frozen=True)
class _Gate:
    """One gate: its nodes from the comparison up, the one that turns its weight, and what the operator reads."""

    nodes: tuple[onnx_ir.Node, ...]
    turn: onnx_ir.Node | None
    inputs: tuple[onnx_ir.Value, ...]


def gate_natively(model: onnx_ir.Model) -> int:
    """Replace in place every gate that the library can run; how many."""
    found = [gate for node in model.graph if (gate := _found(node)) is not None]
    for gate in found:
        _replace(model, gate)
    return len(found)


def _replace(model: onnx_ir.Model, gate: _Gate) -> None:
    # Several gates may share the node that turns a weight: it goes with the last of them.
    turned = [gate.turn] if gate.turn is not None and len(gate.turn.outputs[0].uses()) == 1 else []
    replace_by_native(model, [*gate.nodes, *turned], SCORE_GATE, gate.inputs, answers=gate.nodes[0].outputs)


def _found(compare: onnx_ir.Node) -> _Gate | None:
    """The gate that ends in a comparison."""
    if compare.op_type != "GreaterOrEqual" or compare.domain:
        return None
    scores, level = compare.inputs
    squeeze = _only(scores, "Squeeze")
    add = _only(squeeze.inputs[0], "Add") if squeeze is not None and _squeezes_last(squeeze) else None
    if squeeze is None or add is None or not _is_number(level):
        return None
    for product, bias in (add.inputs, reversed(add.inputs)):
        multiply = _only(product, "MatMul")
        if multiply is None or not _is_number(bias):
            continue
        x, (weight, turn) = multiply.inputs[0], _weight(multiply.inputs[1])
        if weight is not None and _has_features(x):
            inputs = tuple(value for value in (x, weight, bias, level) if value is not None)
            return _Gate((compare, squeeze, add, multiply), turn, inputs)
    return None


def _only(value: onnx_ir.Value | None, operator: str) -> onnx_ir.Node | None:
    """The node of standard ONNX that answers `value`, if nothing but the gate reads it."""
    node = None if value is None else value.producer()
    if node is None or value is None or len(value.uses()) != 1 or value.is_graph_output():
        return None
    return node if node.op_type == operator and not node.domain else None


def _squeezes_last(squeeze: onnx_ir.Node) -> bool:
    """Whether it takes away the last axis alone."""
    import onnx_ir

    value, axes = squeeze.inputs if len(squeeze.inputs) == 2 else (None, None)  # noqa: PLR2004  # data, axes
    constant = None if axes is None else onnx_ir.convenience.get_const_tensor(axes)
    if constant is None or value is None:
        return False
    return constant.numpy().tolist() in ([-1], [] if value.shape is None else [len(value.shape) - 1])


def _weight(value: onnx_ir.Value | None) -> tuple[onnx_ir.Value | None, onnx_ir.Node | None]:
    """(the column that states are multiplied with, as it is stored, the node that turns it): (1, d) or (d, 1)."""
    turn = None if value is None else value.producer()
    if turn is not None:
        turns = turn.op_type == "Transpose" and not turn.domain
        stored, axis = turn.inputs[0] if turns else None, 0
    else:
        stored, axis = value, 1
    # A matrix that Transpose leaves as it is would be a row, which no product with states (*, d) fits.
    if stored is None or stored.shape is None or len(stored.shape) != 2 or stored.shape[axis] != 1:  # noqa: PLR2004
        return None, None
    return stored, turn


def _has_features(x: onnx_ir.Value | None) -> bool:
    """Whether x is (B, *, d) of a type whose sums the library rounds as the standard nodes do."""
    import onnx_ir

    exact = (onnx_ir.DataType.FLOAT, onnx_ir.DataType.DOUBLE)
    return x is not None and x.dtype in exact and x.shape is not None and len(x.shape) > 1


def _is_number(value: onnx_ir.Value | None) -> bool:
    """Whether it holds one number whatever the input, and adds no axis to what it is compared with."""
    return value is not None and value.shape is not None and value.shape.dims in ((), (1,))
