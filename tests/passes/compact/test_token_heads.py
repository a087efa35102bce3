"""Heads that answer by token, of families beside BERT: kept tokens answer as masked, dropped ones hold the fill."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, fx

from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.compact.tokens import CompactTokens

from ...sampling import rest_slow

FAMILIES = ["deberta-v2", "distilbert", "modernbert", "roberta", "electra", "mpnet"]
LEAST = torch.finfo(torch.float64).min
HEADS = {
    "TokenClassification": {"logits": 0.0},
    "QuestionAnswering": {"start_logits": LEAST, "end_logits": LEAST},
}


def model_of(family: str, head: str) -> torch.nn.Module:
    """A random model with this head over a body whose biases and norms are random too."""
    kind = getattr(transformers, f"AutoModelFor{head}")
    classifier = tiny(family, num_labels=3 if head == "TokenClassification" else 2)
    model = kind.from_config(classifier.config, dtype=torch.float32)
    missing, _ = model.load_state_dict(
        {name: value for name, value in classifier.state_dict().items() if _fits(model, name, value)}, strict=False
    )
    assert len(missing) <= 6, "the body is the classifier's"
    return model.eval().double()


def _fits(model: torch.nn.Module, name: str, value: Tensor) -> bool:
    own = model.state_dict()
    return name in own and own[name].shape == value.shape


class Kept(fx.Interpreter):
    """Runs a masked graph and keeps what its cut keeps, (B, T)."""

    mask: Tensor

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.target is torch.ops.gatefx.scatter_tokens.default:
            self.mask = value.bool()
        return value


@pytest.mark.parametrize("family", rest_slow(FAMILIES, 2))
@pytest.mark.parametrize("head", HEADS)
def test_dropped_positions_hold_the_fill_and_others_their_answer(masked_tokens: Any, family: str, head: str) -> None:
    masked = masked_tokens(model_of(family, head), tiny_inputs(family, 3, 9), {1: 0.5})
    result = CompactTokens()(masked)
    assert result.reports[0].declined == ()
    inputs = tiny_inputs(family, 4, 11, seed=3)
    interpreter = Kept(masked)

    wanted = interpreter.run(*inputs.values())
    answer = result.graph_module(*inputs.values())

    kept = interpreter.mask
    assert answer.keys() == wanted.keys() == HEADS[head].keys()
    for name, fill in HEADS[head].items():
        assert answer[name].shape == wanted[name].shape
        torch.testing.assert_close(answer[name][kept], wanted[name][kept], rtol=0, atol=1e-10)
        assert (answer[name][~kept] == fill).all()
        assert not (wanted[name][~kept] == fill).any()
    assert 0 < kept.sum() < inputs["attention_mask"].sum()
