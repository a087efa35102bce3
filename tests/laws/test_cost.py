"""Laws of the cost model: more work never costs less."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gatefx.passes.cost import (
    ActiveRank,
    Form,
    Prediction,
    RouterShape,
    SiteShape,
    Workload,
    choose_forms,
    default_constants,
    predict,
)
from gatefx.passes.cost_choice import TIE
from gatefx.passes.cost_model import site_figures

SIZES = st.integers(1, 4096)
ENGINES = st.sampled_from(["onnxruntime", "torch"]).map(default_constants)
FORMS = st.sampled_from(list(Form))
SITES = st.builds(SiteShape, st.just("q"), SIZES, SIZES, st.integers(1, 256))
# Rounding of sums of positive floats, taken in another order.
ULPS = 1e-9


@given(FORMS, SITES, st.tuples(st.integers(1, 64), st.integers(1, 4096)), ENGINES, st.data())
def test_more_active_ranks_never_cost_less(form, site, workload, engine, data):
    fewer = data.draw(st.floats(0, site.rank))
    more = data.draw(st.floats(fewer, site.rank))
    shape = (site.d_in, site.d_out, site.rank)
    low, high = (site_figures(form, shape, k, workload, engine) for k in (fewer, more))
    assert low.flops <= high.flops * (1 + ULPS)
    assert low.bytes <= high.bytes * (1 + ULPS)
    assert low.seconds <= high.seconds * (1 + ULPS)


@given(FORMS, SITES, st.integers(1, 64), st.integers(1, 4096), st.integers(0, 4096), ENGINES)
def test_longer_inputs_never_cost_less(form, site, batch, tokens, longer, engine):
    shape, active = (site.d_in, site.d_out, site.rank), site.rank / 2
    low, high = (site_figures(form, shape, active, (batch, t), engine) for t in (tokens, tokens + longer))
    assert low.flops <= high.flops
    assert low.seconds <= high.seconds * (1 + ULPS)


@given(SITES, st.integers(1, 64), st.integers(1, 4096), ENGINES, st.data())
def test_the_choice_is_the_cheaper_form_up_to_a_tie(site, batch, tokens, engine, data):
    k = data.draw(st.floats(0, site.rank))
    [choice] = choose_forms([site], {"q": k}, Workload(batch, tokens), engine)
    assert choice.form in (Form.MASKED, Form.GATHERED)
    assert choice.seconds * (1 - TIE) <= min(choice.masked_seconds, choice.gathered_seconds) * (1 + ULPS)


def prediction(site: SiteShape, workload: Workload, k: float, engine) -> Prediction:
    return predict([site], RouterShape(site.d_in, 256, 1, site.rank), workload, ActiveRank(k, k), engine)


@given(SITES, st.integers(1, 16), st.integers(1, 1024), ENGINES, st.data())
def test_predictions_grow_with_active_ranks(site, batch, tokens, engine, data):
    fewer = data.draw(st.floats(0, site.rank))
    more = data.draw(st.floats(fewer, site.rank))
    low, high = (prediction(site, Workload(batch, tokens), k, engine) for k in (fewer, more))
    assert low.adapter_flops_ratio <= high.adapter_flops_ratio
    assert low.routed_seconds <= high.routed_seconds * (1 + ULPS)
    assert low.break_even_tokens <= high.break_even_tokens
    assert low.router_seconds == high.router_seconds


@given(SITES, st.integers(1, 16), st.integers(1, 1024), st.integers(0, 1024), ENGINES)
def test_predictions_grow_with_length(site, batch, tokens, longer, engine):
    low, high = (prediction(site, Workload(batch, t), site.rank / 2, engine) for t in (tokens, tokens + longer))
    assert low.lora_seconds <= high.lora_seconds * (1 + ULPS)
    # A site may move from a tie that went to masking to gathering, and win back no more than the tie.
    assert low.routed_seconds * (1 - TIE) <= high.routed_seconds * (1 + ULPS)
    assert high.router_flops_share <= low.router_flops_share * (1 + ULPS)
