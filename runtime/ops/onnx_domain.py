"""The ONNX domain of the custom operators, and how a single node of it is written while torch.onnx translates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...errors import missing_package
from .domain import DOMAIN, VERSION

try:
    import onnx
    from onnxscript.values import Op, Opset
except ImportError as error:
    raise missing_package("onnxscript", extra="onnxruntime", feature="Lowering to ONNX") from error

OPSET = Opset(DOMAIN, VERSION)

FLOATS = ("tensor(float)", "tensor(double)", "tensor(float16)", "tensor(bfloat16)")
ANY = (*FLOATS, "tensor(bool)", "tensor(int64)", "tensor(int32)", "tensor(int8)", "tensor(uint8)")
INDICES = "tensor(int64)"
FLAGS = "tensor(bool)"

Formal = Mapping[str, str]
"""Names of inputs or outputs, each with an ONNX type or with "T", the type that a node leaves open."""


def bare_node(name: str, inputs: Formal, outputs: Formal, types: Sequence[str], integers: Sequence[str] = ()) -> Op:
    """What writes one node `name` of the domain, without its body.

    The exporter inlines every function that it knows the body of, so the body joins the model later.

    Args:
        name: the operator.
        inputs: in order.
        outputs: in order.
        types: what T may be.
        integers: names of the attributes, all of them whole numbers.
    """
    parameter, attribute = onnx.defs.OpSchema.FormalParameter, onnx.defs.OpSchema.Attribute
    schema = onnx.defs.OpSchema(
        name,
        DOMAIN,
        VERSION,
        inputs=[parameter(key, kind) for key, kind in inputs.items()],
        outputs=[parameter(key, kind) for key, kind in outputs.items()],
        type_constraints=[("T", list(types), "The type of the tensors that the operator works on.")],
        attributes=[attribute(key, onnx.defs.OpSchema.AttrType.INT, "") for key in integers],
    )
    return Op(OPSET, name, schema)
