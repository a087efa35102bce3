"""The text of a compiled kernel: its parameters, and those that Triton adds cut off. Nothing is imported for it.

.visible .entry k(.param .u64 … k_param_0, .param .u32 k_param_1, .param .u64 … k_param_2, … hidden, hidden) {…}
"""

from __future__ import annotations

import re
from typing import Literal

from ...errors import GatefxError

Element = Literal["fp16", "bf16", "fp32"]
"""Type of the states and weights that a kernel was compiled for."""

POINTER, WHOLE_NUMBER = "u64", "u32"


def parameter_kinds(ptx: str) -> tuple[str, ...]:
    """By parameter of the entry, in order, `POINTER` or `WHOLE_NUMBER`."""
    return tuple(re.findall(r"\.param\s+\.(\w+)", _parts(ptx)[1]))


def without_last_parameters(ptx: str, count: int) -> str:
    """`ptx` without the last `count` parameters of its entry, which its code must not read.

    Raises:
        GatefxError: one of them is read, so a caller must pass it.
    """
    before, parameters, after = _parts(ptx)
    listed = parameters.split(",")
    kept, cut = listed[: len(listed) - count], listed[len(listed) - count :]
    for parameter in cut:
        name = parameter.split()[-1]
        if re.search(rf"\b{re.escape(name)}\b", after):
            raise GatefxError(
                "A kernel reads a parameter that only Triton's own launcher passes.",
                given=name,
                expected="a kernel that needs no scratch memory",
            )
    return before + ",".join(kept).rstrip() + "\n" + after


def _parts(ptx: str) -> tuple[str, str, str]:
    """Up to the entry's opening bracket, its parameters, and from the closing one on."""
    opening = ptx.index("(", ptx.index(".entry")) + 1
    closing = ptx.index(")", opening)
    return ptx[:opening], ptx[opening:closing], ptx[closing:]
