"""The cost model against figures worked out by hand."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import pytest

from gatefx.errors import BudgetError, InputError, SiteError
from gatefx.passes.cost import (
    ActiveRank,
    Form,
    RouterShape,
    SiteShape,
    Workload,
    choose_forms,
    cost_of,
    default_constants,
    predict,
    router_cost,
)
from gatefx.passes.cost_constants import EngineConstants
from gatefx.passes.cost_model import linear_figures, router_figures, site_figures

# Round numbers, so that seconds can be worked out in the head.
ROUND = EngineConstants(
    engine="paper",
    seconds_per_node=1.0,
    gemm_flops=8.0,
    skinny_flops=4.0,
    batched_skinny_flops=2.0,
    bytes_per_second=16.0,
    seconds_per_row=0.5,
    lanes=8,
    machine="none",
    versions="none",
    measured_on="2026-01-01",
)
ENGINES = [default_constants("onnxruntime"), default_constants("torch")]


def sites(count: int = 18, width: int = 384, rank: int = 16) -> list[SiteShape]:
    return [SiteShape(f"layer.{i}", width, width, rank) for i in range(count)]


def router(count: int = 18, width: int = 384, rank: int = 16, hidden: int = 256) -> RouterShape:
    return RouterShape(width, hidden, count, rank)


class TestFormula:
    # B=2, T=3, d=5, d'=7, r=4, k=2 throughout: 6 tokens.
    SHAPE, WORK = (5, 7, 4), (2, 3)

    @pytest.mark.parametrize(
        ("form", "flops", "nodes"),
        [
            ("merged", 0, 0),
            # down 2·6·5·4 = 240, up 2·6·4·7 = 336, add 6·7 = 42
            ("lora", 618, 3),
            # and the mask, 6·4 = 24
            ("masked", 642, 4),
            # down 2·6·5·2 = 120, up 2·6·2·7 = 168, add 42, silence B·k·d = 20
            ("gathered", 350, 21),  # six that compute, fifteen that read the list of ranks
        ],
    )
    def test_flops_and_nodes(self, form: str, flops: int, nodes: int) -> None:
        figures = site_figures(Form(form), self.SHAPE, 2, self.WORK, ROUND)
        assert (figures.flops, figures.launches) == (flops, nodes)

    def test_bytes_of_lora(self) -> None:
        # float32: down reads x 30 and A 20, writes u 24; up reads u 24 and B 28, writes 42; add 3·42
        assert site_figures(Form.LORA, self.SHAPE, 2, self.WORK, ROUND).bytes == 4 * (30 + 20 + 24 + 24 + 28 + 42 + 126)

    def test_seconds_of_lora(self) -> None:
        # 3 nodes at 1 s; down issues 8 columns: 2·6·5·8/4 = 120 s; up 336/4 = 84 s; 4·294 bytes at 16 B/s
        seconds = site_figures(Form.LORA, self.SHAPE, 2, self.WORK, ROUND).seconds
        assert seconds == pytest.approx(3 + 120 + 84 + 4 * 294 / 16)

    def test_the_mask_pays_for_its_rows(self) -> None:
        lora, masked = (site_figures(f, self.SHAPE, 2, self.WORK, ROUND).seconds for f in (Form.LORA, Form.MASKED))
        # one node, 6 rows at 0.5 s, reads 24 and 2·4, writes 24
        assert masked - lora == pytest.approx(1 + 6 * 0.5 + 4 * (24 + 8 + 24) / 16)

    def test_columns_past_the_skinny_width_run_at_the_dense_rate(self) -> None:
        narrow, wide = (site_figures(Form.LORA, (1, 1, r), 0, (1, 1), ROUND) for r in (64, 128))
        moved = (wide.bytes - narrow.bytes) / 16
        assert wide.seconds - narrow.seconds == pytest.approx(2 * 2 * 64 / 8 + moved)

    def test_router(self) -> None:
        # B=1 T=3 d=5 h=4 S=2 r=4, 8 logits: share 3, mean 2·3·5, linear 2·5·4, gelu 5·4, linear 2·4·8,
        # softmax 5·8, sort 8·log2(4), cumulative sum, compare and count 8 each
        figures = router_figures((5, 4, 2, 4), (1, 3), ROUND)
        assert figures.flops == pytest.approx(3 + 30 + 40 + 20 + 64 + 40 + 16 + 3 * 8)
        assert figures.launches == router_cost().launches == 11

    def test_frozen_layer(self) -> None:
        assert linear_figures((5, 7), (2, 3), ROUND).flops == 2 * 6 * 5 * 7

    def test_expressions_print(self) -> None:
        terms = str(cost_of("gathered").flops).split(" + ")
        assert sorted(terms) == ["2*B*T*d*k", "2*B*T*d_out*k", "B*T*d_out", "B*d*k"]

    def test_unknown_form(self) -> None:
        with pytest.raises(InputError, match="merged, lora, masked, gathered"):
            cost_of("sparse")


class TestChoice:
    def test_many_ranks_of_many_are_gathered(self) -> None:
        [choice] = choose_forms([SiteShape("q", 768, 768, 64)], {"q": 8}, Workload(1, 512), ENGINES[0])
        assert choice.form is Form.GATHERED
        assert choice.seconds == choice.gathered_seconds < choice.masked_seconds
        assert "less time" in choice.reason

    def test_all_ranks_are_masked(self) -> None:
        [choice] = choose_forms([SiteShape("q", 768, 768, 16)], {"q": 16}, Workload(8, 128), ENGINES[0])
        assert choice.form is Form.MASKED
        assert choice.seconds == choice.masked_seconds

    def test_ties_go_to_the_simpler_graph(self) -> None:
        # Nothing but arithmetic costs here, and 16 of 16 ranks are the same arithmetic.
        still = EngineConstants("e", 1e-30, 1, 1, 1, 1e30, 1e-30, 1, "none", "none", "2026-01-01")
        [choice] = choose_forms([SiteShape("q", 64, 64, 16)], {"q": 16}, Workload(1, 64), still)
        assert choice.form is Form.MASKED
        assert "less than 10%" in choice.reason

    def test_the_widest_example_of_a_batch_decides_not_the_mean(self) -> None:
        site, work = SiteShape("q", 768, 768, 16), Workload(8, 128)
        [narrow] = choose_forms([site], {"q": ActiveRank(6, 6)}, work, ENGINES[0])
        [ragged] = choose_forms([site], {"q": ActiveRank(6, 16)}, work, ENGINES[0])
        assert (narrow.form, ragged.form) == (Form.GATHERED, Form.MASKED)

    def test_a_fused_kernel_computes_each_example_s_own_ranks(self) -> None:
        fused, work = replace(ENGINES[0], fused=True), Workload(8, 128)
        for active in (ActiveRank(6, 6), ActiveRank(6, 16)):
            [choice] = choose_forms([SiteShape("q", 384, 384, 16)], {"q": active}, work, fused)
            assert choice.form is Form.GATHERED
            # The dense rate alone: 2·B·T·k·(d + d') products, and one node.
            arithmetic = 2 * 8 * 128 * 6 * 768 / fused.gemm_flops
            assert choice.gathered_seconds == pytest.approx(fused.seconds_per_node + arithmetic)

    def test_a_thousand_sites_compile_the_formulas_once(self) -> None:
        from gatefx.passes.cost_model import _compiled_form

        shapes = [SiteShape(f"s{i}", 64 + i, 128, 16) for i in range(1000)]
        ranks = {site.name: 6.0 for site in shapes}
        choose_forms(shapes, ranks, Workload(1, 32), ENGINES[0])
        before = _compiled_form.cache_info().misses
        choose_forms(shapes, ranks, Workload(2, 32), ENGINES[0])
        assert _compiled_form.cache_info().misses == before


class TestPrediction:
    def test_flops_ratio_is_the_paper_s(self) -> None:
        # Table 1: E[k] = 6.2 of r = 16 is 0.39 of LoRA's adapter FLOPs a token.
        p = predict(sites(), router(), Workload(1, 512), 6.2, ENGINES[0])
        assert round(p.adapter_flops_ratio, 2) == 0.39

    def test_masked_sites_are_counted_as_computing_all_ranks(self) -> None:
        p = predict(sites(), router(), Workload(1, 8), ActiveRank(6, 15), ENGINES[1])
        assert {c.form for c in p.choices} == {Form.MASKED}
        assert (p.adapter_flops_ratio, p.computed_flops_ratio) == (6 / 16, 1.0)

    def test_a_fused_kernel_computes_no_more_than_the_paper_counts(self) -> None:
        p = predict(sites(), router(), Workload(8, 128), ActiveRank(6, 15), replace(ENGINES[0], fused=True))
        assert {c.form for c in p.choices} == {Form.GATHERED}
        assert p.adapter_flops_ratio == p.computed_flops_ratio == 6 / 16

    def test_break_even_length_balances_the_flops(self) -> None:
        p = predict(sites(2, 64), router(2, 64), Workload(1, 16), 6, ROUND)
        saved = 2 * (16 - 6) * (64 + 64) * 2
        at = router_figures((64, 256, 2, 16), (1, 1), ROUND).flops
        slope = router_figures((64, 256, 2, 16), (1, 2), ROUND).flops - at
        assert saved * p.break_even_tokens == pytest.approx(at + slope * (p.break_even_tokens - 1))

    def test_no_rank_skipped_never_breaks_even(self) -> None:
        p = predict(sites(), router(), Workload(1, 512), 16, ENGINES[0])
        assert math.isinf(p.break_even_tokens)
        assert math.isinf(p.break_even_tokens_seconds)
        assert p.to_json()["break_even_tokens"] is None
        assert any("at any length" in row for row in p.verdict)

    def test_break_even_in_seconds_is_the_first_length_that_pays(self) -> None:
        def pays(tokens: int) -> bool:
            p = predict(sites(), router(), Workload(1, tokens), 6, ENGINES[0])
            return p.routed_seconds < p.lora_seconds

        length = predict(sites(), router(), Workload(1, 64), 6, ENGINES[0]).break_even_tokens_seconds
        assert pays(int(length))
        assert not pays(int(length) - 1)

    def test_long_inputs_have_no_complaint(self) -> None:
        assert predict(sites(), router(), Workload(1, 512), 6, ENGINES[0]).verdict == ()

    def test_tiny_layers_are_told_to_merge(self) -> None:
        p = predict(sites(2, 32, 8), router(2, 32, 8), Workload(1, 8), 4, ENGINES[1])
        text = " ".join(p.verdict)
        assert "merged into the weights adds nothing" in text
        assert "too small" in text
        assert "masking is as cheap" in text

    def test_a_dominating_router_is_named(self) -> None:
        p = predict(sites(1, 64), router(1, 64, 16, 4096), Workload(1, 4), 6, ENGINES[0])
        text = " ".join(p.verdict)
        assert "The router alone" in text
        assert "too short" in text

    def test_json(self) -> None:
        import json

        p = predict(sites(2), router(2), Workload(1, 512), 6, ENGINES[0])
        assert json.loads(json.dumps(p.to_json()))["choices"][0]["form"] == "gathered"


class TestBadInput:
    @pytest.mark.parametrize("k", [-1, 17, float("nan"), ActiveRank(8, 6)])
    def test_active_rank_out_of_range(self, k: float | ActiveRank) -> None:
        with pytest.raises(BudgetError, match="out of range"):
            predict(sites(), router(), Workload(1, 8), k, ENGINES[0])

    def test_missing_site(self) -> None:
        with pytest.raises(InputError, match=r"layer\.1"):
            choose_forms(sites(2), {"layer.0": 4}, Workload(1, 8), ENGINES[0])

    def test_no_sites(self) -> None:
        with pytest.raises(SiteError, match="nothing to predict"):
            predict([], router(), Workload(1, 8), 4, ENGINES[0])

    def test_sizes_below_one(self) -> None:
        with pytest.raises(SiteError, match="rank=0"):
            SiteShape("q", 8, 8, 0)
        with pytest.raises(InputError, match="tokens=0"):
            Workload(1, 0)
        with pytest.raises(InputError, match="hidden=-1"):
            RouterShape(8, -1, 1, 4)

    def test_constants(self) -> None:
        with pytest.raises(InputError, match="gemm_flops"):
            EngineConstants("e", 1, 0, 1, 1, 1, 1, 1, "none", "none", "2026-01-01")
        with pytest.raises(InputError, match="onnxruntime, torch"):
            default_constants("tensorrt")


def test_the_cost_model_needs_no_torch() -> None:
    code = "import sys, gatefx.passes.cost as c; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
