"""StartSitesAfresh: new factors, of the same rank or of a multiple of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gatefx.errors import PassError
from gatefx.passes.find.adapters import find_sites
from gatefx.passes.gate.rank_growth import StartSitesAfresh
from gatefx.passes.graph.legality import check_legality


@pytest.mark.parametrize("times", [1, 2])
def test_named_sites_start_silent_and_the_others_stay(adapted: Any, inputs: Any, times: int) -> None:
    graph = adapted()
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    result = StartSitesAfresh(("first",), times)(graph, verify=times > 1).graph_module
    check_legality(result)
    after = result.state_dict()

    assert {site.name: site.rank for site in find_sites(result)[0]} == {"first": 4 * times, "second": 3}
    assert after["first.lora_A.default.weight"].shape == (4 * times, 12)
    assert float(after["first.lora_A.default.weight"].abs().min()) > 0
    assert torch.equal(after["first.lora_B.default.weight"], torch.zeros(10, 4 * times))
    assert all(torch.equal(value, before[name]) for name, value in graph.state_dict().items()), "the given graph stays"
    assert all(torch.equal(value, before[name]) for name, value in after.items() if not name.startswith("first.lora"))
    silent = adapted()
    silent.load_state_dict(graph.state_dict())
    silent.get_parameter("first.lora_B.default.weight").data.zero_()
    given = inputs().values()
    torch.testing.assert_close(result(*given)["logits"], silent(*given)["logits"])


def test_the_scale_stays(adapted: Any) -> None:
    graph = adapted()
    result = StartSitesAfresh(("first", "second"), 2)(graph).graph_module
    scales = [{site.name: site.scale for site in find_sites(item)[0]} for item in (graph, result)]

    assert scales[0] == scales[1]


def test_a_is_drawn_as_peft_draws_it(adapted: Any) -> None:
    graph = StartSitesAfresh(("first",), 2)(adapted()).graph_module
    drawn = graph.get_parameter("first.lora_A.default.weight").detach()

    assert drawn.abs().max() <= 12**-0.5, "Kaiming uniform with a = √5: within 1/√d_in"
    assert drawn.std() == pytest.approx(12**-0.5 / 3**0.5, rel=0.25)
    assert graph.get_parameter("first.lora_A.default.weight").requires_grad


def test_gates_on_ranks_keep_them(routed: Any) -> None:
    with pytest.raises(PassError, match="keep the ranks"):
        StartSitesAfresh(("first",), 2)(routed())
    StartSitesAfresh(("first",), 1)(routed())
