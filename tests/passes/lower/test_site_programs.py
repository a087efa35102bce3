"""Programs of single sites: together with the frozen layers they are the model, token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gatefx
from gatefx.errors import SiteError
from gatefx.methods import CCM, TSPEFT, GateRA
from gatefx.models.tiny import tiny_decoder
from gatefx.passes.lower.aotinductor import gatefx_operators
from gatefx.passes.lower.site_programs import site_programs

from ...sampling import rest_slow


def deployed(config: Any, budget: Any = None) -> Any:
    torch.manual_seed(0)
    ids = torch.randint(1, 50, (4, 9))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    model = tiny_decoder("llama")
    gated = gatefx.prepare(model, config, budget, example_inputs=batch)
    with torch.no_grad():
        for name, parameter in gated.named_parameters():
            if "lora_B" in name or "hira_B" in name:
                parameter.normal_(std=0.5)
    return model, gatefx.optimize(gated.eval(), data=[batch], progress=False), batch


@pytest.mark.parametrize("config", rest_slow([GateRA(rank=4), TSPEFT(rank=4)]), ids=["gatera", "tspeft"])
def test_layers_with_their_programs_are_the_model(config: Any) -> None:
    model, fast, batch = deployed(config, 0.5 if isinstance(config, GateRA) else None)
    base = model(**batch).logits
    programs = site_programs(fast)
    assert set(programs) == {site.name for site in fast.sites}
    for name, program in programs.items():
        assert gatefx_operators(program) == ()
        update = program.module()

        def hook(layer: Any, given: Any, answer: torch.Tensor, update: Any = update) -> torch.Tensor:
            # As a server does: all tokens in one row.
            flat = update(answer.reshape(1, -1, answer.shape[-1]), given[0].reshape(1, -1, given[0].shape[-1]))
            return answer + flat.reshape(answer.shape)

        model.get_submodule(name).register_forward_hook(hook)
    with torch.no_grad():
        logits = model(**batch).logits
    torch.testing.assert_close(logits, fast(**batch)["logits"], rtol=1e-4, atol=1e-4)
    assert (logits - base).abs().max() > 1e-3


def test_a_router_that_reads_the_text_is_refused() -> None:
    _, fast, _ = deployed(CCM(rank=4), 2)
    with pytest.raises(SiteError, match="no function of each token") as caught:
        site_programs(fast)
    assert "input_ids" in caught.value.given or "attention_mask" in caught.value.given
