"""From which rank on a token's decision pays for itself: half of the tokens updated, beside all of them.

    gatefx build-native
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/token_gate_ranks.py [SECONDS]

The chain of native_lora.py in ONNX Runtime, layer and adapter one native operator: `TokenGatedLinear` against
`GatedLinear` with every direction active, alternating in one process for SECONDS a shape, float32, one thread. Figures
are medians of ratios taken run by run, minus one; those in brackets are to the layers without an adapter.
"""

from __future__ import annotations

import statistics
import sys
import time

from native_lora import Problem, Run, onnx_run

from gatefx.runtime.profile import pinned_threads

RANKS = (2, 4, 8, 16, 32)
SHAPES = ((1, 128, 384), (8, 128, 384), (1, 512, 768))


def seconds_of(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compared(problem: Problem, seconds: float) -> tuple[float, float, float]:
    """Tokens over dense, dense over the layers, tokens over the layers."""
    layer = onnx_run(problem, "layer", native=False)
    dense, tokens = (onnx_run(problem, form, native=True) for form in ("all", "tokens"))
    for run in (layer, dense, tokens):
        run()
    taken = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or not taken:
        before, gated, after, alone = (seconds_of(run) for run in (dense, tokens, dense, layer))
        taken.append((2 * gated / (before + after), after / alone, gated / alone))
    return tuple(statistics.median(ratios) - 1 for ratios in zip(*taken, strict=True))


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10
    for rank in RANKS:
        for shape in SHAPES:
            with pinned_threads(1):
                gated, dense, tokens = compared(Problem.random(*shape, rank), seconds)
            print(f"r={rank:<2} {shape}: tokens over dense {gated:+.1%} (dense {dense:+.1%}, tokens {tokens:+.1%})")


if __name__ == "__main__":
    main()
