from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import gatefx
from gatefx.errors import ProviderError
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.runtime.native.library import ABI_VERSION
from gatefx.runtime.native.places import FILES, SWITCH


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small encoder with ccm in gathered form, trained for two steps; B is random, so that updates matter."""
    model = tiny("bert")
    batch = tiny_inputs(model, batch=4, tokens=9)
    gated = gatefx.prepare(model, method="ccm", budget=3, rank=8, example_inputs=batch)
    optimiser = torch.optim.AdamW([p for p in gated.parameters() if p.requires_grad], lr=1e-3)
    schedule = gated.schedule(2)
    for _ in range(2):
        gated.train()(**batch, labels=torch.arange(4) % 2).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    for name, parameter in gated.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    fast = gatefx.optimize(gated, data=[batch], forms="gathered", progress=False)
    return gatefx.export(fast, tmp_path_factory.mktemp("exported") / "out")


def test_native_and_portable_sessions_agree(exported: Path, native: Path) -> None:
    fast, plain = gatefx.load(exported, native=True, threads=1), gatefx.load(exported, native=False, threads=1)
    assert fast.native.active
    assert fast.native.library is not None
    assert not plain.native.active
    assert plain.native.reason == "native=False"
    for batch, tokens in ((1, 1), (3, 17), (8, 64)):
        ids = np.random.default_rng(0).integers(5, 90, (batch, tokens))
        mask = np.tri(batch, tokens, tokens // 2, dtype=np.int64)
        given = {"input_ids": ids, "attention_mask": mask}
        given = {spec.name: given[spec.name] for spec in fast.inputs}
        for budget in (None, 2):
            left, right = fast.run(given, budget), plain.run(given, budget)
            for name, value in right.items():
                np.testing.assert_allclose(left[name], value, rtol=0, atol=1e-5 * np.abs(value).max())


def test_missing_kernels_are_named_or_refused(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, str(tmp_path))
    assert "gatefx build-native" in gatefx.load(exported).native.reason
    with pytest.raises(ProviderError, match="gatefx build-native"):
        gatefx.load(exported, native=True)


_STUB = """
#define EXPORT extern "C" __attribute__((visibility("default")))
static const char* const names[] = {"baseline", nullptr};
EXPORT int gatefx_abi_version() { return %d; }
EXPORT const char* gatefx_isa() { return names[0]; }
EXPORT const char* const* gatefx_isas() { return names; }
EXPORT int gatefx_use_isa(const char*) { return 0; }
"""


@pytest.mark.parametrize(
    ("source", "words"),
    [(_STUB % ABI_VERSION, "RegisterCustomOps"), (_STUB % 99, "version 99"), ("int nothing;", "no library of gatefx")],
)
def test_a_library_that_is_none_is_named_or_refused(
    source: str, words: str, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no library without a compiler")
    (tmp_path / "stub.cpp").write_text(source)
    target = tmp_path / FILES["onnxruntime"]
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(target), str(tmp_path / "stub.cpp")], check=True)
    monkeypatch.setenv(SWITCH, str(tmp_path))

    status = gatefx.load(exported).native

    assert not status.active
    assert words in status.reason
    with pytest.raises(ProviderError, match=words):
        gatefx.load(exported, native=True)
