"""Parameters of a kernel's text: counted, told apart, and the last ones cut off where nothing reads them."""

from __future__ import annotations

import pytest

from gatefx.errors import GatefxError
from gatefx.runtime.ops.ptx import parameter_kinds, without_last_parameters

TEXT = """.version 8.8
.target sm_80
.visible .entry k(
	.param .u64 .ptr .global .align 1 k_param_0,
	.param .u32 k_param_1,
	.param .u64 .ptr .global .align 1 k_param_2,
	.param .u64 .ptr .global .align 1 k_param_3,
	.param .u64 .ptr .global .align 1 k_param_10
)
.reqntid 128
{
	ld.param.b64 	%rd1, [k_param_0];
	ld.param.b32 	%r1, [k_param_1];
	ld.param.b64 	%rd2, [k_param_2];
	ret;
}
"""


def test_parameters_are_told_apart() -> None:
    assert parameter_kinds(TEXT) == ("u64", "u32", "u64", "u64", "u64")


def test_the_last_parameters_go_and_nothing_else_does() -> None:
    cut = without_last_parameters(TEXT, 2)
    assert parameter_kinds(cut) == ("u64", "u32", "u64")
    gone = [line for line in TEXT.splitlines() if "k_param_3" in line or "k_param_10" in line]
    assert cut.splitlines() == [
        line.removesuffix(",") if "k_param_2" in line and ".param .u64" in line else line
        for line in TEXT.splitlines()
        if line not in gone
    ]


def test_a_parameter_that_is_read_is_not_cut_off() -> None:
    with pytest.raises(GatefxError, match="only Triton's own launcher passes") as caught:
        without_last_parameters(TEXT, 3)
    assert caught.value.given == "k_param_2"
