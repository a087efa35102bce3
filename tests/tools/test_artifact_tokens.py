"""The token heat map of an exported model: its own cuts keep the tokens that the model before export keeps."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gatefx as library
from gatefx.errors import SiteError
from gatefx.models.configs.ccm import CCM
from gatefx.models.configs.masklora import MaskLoRA
from gatefx.passes.deployed import DeployedModel
from gatefx.runtime.artifact import Artifact
from gatefx.tools.artifact_tokens import artifact_heat_rows
from gatefx.tools.heat_map import heat_rows

from ..sampling import rest_slow_rows

Command = Callable[..., tuple[int, str, str]]
TEXT = "the film was not very good a dull plot"


@pytest.fixture(scope="module")
def tokenizer(base_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base_folder)


@pytest.fixture(scope="module")
def deployed(base_folder: Path, tokenizer: Any, texts: list[str]) -> Callable[..., DeployedModel]:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(base_folder)
    batch = dict(tokenizer(texts[:8], padding=True, return_tensors="pt"))

    @cache
    def make(config: Any, budget: Any, *, forms: str | None = None, data: bool = True) -> DeployedModel:
        torch.manual_seed(0)
        gated = library.prepare(model, config, budget=budget, example_inputs=batch)
        for name, parameter in gated.graph_module.named_parameters():
            if ".lora_B." in name or ".score.weight" in name:
                nn.init.normal_(parameter, std=0.2)
        for module in gated.graph_module.children():
            if "updates" in dict(module.named_buffers()):
                module.get_buffer("updates").fill_(1)
        return library.optimize(gated, data=[batch] if data else None, forms=forms, progress=False)

    return make


@pytest.mark.parametrize(("forms", "data"), rest_slow_rows([(None, True), (None, False), ("masked", True)]))
def test_cuts_are_those_of_the_masked_graph(
    deployed: Callable[..., DeployedModel], tokenizer: Any, tmp_path: Path, forms: str | None, data: bool
) -> None:
    config = MaskLoRA(rank=4, target_modules=("query",), keep=((0, 0.7), (1, 0.4)))
    model = deployed(config, None, forms=forms, data=data)
    encoded = tokenizer(TEXT, return_tensors="pt")
    inputs = {name: encoded[name] for name in model.signature.input_names}
    folder = library.export(model, tmp_path / "out", tokenizer=tokenizer)

    rows = artifact_heat_rows(Artifact.open(folder), inputs)

    expected = heat_rows(model, inputs)
    assert [row.values for row in rows] == [row.values for row in expected]
    assert [sum(row.values) for row in rows] == [8, 5]  # of eleven tokens
    assert rows[1].label == expected[1].label == "kept after layer 1"
    if data:
        assert rows[0].label == expected[0].label


def test_the_command_writes_the_map(
    gatefx: Command, deployed: Callable[..., DeployedModel], tokenizer: Any, tmp_path: Path
) -> None:
    model = deployed(MaskLoRA(rank=4, target_modules=("query",)), 0.5)
    folder = library.export(model, tmp_path / "out", tokenizer=tokenizer)
    page = tmp_path / "map.html"

    code, _, err = gatefx("inspect", folder, "--text", TEXT, "--html", page)

    assert (code, err) == (0, "")
    content = page.read_text(encoding="utf-8")
    assert content.count('class="dropped"') == 5
    assert "kept after layer 1" in content
    for arguments in (("--text", TEXT), ("--data", tmp_path / "no.txt")):
        assert gatefx("inspect", folder, *arguments)[0] == 2
    assert "folder that gated.save_pretrained wrote" in gatefx("inspect", folder, "--text", TEXT)[2]


def test_models_that_cut_nothing_or_bring_no_tokenizer_are_refused(
    gatefx: Command, deployed: Callable[..., DeployedModel], tokenizer: Any, tmp_path: Path
) -> None:
    ranks = library.export(deployed(CCM(rank=4, target_modules=("query",)), 2), tmp_path / "ranks", tokenizer=tokenizer)
    with pytest.raises(SiteError, match="selects tokens"):
        artifact_heat_rows(Artifact.open(ranks), dict(tokenizer(TEXT, return_tensors="np")))

    bare = library.export(deployed(MaskLoRA(rank=4, target_modules=("query",)), 0.5), tmp_path / "bare")
    code, _, err = gatefx("inspect", bare, "--text", TEXT, "--html", tmp_path / "map.html")
    assert code == 2
    assert "no tokenizer" in err
    assert not (tmp_path / "map.html").exists()
