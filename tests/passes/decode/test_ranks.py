from __future__ import annotations

from typing import Any

import pytest
import torch

import gatefx
from gatefx.models.gates import HardRankRouter
from gatefx.models.tiny import tiny_inputs
from gatefx.passes.decode.engine import engine_of
from gatefx.passes.decode.ranks import AnswerRanks, HoldRanks
from gatefx.passes.graph.signature import signature_of
from gatefx.runtime.generation.loop import start_generation
from gatefx.runtime.generation.sampling import Sampling

from ...sampling import rest_slow_rows


@pytest.fixture(scope="module")
def routed(adapted_decoder: Any) -> Any:
    data = [tiny_inputs("llama", batch=4, tokens=24, seed=seed) for seed in range(3)]
    return gatefx.optimize(adapted_decoder("llama"), "ccm", 2, data=data, distill_steps=5, progress=False, verify=True)


def routers(graph: torch.fx.GraphModule) -> list[HardRankRouter]:
    return [module for module in graph.modules() if isinstance(module, HardRankRouter)]


def test_the_prefill_chooses_and_the_decode_is_told(routed: Any, ragged_prompts: Any) -> None:
    programs = routed.programs
    assert routers(programs.prefill)
    assert not routers(programs.decode)
    assert "ranks.hard_rank_router" in signature_of(programs.decode).input_names
    ids, mask = ragged_prompts()
    generation = gatefx.generate(routed, ids, mask, max_new_tokens=4, stop=())
    chosen = generation.cache.entries["ranks.hard_rank_router"]
    _ = generation.tokens
    assert generation.cache.entries["ranks.hard_rank_router"] is chosen


def test_other_ranks_would_be_other_tokens(routed: Any, ragged_prompts: Any) -> None:
    """What the decode is told acts: the same cache with all ranks shut decodes otherwise."""
    ids, mask = ragged_prompts()
    engine = engine_of(routed)
    _, cache = engine.prefill(ids, mask, routed.budget)
    shut = torch.full_like(cache.entries["ranks.hard_rank_router"], -1)
    other = type(cache)(
        {**cache.entries, "ranks.hard_rank_router": shut},
        cache.owner,
        cache.budget,
        cache.last,
        cache.rows,
        cache.bytes,
    )
    new = torch.full((4, 1), 7), torch.ones(4, 1).long()
    held, none = (engine.decode(*new, given)[0] for given in (cache, other))
    assert not torch.allclose(held, none, atol=1e-3)


def test_ranks_of_a_row_do_not_depend_on_the_rows_beside_it(routed: Any, ragged_prompts: Any) -> None:
    ids, mask = ragged_prompts()
    whole = gatefx.generate(routed, ids, mask, max_new_tokens=5, stop=()).tokens
    for row in range(4):
        alone = gatefx.generate(routed, [ids[row][mask[row] > 0].tolist()], max_new_tokens=5, stop=()).tokens
        assert torch.equal(alone[0], whole[row])


def test_graphs_without_routers_stay_as_they_are(pruned_decoder: Any) -> None:
    graph = pruned_decoder("llama").programs.decode
    assert AnswerRanks()(graph, verify=True).graph_module is graph
    assert HoldRanks()(graph, verify=True).graph_module is graph


@pytest.mark.parametrize(
    ("method", "budget"),
    rest_slow_rows(
        [
            (["ccm", "masklora"], {"ccm": 2, "masklora": 0.5}),
            (gatefx.methods.GateRA(update="lora"), 0.5),
            ("tspeft", 0.5),
            ("weightlora", 4),
            (["tspeft", "masklora"], {"tspeft": 0.5, "masklora": 0.5}),
        ]
    ),
)
def test_every_method_generates_what_its_masked_graph_does(
    method: Any, budget: Any, adapted_decoder: Any, ragged_prompts: Any
) -> None:
    data = [tiny_inputs("gpt2", batch=4, tokens=24, seed=seed) for seed in range(2)]
    model = gatefx.optimize(adapted_decoder("gpt2"), method, budget, data=data, distill_steps=5, progress=False)
    ids, mask = ragged_prompts(4, 20, "left")
    short, dense = (
        start_generation(
            engine_of(model, masked=masked), ids, mask, max_new_tokens=5, sampling=Sampling(), stop=(), budget=None,
            cache=None,
        )
        for masked in (False, True)
    )  # fmt: skip
    assert torch.equal(short.tokens, dense.tokens)
    torch.testing.assert_close(short.logits, dense.logits, atol=1e-4, rtol=0)
    if "masklora" in str(method):
        assert short.prefill.rows[-1] < short.prefill.rows[0]


@pytest.mark.parametrize(
    ("method", "budget"), rest_slow_rows([(gatefx.methods.GateRA(update="lora"), 0.5), ("weightlora", 4), ("ccm", 2)])
)
def test_what_compaction_merged_is_held_once(method: Any, budget: Any, adapted_decoder: Any) -> None:
    data = [tiny_inputs("llama", batch=4, tokens=12)]
    model = gatefx.optimize(adapted_decoder("llama"), method, budget, data=data, distill_steps=3, progress=False)
    whole = {id(p) for p in model.graph_module.parameters()}
    for graph in (model.programs.prefill, model.programs.decode):
        assert {id(p) for p in graph.parameters()} <= whole


def test_inputs_are_found_by_name_in_whatever_order_they_were_captured(adapted_decoder: Any) -> None:
    batch = tiny_inputs("llama", batch=4, tokens=12)
    positions = torch.arange(12).expand(4, 12)
    other = {"attention_mask": batch["attention_mask"], "position_ids": positions, "input_ids": batch["input_ids"]}
    models = [
        gatefx.optimize(adapted_decoder("llama"), "weightlora", 4, data=[given], progress=False)
        for given in (batch, other)
    ]
    first, second = (gatefx.generate(model, [[5, 6, 7]], max_new_tokens=5, stop=()).tokens for model in models)
    assert torch.equal(first, second)
