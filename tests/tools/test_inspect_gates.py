"""`gatefx inspect` of saved gates: what is known without texts always, what they decide on texts where some are given.

Each figure is measured once more here by other means: hooks on the gates of the deployed masked graph.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gatefx as library
from gatefx.models.adapter_weight import AdapterWeight
from gatefx.models.configs.catalogue import METHODS
from gatefx.models.gates import RankMask, RankRouter
from gatefx.models.hard_token_gate import HardTokenGate
from gatefx.models.modulation import HardModulation, Modulation
from gatefx.models.packaged_text import batches
from gatefx.models.token_gate import TokenGate
from gatefx.models.update_threshold import HardUpdateThreshold, UpdateThreshold
from gatefx.tools.model_folder import open_model_folder
from gatefx.tools.model_loading import example_batch, load_gated, load_tokenizer

Command = Callable[..., tuple[int, str, str]]
LAYERS = ["bert.encoder.layer.0", "bert.encoder.layer.1"]
BUDGETS = {"ccm": 3, "tspeft": None, "gatera": None, "masklora": 0.5, "weightlora": 3}


@pytest.fixture(scope="module")
def folders(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Method → its saved gates, moved as training moves them: thresholds, logits and weights that differ."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = AutoModelForSequenceClassification.from_pretrained(base_folder)
    example = batches(AutoTokenizer.from_pretrained(base_folder), ["a good film", "the plot was dull"], batch_size=2)[0]
    made = {}
    for name, budget in BUDGETS.items():
        torch.manual_seed(0)
        config: Any = dataclasses.replace(METHODS[name], rank=8, target_modules=("query", "value"))
        gated = library.prepare(base, config, budget=budget, example_inputs=example)
        for path, parameter in gated.graph_module.named_parameters():
            if path.rpartition(".default.")[0].endswith("_B"):
                nn.init.normal_(parameter, std=0.1)
        for path, module in gated.graph_module.named_children():
            _move(module, path.rpartition("_")[2])
        made[name] = gated.save_pretrained(tmp_path_factory.mktemp("gates") / name)
    return made


@torch.no_grad()
def _move(module: nn.Module, number: str) -> None:
    match module:
        case UpdateThreshold():
            module.tau.fill_(2.4 + 0.4 * int(number))
        case Modulation():
            nn.init.normal_(module.score.weight, std=0.5)
        case AdapterWeight():
            module.omega.fill_(0.5 + 0.25 * int(number))
        case TokenGate():
            nn.init.normal_(module.predictor.score.weight)
        case RankRouter():
            nn.init.normal_(module.heads.weight)
        case _:
            return
    module.updates.fill_(1)


def inspected(gatefx: Command, folder: Path, *options: object) -> dict[str, Any]:
    code, printed, err = gatefx("inspect", folder, "--json", *options)
    assert (code, err) == (0, "")
    described: dict[str, Any] = json.loads(printed)
    return described


def gate_answers(folder: Path, texts: list[str], kind: type) -> tuple[dict[str, list[Any]], Tensor]:
    """(name of a gate of `kind` in the masked graph → its answers on the texts as one batch, attention mask)."""
    opened = open_model_folder(folder)
    tokenizer = load_tokenizer(opened)
    deployed = library.optimize(load_gated(opened, example_batch(tokenizer)))
    (batch,) = batches(tokenizer, texts, batch_size=len(texts))
    answers: dict[str, list[Any]] = {}
    for name, module in deployed.reference_graph.named_children():
        if isinstance(module, kind):
            module.register_forward_hook(lambda *given, name=name: answers.setdefault(name, []).append(given[2]))
    deployed.reference(**batch)
    return answers, batch["attention_mask"].bool()


@pytest.mark.parametrize("method", BUDGETS)
def test_sites_and_ranks_need_no_text(gatefx: Command, folders: Mapping[str, Path], method: str) -> None:
    described = inspected(gatefx, folders[method])

    assert [row["layer"] for row in described["layers"]] == LAYERS
    assert [(row["sites"], row["rank"]) for row in described["layers"]] == [(2, 8), (2, 8)]
    assert len(described["adapters"]) == 4
    code, printed, _ = gatefx("inspect", folders[method])
    assert code == 0
    assert "2 layers" in printed
    assert "pass --text or --data" in printed


def test_thresholds_weights_and_cuts_need_no_text(gatefx: Command, folders: Mapping[str, Path]) -> None:
    layers = inspected(gatefx, folders["tspeft"])["layers"]
    assert [row["threshold"] for row in layers] == pytest.approx([2.6, 3.4])

    layers = inspected(gatefx, folders["weightlora"])["layers"]
    assert [row["forms"] for row in layers] == [{"lora": 1, "dropped": 1}, {"lora": 2}]
    assert [row["weight"] for row in layers] == pytest.approx([0.75, 1.125])

    assert "50% of the tokens after layer 1" in gatefx("inspect", folders["masklora"])[1]
    assert "g ≥ 0.5" in gatefx("inspect", folders["gatera"])[1]
    assert {row["kind"] for row in inspected(gatefx, folders["gatera"])["adapters"]} == {"hira"}


def test_effective_ranks_are_means_over_examples(
    gatefx: Command, folders: Mapping[str, Path], data_file: Path, texts: list[str]
) -> None:
    described = inspected(gatefx, folders["ccm"], "--data", data_file)
    answers, _ = gate_answers(folders["ccm"], texts, RankMask)
    (mask,) = next(iter(answers.values()))

    assert described["measured_on"] == len(texts)
    ranks = [row["mean_rank"] for row in described["layers"]]
    assert sum(ranks) / 2 == pytest.approx(float(mask.sum(-1).mean()))
    assert all(0 < rank < 8 for rank in ranks)


def test_skipped_updates_are_shares_of_real_tokens(
    gatefx: Command, folders: Mapping[str, Path], data_file: Path, texts: list[str]
) -> None:
    layers = inspected(gatefx, folders["tspeft"], "--data", data_file)["layers"]
    answers, real = gate_answers(folders["tspeft"], texts, HardUpdateThreshold)
    skipped = [float((update[0][real] == 0).all(-1).double().mean()) for update in answers.values()]

    assert [row["sparsity"] for row in layers] == pytest.approx([sum(skipped[:2]) / 2, sum(skipped[2:]) / 2])
    assert min(skipped) > 0
    assert max(skipped) < 1
    rows = json.loads(gatefx("inspect", folders["tspeft"], "--sparsity", "--json", "--data", data_file)[1])
    assert [row["sparsity"] for row in rows] == pytest.approx(sorted(skipped))


def test_gate_means_and_skipped_updates_of_modulations(
    gatefx: Command, folders: Mapping[str, Path], data_file: Path, texts: list[str]
) -> None:
    layers = inspected(gatefx, folders["gatera"], "--data", data_file)["layers"]
    answers, real = gate_answers(folders["gatera"], texts, HardModulation)
    skipped = [1 - float(choice[0][real].double().mean()) for choice in answers.values()]

    assert [row["sparsity"] for row in layers] == pytest.approx([sum(skipped[:2]) / 2, sum(skipped[2:]) / 2])
    assert all(0.3 < row["gate_mean"] < 0.7 for row in layers)
    assert len({row["gate_mean"] for row in layers}) == 2


def test_tokens_kept_are_shares_of_real_tokens(
    gatefx: Command, folders: Mapping[str, Path], data_file: Path, texts: list[str]
) -> None:
    layers = inspected(gatefx, folders["masklora"], "--data", data_file)["layers"]
    answers, real = gate_answers(folders["masklora"], texts, HardTokenGate)
    ((pair,),) = answers.values()

    assert [row["retention"] for row in layers] == [1.0, pytest.approx(float(pair[1].sum() / real.sum()))]
    assert 0.5 <= layers[1]["retention"] < 0.65


def test_dropped_sites_stay_dropped_on_texts(gatefx: Command, folders: Mapping[str, Path]) -> None:
    described = inspected(gatefx, folders["weightlora"], "--text", "a good film")

    assert described["measured_on"] == 1
    assert [row["forms"] for row in described["layers"]] == [{"dropped": 1, "lora": 1}, {"lora": 2}]
    assert [row["weight"] for row in described["layers"]] == pytest.approx([0.75, 1.125])


def test_folders_without_facts_still_list_their_sites(
    gatefx: Command, folders: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gatefx.tools import inspect

    known = inspect.Artifact.open(folders["tspeft"])
    old = {name: value for name, value in known.manifest.items() if name not in ("facts", "adapters")}
    monkeypatch.setattr(inspect.Artifact, "open", lambda folder: dataclasses.replace(known, manifest=old))
    layers = inspected(gatefx, folders["tspeft"])["layers"]

    assert [(row["sites"], row["rank"], row["threshold"]) for row in layers] == [(2, 8, None), (2, 8, None)]


def test_sparsity_of_saved_gates_needs_texts(gatefx: Command, folders: Mapping[str, Path]) -> None:
    code, _, err = gatefx("inspect", folders["tspeft"], "--sparsity")
    assert code == 2
    assert "--data FILE" in err
    assert gatefx("inspect", folders["tspeft"], "--text", "  ")[0] == 2
