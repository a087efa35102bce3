"""The promises on real checkpoints: open gates are the adapter, shut gates the base, and ONNX answers as torch does."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gatefx
from gatefx.models.packaged import MODELS, PackagedDataError, encoder
from gatefx.passes.gated import GatedModel
from gatefx.passes.harden.freeze import FreezeRegularization
from gatefx.passes.harden.static_gates import open_every_gate
from gatefx.passes.methods.ccm_schedule import routers_of

from .sampling import rest_slow

pytestmark = pytest.mark.packages
ONNX_TOLERANCE = 1e-4  # absolute, on logits


def ragged(names: tuple[str, ...], batch: int, longest: int, seed: int) -> dict[str, Tensor]:
    """A right-padded batch of random token ids whose lengths run from 3 to `longest`."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(1000, 20000, (batch, longest), generator=draw)
    lengths = torch.randint(3, longest + 1, (batch,), generator=draw)
    lengths[0] = longest
    mask = (torch.arange(longest) < lengths.unsqueeze(1)).long()
    inputs = {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return {name: inputs[name] for name in names}


def awake(model: nn.Module) -> None:
    """Give every LoRA an update that shows in the logits; B starts at zero."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)


@pytest.fixture(scope="module", params=rest_slow(["minilm-l6", "e5-small"]))
def gated(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module, GatedModel]:
    """(base, PEFT model, gated model) over one real checkpoint."""
    peft = pytest.importorskip("peft")
    try:
        base, _ = encoder(request.param, num_labels=2)
        twin, tokenizer = encoder(request.param, num_labels=2)
    except PackagedDataError as error:
        pytest.skip(f"{MODELS[request.param].package} cannot be had: {error}")
    config = peft.LoraConfig(r=16, lora_alpha=32, task_type="SEQ_CLS", target_modules="all-linear")
    adapted = peft.get_peft_model(twin, config)
    awake(adapted)
    names = tuple(tokenizer.model_input_names)
    model = gatefx.prepare(adapted, budget=6, example_inputs=ragged(names, 4, 12, seed=1))
    return base.eval(), adapted.eval(), model.eval()


def test_open_gates_are_the_adapter_bit_for_bit(gated: tuple[nn.Module, nn.Module, GatedModel]) -> None:
    _, adapted, model = gated
    frozen = FreezeRegularization()(model.graph_module).graph_module
    opened = open_every_gate(frozen)(frozen, verify=True).graph_module
    batch = ragged(model.signature.input_names, 5, 40, seed=2)
    with torch.no_grad():
        wanted = adapted(**batch).logits
        assert torch.equal(opened(*model.signature.arrange(batch))["logits"], wanted)
        for router in routers_of(model.graph_module):
            router.level.fill_(math.log(1e-6))
            router.config = gatefx.CCM(k_min=16)
        assert torch.equal(model(**batch).logits, wanted)
        for router in routers_of(model.graph_module):
            router.config = model.method
            router.level.fill_(math.log1p(-6 / 16))


def test_shut_gates_are_the_base_bit_for_bit(
    gated: tuple[nn.Module, nn.Module, GatedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, _, model = gated
    (router,) = routers_of(model.graph_module)
    sites, rank = len(router.site_ranks), router.max_rank
    monkeypatch.setattr(router, "forward", lambda state, mask=None: state.new_zeros(len(state), sites, rank))
    batch = ragged(model.signature.input_names, 5, 40, seed=3)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, base(**batch).logits)


def test_onnx_runtime_answers_as_torch_over_ragged_batches(
    gated: tuple[nn.Module, nn.Module, GatedModel], tmp_path: Path
) -> None:
    _, _, model = gated
    names = model.signature.input_names
    routers_of(model.graph_module)[0].updates.fill_(1)  # routers as initialised: untrained ones would be fitted first
    fast = gatefx.optimize(model, data=[ragged(names, 8, 48, seed=s) for s in range(4)], forms="gathered")
    session = gatefx.load(gatefx.export(fast, tmp_path / "out"), threads=1)
    worst = 0.0
    for batch, longest in ((1, 3), (1, 256), (2, 17), (7, 64), (16, 3), (16, 256)):
        inputs = ragged(names, batch, longest, seed=batch + longest)
        with torch.no_grad():
            wanted, masked = fast(**inputs).logits, fast.reference(**inputs).logits
        worst = max(worst, float((torch.from_numpy(session(**inputs)["logits"]) - wanted).abs().max()))
        assert torch.allclose(wanted, masked, rtol=0, atol=1e-5)
    assert worst <= ONNX_TOLERANCE
