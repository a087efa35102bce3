from __future__ import annotations

from typing import Any

import pytest
import torch

from gatefx.errors import PassError
from gatefx.passes.decode.read_part import ReadPart
from gatefx.passes.find.attention import find_attention
from gatefx.passes.find.last_token import VISIBLE
from gatefx.passes.graph.signature import signature_of

TWO = ((0, 0.7), (1, 0.5))


def run(graph: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    answers: dict[str, torch.Tensor] = graph(*(given[name] for name in signature_of(graph).input_names))
    return answers


def blank(graph: Any) -> dict[str, torch.Tensor]:
    """A cache of two sequences without rows."""
    found = {}
    for spec in signature_of(graph).inputs:
        if spec.name.startswith("past"):
            found[spec.name] = torch.zeros(2, *(axis.size or 0 for axis in spec.axes[1:]), dtype=spec.dtype)
    return found


@pytest.mark.parametrize("which", ["prefill", "reference"])
def test_behind_an_empty_cache_it_is_the_prefill(pruned_decoder: Any, ragged_prompts: Any, which: str) -> None:
    source = getattr(pruned_decoder("mistral", TWO).programs, which)
    result = ReadPart()(source, verify=True)
    ids, mask = ragged_prompts(2, 20)
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}
    wanted, found = run(source, given), run(result.graph_module, {**given, **blank(result.graph_module)})
    for name, value in wanted.items():
        if "mask" in name or "positions" in name:
            assert torch.equal(found[name], value)
    torch.testing.assert_close(found["logits"], wanted["logits"], atol=1e-5, rtol=0)
    assert {"present_positions.0", "present_mask.0"} <= set(found)


def test_masks_say_by_rows_alone_what_is_seen(pruned_decoder: Any) -> None:
    graph = ReadPart()(pruned_decoder("mistral", TWO).programs.prefill, verify=True).graph_module
    masks = [attention.mask for attention in find_attention(graph)]
    assert [mask.target for mask in masks if mask is not None] == [VISIBLE, VISIBLE]
    assert masks[0] is not masks[1], "layers behind another cut keep other rows"


def test_a_linear_bias_is_refused(pruned_decoder: Any) -> None:
    with pytest.raises(PassError, match="linear bias"):
        ReadPart()(pruned_decoder("bloom", TWO).programs.prefill)
