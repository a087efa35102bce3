"""What choosing and moving tokens takes of a whole encoder in ONNX Runtime: no kernel of ours could save more.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/token_operators.py

The compacted MiniLM-L6 of token_compaction.py, half of the tokens kept after one layer, under ONNX Runtime's profiler:
time in TopK (choosing), GatherND, GatherElements and ScatterElements (moving) over the time in all nodes.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime
import torch
from token_compaction import gated

from gatefx.models.packaged import encoder
from gatefx.passes.graph.capture import capture
from gatefx.passes.harden.token_gate import SHARE
from gatefx.passes.lower.onnx import lower_to_onnx

SHAPES = ((1, 128), (8, 128), (1, 512), (8, 512))
CUT, KEPT, RUNS = 1, 0.5, 12
OPERATORS = ("TopK", "GatherND", "GatherElements", "ScatterElements")


def profiled(model: bytes, feeds: dict[str, np.ndarray], folder: Path) -> Counter[str]:
    """Operator → microseconds of its nodes over RUNS runs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    for _ in range(RUNS):
        session.run(["logits"], feeds)
    taken: Counter[str] = Counter()
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            taken[event["args"]["op_name"]] += event["dur"]
    return taken


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, _ = encoder("minilm-l6", num_labels=2)
    example = {"input_ids": torch.randint(999, 20000, (2, 16)), "attention_mask": torch.ones(2, 16, dtype=torch.int64)}
    compacted = gated(capture(model, example, share_frozen=True).graph_module.eval(), CUT)
    lowered = lower_to_onnx(compacted, example, ["logits"], overridable=[SHARE])
    serialized = onnx_ir.to_proto(lowered).SerializeToString()
    for shape in SHAPES:
        ids = np.random.default_rng(0).integers(999, 20000, shape)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), SHARE: np.array(KEPT, np.float32)}
        with tempfile.TemporaryDirectory() as folder:
            taken = profiled(serialized, feeds, Path(folder))
        whole = sum(taken.values())
        shares = ", ".join(f"{name} {taken[name] / whole:.2%}" for name in OPERATORS if taken[name])
        together = sum(taken[name] for name in OPERATORS) / whole
        print(f"{shape}: {whole / RUNS / 1e3:.1f} ms; {together:.2%} ({shares})", flush=True)


if __name__ == "__main__":
    main()
