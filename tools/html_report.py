"""report.html: one file that needs nothing beside it, from a template and the plots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import missing_package
from ..passes.find.layer_names import layer_of
from . import plots
from .demo_result import TABLE_COLUMNS, DemoResult
from .demo_serving import CCM, LORA, MERGED

TEMPLATE = "report.html.jinja"


def check_report_packages() -> None:
    """Fail before minutes of work where the report could not be written after them.

    Raises:
        MissingDependencyError: matplotlib or jinja2 is not installed.
    """
    plots.require_matplotlib()
    _jinja()


def write_report(result: DemoResult, path: Path) -> None:
    """Render the report of a demo to `path`.

    Raises:
        MissingDependencyError: matplotlib or jinja2 is not installed.
    """
    jinja = _jinja()
    environment = jinja.Environment(
        loader=jinja.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    path.write_text(environment.get_template(TEMPLATE).render(**page(result)), encoding="utf-8")


def page(result: DemoResult) -> dict[str, Any]:
    """What the template shows."""
    return {
        "description": result.description(),
        "tested": result.data.tested,
        "legend": result.legend,
        "columns": TABLE_COLUMNS,
        "rows": [{"model": row.model, "engine": row.engine, "cells": result.cells(row)} for row in result.rows],
        "notes": result.notes,
        "budget": result.settings.budget,
        "rank": result.settings.rank,
        "plots": _plots(result),
        "smooth": plots.SMOOTH,
        "prediction": _prediction(result),
        "passes": result.report["passes"],
        "forms": sorted({site["form"] for site in result.sites}),
        "sites": result.sites,
    }


def _plots(result: DemoResult) -> dict[str, str]:
    gates, budget, rank = result.ccm.gates, result.settings.budget, result.settings.rank
    series = {
        "effective rank": [step.ranks.mean for step in gates],
        "temperature τ": [step.temperature for step in gates],
        "coverage c": [step.coverage for step in gates],
    }
    drawn = {
        "training": plots.training_curves(
            {"LoRA": result.lora.losses, "ccm": result.ccm.losses}, series, budget=budget
        ),
        "latency": _latency(result),
        "accuracy": _accuracy(result),
    }
    if result.ranks is not None:
        means = dict(zip(result.site_names, result.ranks.counts.mean(0).tolist(), strict=True))
        drawn["histogram"] = plots.rank_histogram(result.ranks.counts, rank, budget=budget)
        drawn["layers"] = plots.layer_ranks(by_layer(means), rank, budget=budget)
        drawn["usage"] = plots.usage_map(result.ranks.usage, [short_name(name) for name in result.site_names])
    return drawn


def _latency(result: DemoResult) -> str:
    colours = {MERGED: plots.MERGED, LORA: plots.LORA, CCM: plots.CCM}
    labels = {MERGED: "LoRA, merged", LORA: "LoRA", CCM: "ccm"}
    rows = []
    for name, timing in result.served.timings.items():
        low, high = (float(second) * 1e3 for second in np.percentile(timing.runs, (25, 75)))
        rows.append(plots.Bar(labels[name], timing.median_s * 1e3, low, high, colours[name]))
    return plots.bars(rows, unit="ms per batch, median and quartiles", written="{:.1f}", zoomed=False)


def _accuracy(result: DemoResult) -> str:
    error = result.standard_error
    values = (
        ("LoRA, torch", result.lora_accuracy, plots.LORA),
        ("ccm, torch", result.ccm_accuracy, plots.CCM),
        ("ccm, exported", result.exported_accuracy, plots.CCM),
    )
    rows = [plots.Bar(label, value, value - error, value + error, colour) for label, value, colour in values]
    return plots.bars(rows, unit="accuracy, ± one standard error", written="{:.4f}", zoomed=True)


def _prediction(result: DemoResult) -> dict[str, Any] | None:
    """The cost model's milliseconds over the merged model beside the measured ones."""
    predicted = result.prediction
    if predicted is None:
        return None
    return {
        "rows": result.overheads,
        "router_ms": predicted["router_seconds"] * 1e3,
        "flops": predicted["adapter_flops_ratio"],
        "even": predicted["break_even_tokens"],
        "even_seconds": predicted["break_even_tokens_seconds"],
    }


def by_layer(means: Mapping[str, float]) -> dict[str, list[float]]:
    """Site means grouped by layer, with the layers' short names."""
    groups: dict[str, list[float]] = {}
    for name, mean in means.items():
        layer = layer_of(name)
        groups.setdefault(f"layer {layer.rpartition('.')[2]}" if layer else short_name(name), []).append(mean)
    return groups


def short_name(site: str) -> str:
    """A site's name without what all sites share: "3 attention.self.query" for the fourth layer's query."""
    layer = layer_of(site)
    if layer:
        return f"{layer.rpartition('.')[2]} {site.removeprefix(layer).lstrip('.')}"
    return site.partition(".")[2] or site


def _jinja() -> ModuleType:
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise missing_package("jinja2", extra="report", feature="the demo's report") from error
    module: ModuleType = jinja2
    return module
