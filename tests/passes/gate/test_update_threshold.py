"""InsertUpdateThresholds: one gate per adapter, which changes nothing until its threshold moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gatefx.errors import SiteError
from gatefx.models.configs.tspeft import TSPEFT
from gatefx.passes.find.adapters import find_sites
from gatefx.passes.find.thresholds import find_thresholded, thresholds_of
from gatefx.passes.gate.update_threshold import InsertUpdateThresholds, masks_of


def test_every_site_gets_one_and_stays_a_site(adapted: Any, checked: Any, inputs: Any) -> None:
    plain = adapted()
    result = checked(InsertUpdateThresholds(TSPEFT(), 0.5), plain)
    graph = result.graph_module

    assert result.reports[0].fired == ("first", "second", "classifier")[: len(result.reports[0].fired)]
    assert result.reports[0].op_changes == {"UpdateThreshold": len(result.reports[0].fired)}
    assert [site.name for site in find_sites(graph)[0]] == [site.name for site in find_sites(plain)[0]]
    assert all(item.site.factors == (item.call,) for item in find_thresholded(graph))
    values = inputs().values()
    assert torch.equal(graph(*values)["logits"], plain(*values)["logits"])
    assert {"first", "second"} <= set(masks_of(graph))


def test_padding_is_no_token_of_the_record(adapted: Any, inputs: Any) -> None:
    graph = InsertUpdateThresholds(TSPEFT())(adapted()).graph_module
    given = inputs()
    graph(*given.values())
    record = thresholds_of(graph)["first"].record

    assert record is not None
    assert float(record.real.sum()) == float(given["attention_mask"].sum())


def test_a_graph_without_adapters_is_refused(capture_plain: Any) -> None:
    with pytest.raises(SiteError, match="no adapter whose update could be skipped"):
        InsertUpdateThresholds(TSPEFT())(capture_plain())
