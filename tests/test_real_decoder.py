"""SmolLM2-135M: with every token kept, a deployed decoder generates what the model itself does, token by token."""

from __future__ import annotations

import pydoc_data.topics
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import gatefx
from gatefx.models.packaged_cache import PackagedDataError
from gatefx.models.packaged_decoder import language_model
from gatefx.passes.decode.engine import engine_of
from gatefx.runtime.generation.loop import start_generation
from gatefx.runtime.generation.sampling import Sampling

pytestmark = [pytest.mark.slow, pytest.mark.packages]

_LENGTHS = (300, 120, 37, 211)
_NEW = 200


@pytest.fixture(scope="module")
def smollm2() -> Any:
    """(the tuned model, masklora deployed on it after a quarter of the layers, ids of a real text)."""
    try:
        model, tokenizer = language_model(print)
    except PackagedDataError as error:
        pytest.skip(str(error))
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=16, target_modules=["q_proj", "v_proj"])).eval()
    random = torch.Generator().manual_seed(0)
    for name, parameter in tuned.named_parameters():
        if ".lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=random) * 0.02)
    ids = tokenizer(pydoc_data.topics.topics["compound"], return_tensors="pt")["input_ids"][0]
    data = [{"input_ids": ids[:256].view(2, 128), "attention_mask": torch.ones(2, 128).long()}]
    method = gatefx.methods.MaskLoRA(keep={8: 0.5})
    return tuned, gatefx.optimize(tuned, method, data=data, distill_steps=20, progress=False), ids


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded on the left, as transformers generates."""
    longest = max(map(len, rows))
    ids = torch.tensor([[2] * (longest - len(row)) + row for row in rows])
    return ids, torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])


@pytest.mark.parametrize("batch", [1, 4])
def test_keeping_every_token_is_token_identical(smollm2: Any, batch: int) -> None:
    tuned, deployed, text = smollm2
    rows = [text[100 * row : 100 * row + length].tolist() for row, length in enumerate(_LENGTHS)][:batch]
    ids, mask = padded(rows)
    wanted = tuned.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=_NEW, do_sample=False, eos_token_id=None, pad_token_id=2
    )[:, ids.shape[1] :]
    found = gatefx.generate(deployed, rows, max_new_tokens=_NEW, stop=(), budget=1.0).tokens
    assert torch.equal(found, wanted)


def test_onnx_runtime_says_what_torch_says(smollm2: Any, tmp_path: Path) -> None:
    tuned, deployed, text = smollm2
    session = gatefx.load(gatefx.export(deployed, tmp_path / "smollm2", generate=True), threads=1)
    rows = [text[100 * row : 100 * row + length].tolist() for row, length in enumerate(_LENGTHS)]
    ids, mask = padded(rows)
    wanted = tuned.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=_NEW, do_sample=False, eos_token_id=None, pad_token_id=2
    )[:, ids.shape[1] :]
    assert torch.equal(gatefx.generate(session, rows, max_new_tokens=_NEW, stop=(), budget=1.0).tokens, wanted)
    ours, theirs = (
        gatefx.generate(engine, rows, max_new_tokens=20, stop=(), budget=0.5) for engine in (deployed, session)
    )
    assert torch.equal(ours.tokens, theirs.tokens)
    assert (ours.decode.rows, ours.decode.bytes) == (theirs.decode.rows, theirs.decode.bytes)


def test_a_short_cache_is_the_masked_one(smollm2: Any) -> None:
    _, deployed, text = smollm2
    rows = [text[100 * row : 100 * row + length].tolist() for row, length in enumerate(_LENGTHS)]
    sizes = []
    for share in (0.7, 0.5, 0.3):
        short, dense = (
            start_generation(
                engine_of(deployed, masked=masked), rows, None, max_new_tokens=20, sampling=Sampling(), stop=(),
                budget=share, cache=None,
            )
            for masked in (False, True)
        )  # fmt: skip
        assert torch.equal(short.tokens, dense.tokens)
        torch.testing.assert_close(short.logits, dense.logits, atol=2e-3, rtol=0)  # logits reach 30, in float32
        sizes.append(short.prefill.bytes)
        assert dense.prefill.bytes > sizes[-1]
    assert sizes == sorted(sizes, reverse=True)
