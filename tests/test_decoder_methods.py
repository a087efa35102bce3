"""Every method on a small decoder: prepared, trained, deployed, exported, with the same tokens at every step."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import gatefx
from gatefx.models.tiny import tiny_decoder, tiny_inputs
from gatefx.passes.decode.engine import engine_of
from gatefx.runtime.generation.loop import start_generation
from gatefx.runtime.generation.sampling import Sampling

_STEPS = 6
METHODS: dict[str, tuple[Any, Any]] = {
    "ccm": (gatefx.methods.CCM(rank=4, d_router=8, prefix=4), 2),
    "tspeft": (gatefx.methods.TSPEFT(rank=4), 0.5),
    "gatera": (gatefx.methods.GateRA(rank=4), 0.5),
    "gatera-lora": (gatefx.methods.GateRA(rank=4, update="lora"), 0.5),
    "weightlora": (gatefx.methods.WeightLoRA(rank=4), 3),
}
#: The rest is slow: gatera differs from gatera-lora by its update alone, weightlora decides nothing once deployed.
NAMES = [
    name if name in {"ccm", "tspeft", "gatera-lora"} else pytest.param(name, marks=pytest.mark.slow) for name in METHODS
]
DATA = [tiny_inputs("llama", batch=4, tokens=24, seed=seed) for seed in range(3)]


def decoder() -> Any:
    """A Llama of one layer."""
    model = tiny_decoder("llama")
    model.model.layers, model.config.num_hidden_layers = model.model.layers[:1], 1
    return model


def language_loss(model: Any) -> float:
    """Mean over the data, padding left out."""
    with torch.no_grad():
        losses = [float(model.eval()(**batch, labels=labels_of(batch)).loss) for batch in DATA]
    return sum(losses) / len(losses)


def labels_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)


@pytest.fixture(scope="module")
def trained() -> Callable[[str], tuple[Any, list[float]]]:
    """Method → (its gated decoder after a few steps, the loss before and after)."""

    @cache
    def make(name: str) -> tuple[Any, list[float]]:
        torch.manual_seed(0)
        gated = gatefx.prepare(decoder(), *METHODS[name], example_inputs=DATA[0])
        losses = [language_loss(gated)]
        rate = 0.5 if name == "gatera" else 5e-2  # HiRA's product with small weights learns slowly
        optimiser = torch.optim.AdamW([p for p in gated.parameters() if p.requires_grad], lr=rate)
        schedule = gated.schedule(_STEPS, optimiser)
        gated.train()
        for step in range(_STEPS):
            batch = DATA[step % len(DATA)]
            gated(**batch, labels=labels_of(batch)).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
        losses.append(language_loss(gated))
        return gated, losses

    return make


@pytest.fixture(scope="module")
def deployed(trained: Any) -> Callable[[str], Any]:
    """Method → what `optimize` makes of it; made once."""
    return cache(lambda name: gatefx.optimize(trained(name)[0], data=DATA, progress=False))


@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps_lower_the_loss(trained: Any, name: str) -> None:
    before, after = trained(name)[1]
    assert after < before


@pytest.mark.parametrize("name", NAMES)
def test_trained_gates_generate_what_the_masked_graph_does(deployed: Any, ragged_prompts: Any, name: str) -> None:
    fast = deployed(name)
    short, dense = (
        start_generation(
            engine_of(fast, masked=masked), *ragged_prompts(), max_new_tokens=6, sampling=Sampling(), stop=(),
            budget=None, cache=None,
        )
        for masked in (False, True)
    )  # fmt: skip
    assert torch.equal(short.tokens, dense.tokens)
    torch.testing.assert_close(short.logits, dense.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["tspeft", "gatera-lora"])
def test_gates_per_generated_token_decide_in_a_decode_step_as_in_the_whole_text(deployed: Any, name: str) -> None:
    """What a token's gates say hangs on the tokens before it alone, so reading it later is the same."""
    fast = deployed(name)
    generation = gatefx.generate(fast, [[5, 6, 7, 8, 9]], max_new_tokens=5, stop=())
    ids = torch.cat([torch.tensor([[5, 6, 7, 8, 9]]), generation.tokens], 1)
    whole = fast(input_ids=ids, attention_mask=torch.ones_like(ids))["logits"]
    assert torch.equal(whole[0, 4:-1].argmax(-1), generation.tokens[0])
    torch.testing.assert_close(generation.logits, whole[:, -2], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["gatera-lora", pytest.param("tspeft", marks=pytest.mark.slow)])
def test_onnx_runtime_generates_torchs_tokens(deployed: Any, ragged_prompts: Any, name: str, tmp_path: Path) -> None:
    fast = deployed(name)
    session = gatefx.load(gatefx.export(fast, tmp_path / "out", generate=True), threads=1)
    found = gatefx.generate(session, *ragged_prompts(), max_new_tokens=8, stop=())
    wanted = gatefx.generate(fast, *ragged_prompts(), max_new_tokens=8, stop=())
    assert torch.equal(found.tokens, wanted.tokens)
    torch.testing.assert_close(found.logits, wanted.logits, atol=1e-4, rtol=1e-4)
