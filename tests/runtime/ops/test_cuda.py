"""What a CUDA tensor meets: a kernel or plain torch, registered for every operator and reported with the reason."""

from __future__ import annotations

import pytest
import torch

from gatefx.runtime.ops import cuda
from gatefx.runtime.ops.reference import gated_lora_reference
from gatefx.runtime.ops.schema import gated_lora
from gatefx.runtime.ops.token_ops import gather_tokens, scatter_tokens
from gatefx.runtime.ops.update_ops import routed_linear, token_gated_lora


@pytest.mark.parametrize("operator", [gated_lora, token_gated_lora, routed_linear, gather_tokens, scatter_tokens])
def test_operators_have_a_cuda_implementation(operator: torch.library.CustomOpDef) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(operator._qualname, "CUDA")


def test_without_a_device_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reports = cuda.kernel_report()
    assert [report.operator for report in reports] == list(cuda.OPERATORS)
    assert {(report.active, report.why) for report in reports} == {(False, "no CUDA device")}


def test_without_triton_every_operator_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "_has_triton", lambda: False)
    assert all(not report.active and "gatefx[triton]" in report.why for report in cuda.kernel_report())


def test_cases_without_a_kernel_are_reported_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "_has_triton", lambda: True)
    assert all(report.active for report in cuda.kernel_report(torch.bfloat16, rank=64))
    large = {report.operator: report for report in cuda.kernel_report(torch.float16, rank=65)}
    assert [name for name, report in large.items() if not report.active] == ["gated_lora", "token_gated_lora"]
    assert "65" in large["gated_lora"].why
    double = {report.operator: report for report in cuda.kernel_report(torch.float64)}
    assert [name for name, report in double.items() if report.active] == ["gather_tokens", "scatter_tokens"]
    assert "float64" in double["routed_linear"].why


def test_a_case_without_a_kernel_is_answered_by_plain_torch() -> None:
    base, x = torch.randn(2, 3, 7).double(), torch.randn(2, 3, 6).double()
    a, b, scale = torch.randn(4, 6).double(), torch.randn(7, 4).double(), torch.tensor(0.5).double()
    indices = torch.tensor([[2, 0, -1, -1], [-1, -1, -1, -1]])
    found = cuda.cuda_gated_lora(base, x, a, b, indices, scale)
    torch.testing.assert_close(found, gated_lora_reference(base, x, a, b, indices, scale), rtol=0, atol=1e-10)
