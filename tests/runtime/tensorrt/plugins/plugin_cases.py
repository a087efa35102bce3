"""The plugins as TensorRT meets them, and the kernels that they launch. Run by `test_plugins.py`, kernels interpreted.

The table of kernels is written here and their texts are not compiled: `test_plugin_ptx.py` does that.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gatefx.runtime.ops.reference import gated_lora_reference
from gatefx.runtime.ops.reference_updates import routed_linear_reference, token_gated_lora_reference
from gatefx.runtime.ops.triton_ahead import constants_of
from gatefx.runtime.ops.triton_gated_lora import gated_lora_kernel
from gatefx.runtime.ops.triton_routed_linear import routed_linear_kernel
from gatefx.runtime.ops.triton_token_gated_lora import token_gated_lora_kernel
from gatefx.runtime.tensorrt.plugin_files import OPERATORS
from gatefx.runtime.tensorrt.plugins.kernels import TABLE_FILE, Kernel, Kernels, written_table
from gatefx.runtime.tensorrt.plugins.register import register_plugins

FUNCTIONS = {
    "GatedLora": gated_lora_kernel,
    "TokenGatedLora": token_gated_lora_kernel,
    "RoutedRows": routed_linear_kernel,
}
#: Largest error beside the largest value of the reference, which computes in float64.
BOUND: Mapping[torch.dtype, float] = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
ELEMENTS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
#: d_in, d_out, r: less than any tile, more than one, the widest rank.
SIZES = [(7, 5, 3), (45, 67, 17), (33, 130, 64)]
MIDDLES = [(2,), (3, 37), (1, 64), (2, 2, 9)]


@pytest.fixture(scope="session")
def plugins(front: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The front end, with all plugins registered for a folder of kernels of all `SIZES`."""
    folder = tmp_path_factory.mktemp("kernels")
    table = [
        kernel_of(operator, element, sizes)
        for operator in OPERATORS
        for element in ELEMENTS.values()
        for sizes in SIZES
    ]
    (folder / TABLE_FILE).write_text(written_table(table))
    for kernel in table:
        (folder / kernel.file).write_text(f"text of {kernel.file}")
    assert Kernels.read(folder).table == tuple(table)
    assert register_plugins(folder) == len(table)
    return front


def kernel_of(operator: str, element: str, sizes: tuple[int, int, int]) -> Kernel:
    d_in, d_out, rank = sizes
    tile = constants_of(OPERATORS[operator], element, rank, (d_in, d_out))  # type: ignore[arg-type]
    listed = 0 if operator == "RoutedRows" else rank
    return Kernel(
        operator, element, d_in, d_out, listed, nodes=1, threads=128, shared=4096, rows=tile["ROWS"],
        columns=tile["OUT"], entry=f"{OPERATORS[operator]}_kernel", file=f"{operator}_{element}_{d_in}_{d_out}.ptx",
    )  # fmt: skip


def shapes_of(operator: str, sizes: tuple[int, int, int], middle: int) -> list[tuple[Any, ...]]:
    """The inputs' sizes, with `middle` leading axes that are open."""
    d_in, d_out, rank = sizes
    leading = tuple(f"n{axis}" for axis in range(middle))
    adapter = [(*leading, d_out), (*leading, d_in), (rank, d_in), (d_out, rank)]
    return {
        "GatedLora": [*adapter, (leading[0], rank), ()],
        "TokenGatedLora": [*adapter, (rank, rank), (), ()],
        "RoutedRows": [(*leading, d_in), (d_out, d_in), (d_out, d_in), (d_out,), leading, ("tokens",)],
    }[operator]


def types_of(trt: Any, operator: str, dtype: torch.dtype) -> list[Any]:
    one = {torch.float32: trt.float32, torch.float16: trt.float16, torch.bfloat16: trt.bfloat16}[dtype]
    return {
        "GatedLora": [one] * 4 + [trt.int64, one],
        "TokenGatedLora": [one] * 7,
        "RoutedRows": [one] * 4 + [trt.bool, trt.int64],
    }[operator]


def of_batch(middle: tuple[int, ...]) -> dict[str, int]:
    return {f"n{axis}": size for axis, size in enumerate(middle)} | {"tokens": int(torch.Size(middle).numel())}


def test_plugins_stand_in_the_registry_under_the_names_of_our_nodes(plugins: Any) -> None:
    for operator in OPERATORS:
        found = plugins.creator(operator)
        assert (found.name, found.plugin_namespace, found.plugin_version) == (operator, "gatefx", "1")
        assert len(found.field_names) == 0
    assert plugins.creator("GatedLinear") is None


def test_a_process_registers_once(plugins: Any, tmp_path: Path) -> None:
    (tmp_path / TABLE_FILE).write_text(written_table([]))
    with pytest.raises(RuntimeError, match="process of its own"):
        register_plugins(tmp_path)


def test_a_folder_that_is_none_is_refused(plugins: Any, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=TABLE_FILE):
        register_plugins(tmp_path)
    (tmp_path / TABLE_FILE).write_text("operator,element\n")
    with pytest.raises(ValueError, match="no table of kernels"):
        register_plugins(tmp_path)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", ELEMENTS)
def test_types_are_one_of_three_and_never_mixed(plugins: Any, operator: str, dtype: torch.dtype) -> None:
    trt, sizes = plugins.trt, SIZES[1]
    types, shapes = types_of(trt, operator, dtype), shapes_of(operator, sizes, 2)
    plugin = plugins.plugin(operator)
    assert plugin.get_num_outputs() == 1
    assert plugin.get_output_data_types(types, [len(shape) for shape in shapes]) == [types[0]]

    answer = plugins.output_shape(plugin, types, shapes, of_batch((3, 37)))
    combinations = plugins.supported(plugin, types, shapes, plugins._described(types[0], tuple(answer)))
    assert combinations == [(*types_of(trt, operator, one), types_of(trt, operator, one)[0]) for one in ELEMENTS]

    floats = [place for place, kind in enumerate(types) if kind == types[0]]
    for place in floats[1:]:
        for other in (trt.int32, *{trt.float32, trt.float16} - {types[0]}):
            mixed = [other if at == place else kind for at, kind in enumerate(types)]
            with pytest.raises(TypeError, match=f"{operator} takes floats of one type"):
                plugins.plugin(operator).get_output_data_types(mixed, [len(shape) for shape in shapes])


@pytest.mark.parametrize("operator", OPERATORS)
def test_outputs_and_launches_follow_the_batch(plugins: Any, operator: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for sizes in SIZES:
        for axes in (1, 2, 3):
            middle = tuple(torch.randint(1, 200, (axes,), generator=generator).tolist())
            types, shapes = types_of(plugins.trt, operator, torch.float16), shapes_of(operator, sizes, axes)
            plugin = plugins.plugin(operator)
            assert plugins.output_shape(plugin, types, shapes, of_batch(middle)) == [*middle, sizes[1]]

            made = plugins.launch(plugin, types, shapes, of_batch(middle))
            kernel = kernel_of(operator, "fp16", sizes)
            each = int(torch.Size(middle[1:]).numel()) if operator == "GatedLora" else int(torch.Size(middle).numel())
            tiles = -(-each // 32)
            columns = {"GatedLora": middle[0], "TokenGatedLora": 1, "RoutedRows": -(-sizes[1] // 64)}[operator]
            assert (made.grid, made.extras) == ((tiles, columns, 1), (each,))
            assert (made.block, made.shared) == ((128, 1, 1), 4096)
            assert (made.entry, made.ptx) == (kernel.entry, f"text of {kernel.file}")


def test_sizes_without_a_kernel_are_refused_by_name(plugins: Any) -> None:
    types, shapes = types_of(plugins.trt, "GatedLora", torch.float16), shapes_of("GatedLora", (45, 67, 16), 2)
    with pytest.raises(LookupError, match=r"GatedLora for fp16 and d_in, d_out, rank = \(45, 67, 16\)"):
        plugins.launch(plugins.plugin("GatedLora"), types, shapes, of_batch((2, 3)))


def random(*shape: int, dtype: torch.dtype, by: float = 1.0) -> Tensor:
    return (torch.randn(shape) * by).to(dtype)


def run(
    plugins: Any, operator: str, sizes: tuple[int, int, int], inputs: list[Tensor], middle: tuple[int, ...]
) -> Tensor:
    """The kernel of the plugin, interpreted: its grid, and inputs, integers and output in its order."""
    dtype = inputs[0].dtype
    shapes = shapes_of(operator, sizes, len(middle))
    made = plugins.launch(plugins.plugin(operator), types_of(plugins.trt, operator, dtype), shapes, of_batch(middle))
    named = of_batch(middle)
    assert [tuple(t.shape) for t in inputs] == [tuple(named.get(size, size) for size in shape) for shape in shapes]
    constants = constants_of(
        OPERATORS[operator],
        ELEMENTS[dtype],
        sizes[2],
        sizes[:2],
        upcast=dtype == torch.bfloat16,  # type: ignore[arg-type]
    )
    output = torch.full((*middle, sizes[1]), float("nan"), dtype=dtype)
    given = [t.view(torch.int8) if t.dtype == torch.bool else t for t in inputs]
    FUNCTIONS[operator][made.grid](*given, *made.extras, output, **constants)
    return output


def assert_near(found: Tensor, meant: Tensor) -> None:
    worst = float((found.double() - meant).abs().max())
    assert worst <= BOUND[found.dtype] * max(1.0, float(meant.abs().max())), worst


def case(number: int, sizes: tuple[int, int, int], dtype: torch.dtype) -> tuple[Any, ...]:
    """Leading axes, base, x, A and B."""
    torch.manual_seed(number)
    d_in, d_out, rank = sizes
    middle = MIDDLES[number]
    a, b = random(rank, d_in, dtype=dtype, by=d_in**-0.5), random(d_out, rank, dtype=dtype, by=rank**-0.5)
    return middle, random(*middle, d_out, dtype=dtype), random(*middle, d_in, dtype=dtype), a, b


CASES = [(0, SIZES[0]), (1, SIZES[1]), (2, SIZES[2]), (3, SIZES[1])]


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize(("number", "sizes"), CASES)
@pytest.mark.parametrize("counts", [[0], [99], [0, 2, 1]], ids=["empty", "all", "ragged"])
def test_gated_lora(
    plugins: Any, dtype: torch.dtype, number: int, sizes: tuple[int, int, int], counts: list[int]
) -> None:
    middle, base, x, a, b = case(number, sizes, dtype)
    listed = torch.stack([torch.randperm(sizes[2]) for _ in range(middle[0])])
    kept = torch.tensor([min(counts[example % len(counts)], sizes[2]) for example in range(middle[0])])
    indices, scale = torch.where(torch.arange(sizes[2]) < kept[:, None], listed, -1), torch.tensor(-0.5, dtype=dtype)

    found = run(plugins, "GatedLora", sizes, [base, x, a, b, indices, scale], middle)

    assert_near(found, gated_lora_reference(*(t.double() for t in (base, x, a, b)), indices, scale.double()))
    shut = (indices < 0).all(1)
    assert bool(shut.any()) == (0 in counts)
    assert torch.equal(found[shut].view(torch.uint8), base[shut].view(torch.uint8))


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize(("number", "sizes"), CASES)
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1e4], ids=["all", "some", "none"])
def test_token_gated_lora(
    plugins: Any, dtype: torch.dtype, number: int, sizes: tuple[int, int, int], threshold: float
) -> None:
    middle, base, x, a, b = case(number, sizes, dtype)
    # Updates well below or well above the threshold, so that no rounding turns a decision.
    x *= torch.where(torch.rand(*middle, 1) < 0.5, 0.01, 8.0).to(dtype)
    limit, scale = torch.tensor(threshold, dtype=dtype), torch.tensor(1.5, dtype=dtype)
    gram = (b.double().t() @ b.double()).to(dtype)

    found = run(plugins, "TokenGatedLora", sizes, [base, x, a, b, gram, limit, scale], middle)

    meant = token_gated_lora_reference(*(t.double() for t in (base, x, a, b, limit, scale)))
    assert_near(found, meant)
    skipped = (meant == base.double()).all(-1)
    assert bool(skipped.all()) == (threshold > 1)
    assert torch.equal(found[skipped].view(torch.uint8), base[skipped].view(torch.uint8))


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize(("number", "sizes"), CASES)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_routed_rows(plugins: Any, dtype: torch.dtype, number: int, sizes: tuple[int, int, int], share: float) -> None:
    middle, _, x, _, _ = case(number, sizes, dtype)
    d_in, d_out, _ = sizes
    first, second = (random(d_out, d_in, dtype=dtype, by=d_in**-0.5) for _ in range(2))
    bias, choice = random(d_out, dtype=dtype), torch.rand(middle) < share
    order = choice.flatten().to(torch.int8).sort(stable=True).indices

    found = run(plugins, "RoutedRows", sizes, [x, first, second, bias, choice, order], middle)

    assert_near(found, routed_linear_reference(*(t.double() for t in (x, first, second, bias)), choice))
