"""The exported program's graph → gatefx's dialect: a plain GraphModule that trains.

    get_attr model.x.weight                    get_attr x.weight            (the wrapper's prefix is gone)
    aten.dropout(h, 0.1, True)          →      call_module dropout_3(h)     (follows train() and eval())
    aten.sdpa(q, k, v, mask, 0.1)              call_module attention_dropout_0(q, k, v, mask)
    aten._assert_…, aten.to(h, same dtype)     (removed)
    output (logits,)                           output {"logits": logits}

Sound: the removed nodes compute nothing (checks that the signature repeats at the door, casts to the type a tensor
already has), and a dropout module in training mode draws as the operator did.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...models.regularization import AttentionDropout
from .edit import get_tensor, own_module, own_tensor
from .functional import inline_regions, out_of_place

aten = torch.ops.aten
_PREFIX = "model."
_CHECKS = {
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten._assert_async.msg,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
}
_CASTS = {aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten._to_copy.default}


def normalize(source: fx.GraphModule, input_names: tuple[str, ...], output_names: tuple[str, ...]) -> fx.GraphModule:
    """Rewrite an unlifted exported graph into the dialect. Tensors are the very objects that `source` holds."""
    inline_regions(source)
    return _Normalizer(source, input_names).run(output_names)


class _Normalizer:
    """Copies one graph node by node; holds what the copy needs to remember."""

    def __init__(self, source: fx.GraphModule, input_names: tuple[str, ...]) -> None:
        self.source = source
        self.input_names = list(input_names)
        self.graph = fx.Graph()
        self.root = fx.GraphModule(nn.Module(), self.graph, class_name="CapturedGraph")
        self.made: dict[fx.Node, fx.Node] = {}
        self.tensors: dict[int, fx.Node] = {}
        self.modules = 0

    def run(self, output_names: tuple[str, ...]) -> fx.GraphModule:
        for node in self.source.graph.nodes:
            if node.op == "output":
                values = [self.made[value] for value in torch.utils._pytree.tree_leaves(node.args[0])]
                self.graph.output(dict(zip(output_names, values, strict=True)))
            elif node.target not in _CHECKS:
                self.made[node] = self._translate(node)
        self.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
        self.root.graph.lint()
        self.root.recompile()
        return self.root

    def _translate(self, node: fx.Node) -> fx.Node:
        if node.op == "get_attr":
            return self._tensor(node)
        if node.op == "placeholder":
            made = self.graph.placeholder(self.input_names.pop(0))
        elif node.target in _CASTS and self._casts_to_itself(node):
            return self.made[node.all_input_nodes[0]]
        elif node.target in (aten.dropout.default, aten.dropout_.default):
            made = self._dropout(node)
            if node.target is aten.dropout_.default:
                self.made[node.all_input_nodes[0]] = made
        elif node.target is aten.scaled_dot_product_attention.default and self._drop_probability(node) > 0:
            made = self._attention(node)
        else:
            made = self._copied(node)
        return self._stamped(made, node)

    def _copied(self, node: fx.Node) -> fx.Node:
        made = self.graph.node_copy(node, lambda n: self.made[n])
        pure = out_of_place(node)
        if pure is not None:
            made.target = pure
            self.made[node.all_input_nodes[0]] = made  # what reads the written tensor later reads the new one
        return made

    def _stamped(self, made: fx.Node, node: fx.Node) -> fx.Node:
        made.meta = copy.copy(node.meta)
        stack = node.meta.get("nn_module_stack") or {}
        # Sizes that export reads for itself carry a stack entry of its own making.
        paths = [path for path, _ in stack.values() if path.startswith(_PREFIX)]
        made.meta["module_path"] = paths[-1].removeprefix(_PREFIX) if paths else ""
        made.meta["origin"] = "capture"
        return made

    def _tensor(self, node: fx.Node) -> fx.Node:
        """One get_attr per tensor: tied weights are read under the first of their names."""
        value = get_tensor(self.source, str(node.target))
        known = self.tensors.get(id(value))
        if known is not None:
            return known
        name = str(node.target).removeprefix(_PREFIX)
        own_tensor(self.root, name, value)
        made = self._stamped(self.graph.get_attr(name), node)
        made.meta["module_path"] = name.rpartition(".")[0]
        self.tensors[id(value)] = made
        return made

    def _module(self, stem: str, module: nn.Module) -> str:
        name = f"{stem}_{self.modules}"
        self.modules += 1
        own_module(self.root, name, module)
        return name

    def _dropout(self, node: fx.Node) -> fx.Node:
        probability = float(node.args[1])  # type: ignore[arg-type]  # the operator's schema says float
        if probability == 0.0:
            return self._alias(node)
        return self.graph.call_module(
            self._module("dropout", nn.Dropout(probability)), (self.made[node.all_input_nodes[0]],)
        )

    def _alias(self, node: fx.Node) -> fx.Node:
        return self.graph.call_module(self._module("dropout", nn.Dropout(0.0)), (self.made[node.all_input_nodes[0]],))

    def _attention(self, node: fx.Node) -> fx.Node:
        name = self._module("attention_dropout", AttentionDropout(self._drop_probability(node)))
        given = self._attention_arguments(node)
        given.pop("dropout_p", None)
        tensors = [self.made[given.pop(key)] for key in ("query", "key", "value")]
        mask = given.pop("attn_mask", None)
        given = {k: fx.node.map_arg(v, lambda n: self.made[n]) for k, v in given.items()}
        return self.graph.call_module(name, (*tensors, self.made[mask] if isinstance(mask, fx.Node) else None), given)

    def _attention_arguments(self, node: fx.Node) -> dict[str, Any]:
        names = [argument.name for argument in aten.scaled_dot_product_attention.default._schema.arguments]
        return {**dict(zip(names, node.args, strict=False)), **node.kwargs}

    def _drop_probability(self, node: fx.Node) -> float:
        return float(self._attention_arguments(node).get("dropout_p", 0.0))

    def _casts_to_itself(self, node: fx.Node) -> bool:
        before, after = node.all_input_nodes[0].meta.get("val"), node.meta.get("val")
        if not isinstance(before, Tensor) or not isinstance(after, Tensor):
            return False
        return before.dtype == after.dtype and before.device == after.device and len(node.all_input_nodes) == 1
