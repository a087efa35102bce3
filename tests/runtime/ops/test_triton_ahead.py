"""Kernels compiled for GPUs that are not here: no spills, within the limits, on tensor cores, with the right signature.

Kernels are either interpreted or compiled in one process, so these compile in a process of their own.
"""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest

from ..compiling_ahead import rows_said_by

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed here: no kernel is compiled (pip install 'gatefx[triton]')",
)
ARCHITECTURES = (80, 86, 89, 90, 120)
#: Pointers and sizes of each kernel, as `triton_*.py` lists them.
PARAMETERS = {"gated_lora": 8, "token_gated_lora": 9, "routed_linear": 8}
PROGRAM = """
import dataclasses, json, sys
from gatefx.runtime.ops.triton_ahead import compile_ahead, faults
for kernel, element, rank, architecture in json.loads(sys.argv[1]):
    made = compile_ahead(kernel, element, rank, architecture)
    row = dataclasses.asdict(made) | {"faults": faults(made, element, architecture)}
    print(json.dumps(row | {"case": f"{kernel} {element} {rank} sm_{architecture}"}))
"""


def compiled(*cases: tuple[str, str, int, int]) -> list[dict[str, Any]]:
    return rows_said_by(PROGRAM, json.dumps(cases))


def assert_fit(row: dict[str, Any], parameters: int, architecture: int) -> None:
    assert row["faults"] == [], row["case"]
    assert row["parameters"] == parameters + row["hidden"], row["case"]
    assert f".target sm_{architecture}" in row["ptx"]
    assert f".entry {row['name']}(" in row["ptx"]


#: One of each kernel and type, among them the widest tile in float32, which holds the most registers.
SAMPLE = (
    ("gated_lora", "fp16", 16, 80),
    ("routed_linear", "bf16", 16, 90),
    ("token_gated_lora", "fp32", 64, 80),
    ("token_gated_lora", "fp32", 64, 90),
)


def test_a_sample_of_kernels_and_gpus_fits() -> None:
    for (kernel, _, _, architecture), row in zip(SAMPLE, compiled(*SAMPLE), strict=True):
        assert_fit(row, PARAMETERS[kernel], architecture)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", PARAMETERS)
@pytest.mark.parametrize("element", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_fits_every_gpu(kernel: str, element: str, architecture: int) -> None:
    ranks = [16] if kernel == "routed_linear" else [16, 32, 64]
    for row in compiled(*((kernel, element, rank, architecture) for rank in ranks)):
        assert_fit(row, PARAMETERS[kernel], architecture)
