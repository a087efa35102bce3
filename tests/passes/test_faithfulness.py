"""The report on a choice of tokens, against runs that drop the tokens themselves."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import gatefx
from gatefx.errors import MethodError
from gatefx.models.configs.masklora import MaskLoRA
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.deployed import DeployedModel
from gatefx.passes.faithfulness import faithfulness
from gatefx.passes.harden.token_calibration import hard_gates

DATA = [tiny_inputs("bert", batch=6, tokens=9, seed=seed) for seed in range(3)]


@cache
def deployed(budget: float = 0.5) -> DeployedModel:
    torch.manual_seed(0)
    config = LoraConfig(r=4, init_lora_weights=False, task_type="SEQ_CLS", target_modules=["query", "dense"])
    tuned = get_peft_model(tiny("bert", num_labels=3), config).eval()
    method = MaskLoRA(keep={0: 0.5})
    return gatefx.optimize(tuned, method, budget, data=DATA, distill_steps=20, progress=False)


def test_the_report_is_what_dropping_by_hand_shows() -> None:
    fast = deployed()
    (gate,) = hard_gates(fast.reference_graph)
    whole, kept, turned, shares = [], [], [], []
    for batch in DATA:
        seen: list[Any] = []
        handle = gate.register_forward_hook(lambda _m, _i, answer, seen=seen: seen.append(answer))
        kept.append(fast.reference(**batch)["logits"])
        handle.remove()
        priority, counts = seen[0]
        order = priority.argsort(-1, descending=True)
        chosen = torch.zeros_like(priority, dtype=torch.bool)
        for row, count in enumerate(counts):
            chosen[row, order[row, :count]] = True
        # A cut after the embeddings: what goes there is padding.
        rest = batch["attention_mask"] * (~chosen).long()
        rest[:, 0] = 1
        fast.budget = 1.0
        whole.append(fast.reference(**batch)["logits"])
        turned.append(fast.reference(**{**batch, "attention_mask": rest})["logits"])
        fast.budget = 0.5
        shares.append(counts / batch["attention_mask"].sum(1))
    said = torch.cat(whole).argmax(-1)
    report = faithfulness(fast, [{**batch, "labels": said[6 * i : 6 * i + 6]} for i, batch in enumerate(DATA)])

    assert report.sufficiency == pytest.approx(float((torch.cat(kept).argmax(-1) == said).double().mean()))
    assert report.necessity == pytest.approx(float((torch.cat(turned).argmax(-1) != said).double().mean()))
    p, q = torch.cat(whole).log_softmax(-1), torch.cat(kept).log_softmax(-1)
    assert report.divergence == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), abs=1e-5)
    assert report.share == pytest.approx(float(torch.cat(shares).mean()))
    assert report.full_accuracy == 1.0
    assert report.accuracy == report.sufficiency
    assert f"kept {report.share:.1%}" in str(report)


def test_everything_kept_is_faithful_and_hooks_do_not_stay() -> None:
    fast = deployed()
    before = fast.reference(**DATA[0])["logits"]
    fast.budget = 1.0
    report = faithfulness(fast, DATA)
    fast.budget = 0.5

    assert (report.sufficiency, report.divergence, report.share, report.deviation) == (1.0, 0.0, 1.0, 0.0)
    assert report.accuracy is None
    assert torch.equal(fast.reference(**DATA[0])["logits"], before)


def test_a_model_that_drops_nothing_is_refused() -> None:
    with pytest.raises(MethodError, match="drops no tokens"):
        faithfulness(deployed(1.0), DATA)
