"""From which rank on a token's decision pays for itself: half of the tokens updated, beside all of them.

    gatefx build-native
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/token_gate_ranks.py

The chain of native_lora.py in ONNX Runtime, layer and adapter one native operator: `TokenGatedLinear` against
`GatedLinear` with every direction active, alternating in one process, float32, one thread. Figures are medians of the
ratios taken round by round, minus one; those in brackets are to the layers without an adapter.
"""

from __future__ import annotations

from native_lora import Problem, onnx_run

from gatefx.runtime.profile import compare, pinned_threads, ratios

RANKS = (2, 4, 8, 16, 32)
ROUNDS = {(1, 128, 384): 1200, (8, 128, 384): 150, (1, 512, 768): 60}
"""(B, T, d) → rounds: about as long for every shape."""


def main() -> None:
    for rank in RANKS:
        for shape, rounds in ROUNDS.items():
            problem = Problem.random(*shape, rank)
            dense, tokens = (onnx_run(problem, form, native=True) for form in ("all", "tokens"))
            runs = {"layers": onnx_run(problem, "layer", native=False), "dense": dense, "tokens": tokens}
            with pinned_threads(1):
                taken = compare(runs, warmup=3, rounds=rounds)
            over, alone = ratios(taken, "dense"), ratios(taken, "layers")
            print(
                f"r={rank:<2} {shape}: tokens over dense {over['tokens'] - 1:+.1%} "
                f"(dense {alone['dense'] - 1:+.1%}, tokens {alone['tokens'] - 1:+.1%})",
                flush=True,
            )


if __name__ == "__main__":
    main()
