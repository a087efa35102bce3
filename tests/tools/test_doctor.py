from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console

from gatefx.tools.doctor import examine, show_findings


def test_each_no_has_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEFX_NATIVE", str(tmp_path))
    findings = {finding.name: finding for finding in examine()}
    assert torch.__version__ in findings["torch"].detail
    assert "CPUExecutionProvider" in findings["ONNX Runtime"].detail
    for name in ("native kernels for torch", "native kernels for ONNX Runtime"):
        assert not findings[name].active
        assert "gatefx build-native" in findings[name].detail
    console = Console(width=200, record=True)
    show_findings(list(findings.values()), console)
    printed = console.export_text()
    assert all(name in printed for name in findings)
    assert findings["torch"].to_json() == {"name": "torch", "active": True, "detail": findings["torch"].detail}
