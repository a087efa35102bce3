from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from gatefx.runtime.native.masked_attention import MASKED_ATTENTION
from gatefx.runtime.ops.domain import DOMAIN

from .attention_cases import BOUNDS, SHAPES, AttentionCase
from .runs import all_equal_from_four_callers, opened, run

SEES = ("all", "none", "padded", "causal", "random")


def session(folder: Path | None, case: AttentionCase, threads: int = 1) -> Any:
    """A model of one node, as a session has it; without a folder the standard one."""
    kind = helper.np_dtype_to_tensor_dtype(case.arrays()["q"].dtype)
    inputs = [
        *(helper.make_tensor_value_info(name, kind, [None, None, None]) for name in ("q", "k", "v")),
        helper.make_tensor_value_info("visible", TensorProto.BOOL, [None, None, None, None]),
    ]
    operator, domain = ("Attention", "") if folder is None else (MASKED_ATTENTION, DOMAIN)
    node = helper.make_node(operator, ["q", "k", "v", "visible"], ["y"], domain=domain, **case.heads, scale=case.scale)
    graph = helper.make_graph([node], "one", inputs, [helper.make_tensor_value_info("y", kind, [None, None, None])])
    versions = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=10)
    return opened(model, folder, threads)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_what_is_seen_is_mixed_by_its_softmax(native_folder: Path, isa: str, dtype: torch.dtype, threads: int) -> None:
    for seed, shape in enumerate(SHAPES):
        for sees in SEES:
            case = AttentionCase(shape, dtype, sees, seed)
            answer = run(session(native_folder, case, threads), case.arrays())
            assert answer.shape == case.reference().shape
            assert case.off(answer) <= BOUNDS[dtype], (shape, sees)


@pytest.mark.parametrize("sees", SEES)
def test_kernel_and_standard_operator_agree(native_folder: Path, sees: str) -> None:
    case = AttentionCase((2, 49, 49, 2, 2, 32, 32), torch.float32, sees)
    if sees == "causal":
        case.tensors["visible"] = case.tensors["visible"].expand(2, 1, -1, -1).contiguous()
    native, standard = (run(session(folder, case), case.arrays()) for folder in (native_folder, None))
    np.testing.assert_allclose(native, standard, rtol=0, atol=BOUNDS[torch.float32])


def test_any_number_but_zero_is_seen(native_folder: Path) -> None:
    case = AttentionCase((1, 5, 300, 2, 2, 16, 16), torch.float32, "random")
    arrays = case.arrays()
    flags = np.where(arrays["visible"], np.uint8(254), np.uint8(0)).view(np.bool_)
    answer = run(session(native_folder, case), {**arrays, "visible": flags})
    assert case.off(answer) <= BOUNDS[torch.float32]


def test_a_query_does_not_depend_on_its_neighbours(native_folder: Path, isa: str) -> None:
    """Nor on the keys that others see: whole blocks of them are skipped only where nobody does."""
    case = AttentionCase((1, 60, 400, 2, 1, 24, 24), torch.float32, "random")
    case.tensors["visible"][:, :, 7] = torch.arange(400) < 30
    made = session(native_folder, case)
    together = run(made, case.arrays())
    for query in (0, 7, 59):
        rows = {name: case.arrays()[name][..., query : query + 1, :] for name in ("q", "visible")}
        alone = run(made, {**case.arrays(), **{name: np.ascontiguousarray(row) for name, row in rows.items()}})
        assert torch.equal(alone[:, 0], together[:, query])


def test_a_number_that_is_none_stays_none_where_it_is_seen(native_folder: Path) -> None:
    case = AttentionCase((1, 4, 300, 1, 1, 8, 8), torch.float32, "all")
    case.tensors["q"][0, 2, 3] = torch.nan
    answer = run(session(native_folder, case), case.arrays())
    assert answer[0, 2].isnan().all()
    assert answer[0, [0, 1, 3]].isfinite().all()


def test_four_callers_of_one_session(native_folder: Path) -> None:
    feeds = [AttentionCase((3, 40, 40, 2, 1, 16, 16), torch.float32, "padded", seed).arrays() for seed in range(4)]
    made = session(native_folder, AttentionCase((3, 40, 40, 2, 1, 16, 16), torch.float32), 2)
    assert all_equal_from_four_callers(made, feeds)


@pytest.mark.parametrize(
    ("name", "shape", "text"),
    [
        ("q", (2, 3, 7), "heads do not divide"),
        ("k", (2, 4, 8), "do not agree"),
        ("v", (1, 5, 8), "do not agree"),
        ("visible", (2, 1, 3, 4), "mask is not"),
        ("visible", (2, 1, 2, 5), "mask does not fit"),
        ("visible", (2, 3, 3, 5), "mask does not fit"),
    ],
)
def test_tensors_that_do_not_fit_are_a_status(
    native_folder: Path, name: str, shape: tuple[int, ...], text: str
) -> None:
    case = AttentionCase((2, 3, 5, 1, 2, 4, 4), torch.float32)
    feed = {**case.arrays(), "k": np.zeros((2, 5, 4), np.float32), "v": np.zeros((2, 5, 4), np.float32)}
    feed[name] = np.zeros(shape, feed[name].dtype)
    with pytest.raises(Exception, match=text):
        run(session(native_folder, case), feed)


def test_heads_that_are_too_wide_are_a_status(native_folder: Path) -> None:
    case = AttentionCase((1, 2, 2, 1, 1, 257, 8), torch.float32)
    with pytest.raises(Exception, match="up to 256"):
        run(session(native_folder, case), case.arrays())
