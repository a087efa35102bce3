"""A decoder's one graph over a cache that may be empty, by the names that Hugging Face's Optimum feeds.

    decode(input_ids, attention_mask (B, T), position_ids, past_key_values.…,
           past_positions.0 (B, S), past_mask.0 (B, S))
    one_graph(input_ids, attention_mask (B, S + T), position_ids, past_key_values.…)    a prefill where S is 0

Exact: of the mask over all tokens, the first S are the cache's and the rest are new. Rows of a cache stand before the
new tokens, and their places are counted along the mask, as transformers counts them.

Refuses models whose cache is more than keys and values of one length: tokens that were dropped, ranks that were chosen
for a sequence, an encoder's answer.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ...errors import InputError
from ...models.families import ATTENTION_MASK
from ...runtime.cache_names import key_name, mask_name, positions_name, value_name
from ..graph.edit import answers_of
from ..graph.signature import example_for, signature_of
from .programs import DecoderPrograms

aten = torch.ops.aten
IDS, POSITIONS = "input_ids", "position_ids"
_CONTRACT = "input_ids, attention_mask, position_ids, past_key_values.N.key/value → logits, present.N.key/value"
_OWN = (mask_name(0), positions_name(0))


@dataclass(frozen=True)
class OneGraph:
    """The graph, and what it takes and answers.

    Attributes:
        graph_module: takes the tensors of `example` in order, returns a dict with the keys `outputs`.
        example: ids and positions (B, T), mask (B, S + T), keys and values (B, H, S, d).
    """

    graph_module: fx.GraphModule
    example: dict[str, Tensor]
    outputs: tuple[str, ...]


def one_graph(programs: DecoderPrograms) -> OneGraph:
    """The graph over a decoder's own decode.

    Raises:
        InputError: its cache is more than keys and values of one length.
    """
    decode = programs.decode
    layers = range(len(programs.layout.groups))
    names = (IDS, ATTENTION_MASK, POSITIONS, *(name(layer) for layer in layers for name in (key_name, value_name)))
    signature = signature_of(decode)
    _check_contract(programs, frozenset(signature.input_names) ^ {*names, *_OWN})
    example = example_for(signature)
    example[ATTENTION_MASK] = torch.cat([example[mask_name(0)], example[ATTENTION_MASK]], 1)
    outputs = tuple(name for name in signature.outputs if not name.startswith("present_"))
    return OneGraph(_merged(decode, names, outputs), {name: example[name] for name in names}, outputs)


def _merged(decode: fx.GraphModule, names: tuple[str, ...], outputs: tuple[str, ...]) -> fx.GraphModule:
    graph = fx.Graph()
    given = {name: graph.placeholder(name.replace(".", "_")) for name in names}
    mask, call = given[ATTENTION_MASK], graph.call_function
    cached = call(aten.sym_size.int, (given[key_name(0)], 2))
    places = call(aten.clamp_min.default, (call(aten.sub.Tensor, (call(aten.cumsum.default, (mask, 1)), 1)), 0))
    given |= {
        ATTENTION_MASK: call(aten.slice.Tensor, (mask, 1, cached, sys.maxsize)),
        mask_name(0): call(aten.slice.Tensor, (mask, 1, 0, cached)),
        positions_name(0): call(aten.slice.Tensor, (places, 1, 0, cached)),
    }
    holes = decode.graph.find_nodes(op="placeholder")
    values = {hole: given[name] for hole, name in zip(holes, signature_of(decode).input_names, strict=True)}
    graph.graph_copy(decode.graph, values)
    answers = answers_of(decode.graph)
    graph.output({name: values[answers[name]] for name in outputs})
    return fx.GraphModule(decode, graph).eval()


def _check_contract(programs: DecoderPrograms, odd: frozenset[str]) -> None:
    """Refuse a cache that Optimum has no names for.

    Raises:
        InputError: as said.
    """
    if programs.layout.group_count > 1:
        reason = "layers after a cut keep fewer tokens, and Optimum has one length for all of them"
    elif odd:
        reason = f"its inputs differ by {', '.join(sorted(odd))}, which Optimum does not hand on"
    else:
        return
    raise InputError(
        "Optimum cannot keep this decoder's cache.",
        given=reason,
        expected=_CONTRACT,
        remedy="gatefx.export(…, generate=True), which gatefx.generate and gatefx.load run; or export without a cache, "
        "which ORTModelForCausalLM runs with use_cache=False",
    )
