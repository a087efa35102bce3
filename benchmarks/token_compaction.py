"""Measure what dropping tokens saves in ONNX Runtime, beside what FLOPs alone predict.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/token_compaction.py

MiniLM-L6 without gates against MiniLM-L6 that keeps a share of its tokens after a layer, full-length inputs, one
thread, candidates alternating in one process, ratios taken round by round. Scores are random: time does not depend on
which tokens stay.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir
import onnxruntime
import torch
from torch import Tensor, fx, nn

from gatefx.models.configs.masklora import MaskLoRA
from gatefx.models.hard_token_gate import HardTokenGate
from gatefx.models.packaged import encoder
from gatefx.models.token_gate import SharePoint, TokenGate
from gatefx.passes.compact.tokens import CompactTokens
from gatefx.passes.flops import FlopModel, count_flops
from gatefx.passes.gate.token_gate import InsertTokenGates
from gatefx.passes.graph.capture import capture
from gatefx.passes.harden.freeze import FreezeRegularization
from gatefx.passes.harden.token_gate import SHARE, HardenTokenGates
from gatefx.passes.lower.onnx import lower_to_onnx
from gatefx.runtime.profile import compare, ratios

BATCH, CUTS, SHARES, LENGTHS = 4, (1, 2), (0.7, 0.5, 0.3), (128, 256, 512)


def gated(graph: fx.GraphModule, cut: int) -> fx.GraphModule:
    """The compacted graph with one cut."""
    options = MaskLoRA(floor=0.0)

    def gate(config: MaskLoRA, *, layer: int, width: int, kept: tuple[int, ...]) -> TokenGate:
        made = TokenGate(config, layer=layer, width=width, kept=kept, share=SharePoint(0.5, 0.5, 0.5), layers=1)
        nn.init.normal_(made.predictor.score.weight)
        return made

    masked = InsertTokenGates(options, (cut,), gate)(graph).graph_module
    masked = FreezeRegularization()(masked).graph_module
    masked = HardenTokenGates(0.5, lambda gate: HardTokenGate(gate, config=options))(masked).graph_module
    return CompactTokens()(masked).graph_module.eval()


def session(graph: fx.GraphModule, example: Mapping[str, Tensor], *, gated: bool) -> onnxruntime.InferenceSession:
    """One thread, every optimisation."""
    model = lower_to_onnx(graph, example, ["logits"], overridable=[SHARE] if gated else [])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    serialized = onnx_ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])


def predicted(whole: FlopModel, fewer: FlopModel, tokens: int, share: float) -> float:
    """The speed-up that FLOPs alone predict."""
    sizes = {"batch": BATCH, "sequence": tokens}
    return whole.at(sizes) / fewer.at({**sizes, "kept_1": math.ceil(share * tokens)})


def runner(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray]) -> Callable[[], object]:
    return lambda: session.run(["logits"], feeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model, _ = encoder("minilm-l6", num_labels=2)
    example = {"input_ids": torch.randint(999, 20000, (2, 16)), "attention_mask": torch.ones(2, 16, dtype=torch.int64)}
    graph = capture(model, example, share_frozen=True).graph_module.eval()
    plain = FreezeRegularization()(graph).graph_module.eval()
    compacted = {cut: gated(graph, cut) for cut in CUTS}
    sessions = {cut: session(item, example, gated=True) for cut, item in compacted.items()}
    whole = session(plain, example, gated=False)
    counts = {cut: count_flops(item) for cut, item in compacted.items()}
    print("| T | cut | share kept | ms | measured speed-up | predicted by FLOPs | measured / predicted |")
    print("|---|---|---|---|---|---|---|")
    for tokens in arguments.lengths:
        ids = np.random.default_rng(0).integers(999, 20000, (BATCH, tokens))
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        shares = {f"{cut}/{share}": (cut, share) for cut in CUTS for share in SHARES}
        candidates = {"plain": runner(whole, feeds)}
        for name, (cut, share) in shares.items():
            candidates[name] = runner(sessions[cut], {**feeds, SHARE: np.array(share, np.float32)})
        timings = compare(candidates, warmup=2, rounds=arguments.rounds)
        below = ratios(timings, "plain")
        print(f"| {tokens} | none | 1 | {1e3 * np.median(timings['plain'].runs):.1f} | | | |", flush=True)
        for name, (cut, share) in shares.items():
            gain, promise = 1 / below[name], predicted(count_flops(plain), counts[cut], tokens, share)
            milliseconds = 1e3 * np.median(timings[name].runs)
            row = f"| {tokens} | {cut} | {share} | {milliseconds:.1f} | {gain:.2f}"
            print(f"{row} | {promise:.2f} | {gain / promise:.2f} |", flush=True)


if __name__ == "__main__":
    main()
