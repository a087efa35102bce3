"""Energy of a workload, from the processor's own counters (RAPL) where the machine lets us read them.

Linux shows them under `/sys/class/powercap`; virtual machines, containers and unprivileged users usually see nothing.
Then the answer is None with the reason, never an estimate.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import InputError

POWERCAP = Path("/sys/class/powercap")
MICRO = 1e-6


@dataclass(frozen=True)
class Energy:
    """Energy of one call: joules of all processor packages together, or None and the reason.

    The counters count the whole package, other processes included: measure on an idle machine.
    """

    joules: float | None
    calls: int
    seconds: float
    reason: str

    def to_json(self) -> dict[str, object]:
        """The fields as plain values."""
        return asdict(self)


def energy_per_call(
    run: Callable[[], object],
    *,
    seconds: float = 0.5,
    counters: Path = POWERCAP,
    clock: Callable[[], float] = time.perf_counter,
) -> Energy:
    """Call `run` for about `seconds` and divide the energy used by the number of calls.

    The counters advance about once a millisecond, hence one long window and not one reading a call.

    Raises:
        InputError: `seconds` is not positive.
    """
    if not seconds > 0:
        raise InputError("An energy window needs a positive length.", given=f"seconds={seconds}", expected="above 0")
    packages, reason = _packages(counters)
    if not packages:
        return Energy(None, 0, 0.0, reason)
    before, start, calls = [_read(package, "energy_uj") for package in packages], clock(), 0
    while clock() - start < seconds:
        run()
        calls += 1
    elapsed = clock() - start
    used = (_used(package, first) for package, first in zip(packages, before, strict=True))
    return Energy(sum(used) * MICRO / calls, calls, elapsed, f"RAPL, {len(packages)} processor package(s)")


def _packages(counters: Path) -> tuple[list[Path], str]:
    """Readable counters of whole packages (`intel-rapl:0`, not the sub-domains `intel-rapl:0:1`)."""
    if not counters.is_dir():
        return [], f"no RAPL counters: {counters} does not exist on this machine"
    found = sorted(p for p in counters.glob("*-rapl:*") if p.name.count(":") == 1 and (p / "energy_uj").exists())
    if not found:
        return [], f"no RAPL counters: {counters} lists no processor package"
    try:
        for package in found:
            _read(package, "energy_uj")
    except PermissionError:
        return [], f"RAPL counters in {counters} may be read by the administrator only"
    return found, ""


def _read(package: Path, counter: str) -> int:
    return int((package / counter).read_text())


def _used(package: Path, before: int) -> int:
    """Microjoules since `before`; the counter starts over at its maximum."""
    difference = _read(package, "energy_uj") - before
    return difference if difference >= 0 else difference + _read(package, "max_energy_range_uj")
