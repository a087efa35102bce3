"""The table of a folder's kernels: one line a kernel, which Python here and C++ in `../plugin_source/` both read.

operator   element  d_in  d_out  rank  nodes  threads  shared  rows  columns  entry              file
GatedLora  fp16     768   768    8     12     128      8192    32    64       gated_lora_kernel  gated_lora_fp16_….ptx
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

TABLE_FILE = "kernels.tsv"


@dataclass(frozen=True)
class Kernel:
    """One operator compiled for one type and one size of layer.

    Args:
        operator: name of the ONNX node and of the plugin; element: type of states and weights, "fp32", "fp16", "bf16".
        d_in, d_out, rank: sizes of the layer; the rank is 0 where the operator has none.
        nodes: how many of the model's nodes run it; each of them must become a plugin.
        threads: of one block; shared: bytes of its shared memory.
        rows, columns: tokens and output features that one block answers.
        entry: name of the function in the PTX text of `file`.
    """

    operator: str
    element: str
    d_in: int
    d_out: int
    rank: int
    nodes: int
    threads: int
    shared: int
    rows: int
    columns: int
    entry: str
    file: str


@dataclass(frozen=True)
class Kernels:
    """The kernels that lie in a folder."""

    folder: Path
    table: tuple[Kernel, ...]

    @classmethod
    def read(cls, folder: Path) -> Kernels:
        """The kernels of `folder`.

        Raises:
            OSError: there is no table; ValueError: it is not one that gatefx wrote.
        """
        head, *lines = (folder / TABLE_FILE).read_text(encoding="utf-8").splitlines()
        if head.split("\t") != [field.name for field in fields(Kernel)]:
            raise ValueError(f"{folder / TABLE_FILE} is no table of kernels: it begins with {head!r}")
        return cls(folder, tuple(_parsed(line) for line in lines))

    def find(self, operator: str, element: str, sizes: tuple[int, int, int]) -> Kernel:
        """The kernel for `sizes` (d_in, d_out, rank).

        Raises:
            LookupError: the folder was exported without it.
        """
        for kernel in self.table:
            if (kernel.operator, kernel.element, (kernel.d_in, kernel.d_out, kernel.rank)) == (
                operator,
                element,
                sizes,
            ):
                return kernel
        raise LookupError(
            f"{self.folder} has no kernel of {operator} for {element} and d_in, d_out, rank = {sizes}; export the "
            "model with plugins=True again"
        )

    def ptx(self, kernel: Kernel) -> str:
        """The text of `kernel`, which is one of the table."""
        return (self.folder / kernel.file).read_text(encoding="utf-8")


def written_table(table: Iterable[Kernel]) -> str:
    """The text of `kernels.tsv`."""
    rows = [[field.name for field in fields(Kernel)], *(map(str, astuple(kernel)) for kernel in table)]
    return "".join("\t".join(row) + "\n" for row in rows)


def _parsed(line: str) -> Kernel:
    operator, element, *numbers, entry, file = line.split("\t")
    d_in, d_out, rank, nodes, threads, shared, rows, columns = map(int, numbers)
    return Kernel(operator, element, d_in, d_out, rank, nodes, threads, shared, rows, columns, entry, file)
