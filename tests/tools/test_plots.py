from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from gatefx.tools import plots


def drawings() -> dict[str, str]:
    counts = np.random.default_rng(0).integers(2, 9, (30, 4))
    usage = np.random.default_rng(1).random((4, 8))
    rows = [plots.Bar("a", 0.8, 0.79, 0.81, plots.LORA), plots.Bar("b", 0.7, 0.69, 0.71, plots.CCM)]
    losses = {"LoRA": [1.0, 0.5, 0.4], "ccm": [1.0, 0.6, 0.5]}
    return {
        "training": plots.training_curves(losses, {"effective rank": [6.0, 5.0, 6.0], "other": [1, 2, 3]}, budget=6),
        "histogram": plots.rank_histogram(counts, 8, budget=6),
        "layers": plots.layer_ranks({"layer 0": [3.0, 4.0], "layer 1": [5.0]}, 8, budget=6),
        "usage": plots.usage_map(usage, ["q", "k", "v", "o"]),
        "bars": plots.bars(rows, unit="ms", written="{:.1f}", zoomed=False),
        "dots": plots.bars(rows, unit="accuracy", written="{:.3f}", zoomed=True),
    }


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return drawings()


def test_every_plot_is_one_svg_element_with_text_and_no_colour_of_its_own(drawn: dict[str, str]) -> None:
    for name, svg in drawn.items():
        root = ElementTree.fromstring(svg)
        assert root.tag.endswith("svg"), name
        assert "width" not in root.attrib
        assert root.attrib["role"] == "img"
        assert "<text" in svg, name
        # White and black come from matplotlib's clip paths and invisible patches only.
        colours = set(re.findall(r"#[0-9a-f]{6}\b", svg))
        assert colours <= {"#ffffff", "#000000"}, name
        assert "var(--ccm)" in svg or name == "bars", name


def test_drawing_twice_gives_the_same_text(drawn: dict[str, str]) -> None:
    assert drawings() == drawn


def test_smoothing_is_a_running_mean() -> None:
    values = np.random.default_rng(0).random(50)
    expected = [values[max(0, i - 19) : i + 1].mean() for i in range(50)]
    np.testing.assert_allclose(plots.smoothed(values.tolist()), expected)
