"""Opens a native library and asks it what it is; every no has its reason."""

from __future__ import annotations

import ctypes
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from .places import FILES, SWITCH, Runtime, library_folder, switched_off

ABI_VERSION = 4
"""Of the entry points that Python calls, as `CMakeLists.txt` states it for the C++ side."""

BUILD = "gatefx build-native"
ISA = "GATEFX_ISA"
"""Environment variable: the instruction set to use, instead of the widest."""


@dataclass(frozen=True)
class Replaced:
    """How many nodes of a session's model, or groups of them, the library runs by one operator each."""

    attentions: int = 0
    gates: int = 0
    activations: int = 0
    groups: int = 0


@dataclass(frozen=True)
class NativeStatus:
    """Whether native kernels run, and why not.

    Attributes:
        active: whether they do.
        reason: why not, with what would change it; empty where they do.
        library: the file, where there is one.
        isa: instruction set in use; isas: those this machine could use, widest first.
        replaced: what a session's model was given.
    """

    active: bool
    reason: str = ""
    library: Path | None = None
    isa: str = ""
    isas: tuple[str, ...] = ()
    replaced: Replaced = Replaced()

    def __str__(self) -> str:
        if not self.active:
            return f"no native kernels: {self.reason}"
        counts = (f"{count} {name}" for name, count in asdict(self.replaced).items() if count)
        return f"native kernels ({', '.join([self.isa, *counts])})"


def native_status(runtime: Runtime) -> NativeStatus:
    """What the library for `runtime` is, without handing it to the runtime.

    The library for torch is linked against torch, which must have been imported.
    """
    if switched_off():
        return NativeStatus(False, f"{SWITCH}=0 in the environment")
    path = library_folder() / FILES[runtime]
    if not path.is_file():
        return NativeStatus(False, f"{path} is not there; run `{BUILD}`")
    try:
        library = NativeLibrary(path)
    except OSError as error:
        return NativeStatus(False, f"it does not load: {error}", path)
    except AttributeError as error:
        return NativeStatus(False, f"{path} is no library of gatefx: {error}; run `{BUILD}`", path)
    if library.abi_version != ABI_VERSION:
        found = f"its interface has version {library.abi_version}, this gatefx needs {ABI_VERSION}; run `{BUILD}`"
        return NativeStatus(False, found, path)
    asked = os.environ.get(ISA)
    if asked and asked not in library.isas:
        found = f"{ISA}={asked}: this machine and build have {', '.join(library.isas)}"
        return NativeStatus(False, found, path, isas=library.isas)
    return NativeStatus(True, "", path, library.isa, library.isas)


class NativeLibrary:
    """A loaded library.

    Raises:
        OSError: the file is no library, or needs one that is not there.
        AttributeError: it lacks our entry points.
    """

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.gatefx_abi_version.restype = ctypes.c_int
        self._library.gatefx_isa.restype = ctypes.c_char_p
        self._library.gatefx_isas.restype = ctypes.POINTER(ctypes.c_char_p)
        self._library.gatefx_use_isa.argtypes = [ctypes.c_char_p]

    @property
    def abi_version(self) -> int:
        """Version of the entry points."""
        return int(self._library.gatefx_abi_version())

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return bytes(self._library.gatefx_isa()).decode()

    @property
    def isas(self) -> tuple[str, ...]:
        """The instruction sets that this machine and build have, widest first."""
        found: list[str] = []
        names = self._library.gatefx_isas()
        while names[len(found)]:
            found.append(names[len(found)].decode())
        return tuple(found)

    def use_isa(self, name: str) -> bool:
        """Use another instruction set in this process; False where it is not there."""
        return bool(self._library.gatefx_use_isa(name.encode()))

    def serve_torch(self) -> None:
        """Make the library for torch the CPU kernels of the operators `gatefx::*`, for the life of the process."""
        self._library.gatefx_serve_torch()
