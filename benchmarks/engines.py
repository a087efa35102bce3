"""The exported encoder without gates beside what else runs it: torch, torch.compile, OpenVINO, ONNX Runtime's default.

    pip install 'gatefx[demo,openvino]'
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/engines.py [--shapes 1x32] [--folder DIR]

MiniLM-L6 with an adapter (r=16 on all linear layers, random B) merged into its weights, float32, one thread. "gatefx"
is the folder that `gatefx.export` writes, opened by `gatefx.load`; "OpenVINO" reads the same file; "ORT default" is
`torch.onnx.export` as it comes, opened by ONNX Runtime as it comes; "inductor" compiles for each shape by itself.
All run in one process, one after the other in every round, in an order that changes. Before timing, every engine must
answer like torch eager, with ragged padding.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import torch
from peft import LoraConfig, get_peft_model

import gatefx
from gatefx.models.packaged import batches, encoder, sentences
from gatefx.runtime.measure import machine
from gatefx.runtime.profile import Timing, compare, pinned_threads, ratios

SHAPES = "1x32,1x128,8x128,1x512,4x512"
RANK = 16
OURS = "gatefx"
Run = Callable[[Mapping[str, torch.Tensor]], np.ndarray]


def adapted(name: str) -> tuple[torch.nn.Module, list[dict[str, torch.Tensor]]]:
    """The encoder with an adapter of a trained one's size, and some data; the same numbers on every call."""
    model, tokenizer = encoder(name, num_labels=2, seed=0)
    source = sentences("rt")
    data = batches(tokenizer, source.train_texts[:64], source.train_labels[:64], batch_size=32)
    config = LoraConfig(r=RANK, lora_alpha=32, task_type="SEQ_CLS", target_modules="all-linear")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        peft_model = get_peft_model(model, config).eval()
        for key, parameter in peft_model.named_parameters():
            if "lora_B" in key:
                parameter.copy_(0.02 * torch.randn(parameter.shape))
    return peft_model, data


def ours(name: str, folder: Path) -> Path:
    """The artifact: the adapter folded, no gate left. Not written again where it is."""
    if (folder / OURS).exists():
        return folder / OURS
    model, data = adapted(name)
    fast = gatefx.optimize(model, "ccm", RANK, data=data, fold=True, progress=False)
    return gatefx.export(fast, folder / OURS)


def default_export(model: torch.nn.Module, folder: Path) -> Path:
    """`torch.onnx.export` with its own choice of opset and optimisations; axes dynamic. Not written again."""
    path = folder / "default.onnx"
    if path.exists():
        return path
    example = given((2, 16), padding=True)
    shared = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    torch.onnx.export(
        model, (), path, kwargs=example, dynamic_shapes=dict.fromkeys(example, shared), dynamo=True, verbose=False
    )
    return path


def given(shape: tuple[int, int], *, padding: bool) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask, token_type_ids: (B, T), int64; with padding, row b ends b tokens early."""
    ids = torch.randint(1000, 20000, shape, generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padding:
        mask = (torch.arange(shape[1]) < shape[1] - 1 - torch.arange(shape[0])[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def engines(name: str, folder: Path) -> dict[str, Run]:
    """Every engine as a function of one batch that returns logits (B, 2)."""
    session = gatefx.load(ours(name, folder), threads=1)
    model = adapted(name)[0].merge_and_unload().eval()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    default = onnxruntime.InferenceSession(default_export(model, folder), options, providers=["CPUExecutionProvider"])
    settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    other = openvino.Core().compile_model(str(folder / OURS / "model.onnx"), "CPU", settings)
    # One compiled function a shape, so that no shape pays for the others' generality.
    compiled = torch.compile(model, dynamic=False)
    torch._dynamo.config.cache_size_limit = 64
    return {
        OURS: lambda batch: session.run({spec.name: batch[spec.name].numpy() for spec in session.inputs})["logits"],
        "torch eager": lambda batch: model(**batch).logits.numpy(),
        "inductor": lambda batch: compiled(**batch).logits.numpy(),
        "OpenVINO": lambda batch: other({key: value.numpy() for key, value in batch.items()})["logits"],
        "ORT default": lambda batch: default.run(None, {key: value.numpy() for key, value in batch.items()})[0],
    }


def check(runs: Mapping[str, Run]) -> str:
    """The largest difference from torch eager, of each engine."""
    batch = given((3, 32), padding=True)
    wanted = runs["torch eager"](batch)
    gaps = {name: float(np.abs(run(batch) - wanted).max()) for name, run in runs.items()}
    if max(gaps.values()) > 1e-4:
        raise SystemExit(f"the engines do not compute the same: {gaps}")
    return f"logits differ by at most {max(gaps.values()):.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--folder", type=Path, help="keep the exported files here, for the next run")
    args = parser.parse_args()
    versions = f"onnxruntime {onnxruntime.__version__}, torch {torch.__version__}, openvino {openvino.__version__}"
    print(machine(), versions, sep="; ")
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode(), pinned_threads(1):
        folder = args.folder or Path(scratch)
        folder.mkdir(exist_ok=True)
        runs = engines(args.model, folder)
        print(check(runs), flush=True)
        for shape in args.shapes.split(","):
            rows, tokens = map(int, shape.split("x"))
            report(shape, compare(calls(runs, given((rows, tokens), padding=False)), warmup=3, rounds=args.rounds))


def calls(runs: Mapping[str, Run], batch: Mapping[str, torch.Tensor]) -> dict[str, Callable[[], object]]:
    return {name: lambda run=run: run(batch) for name, run in runs.items()}


def report(shape: str, taken: Mapping[str, Timing]) -> None:
    """One line: each engine's median, and ours over the fastest of the others."""
    fastest = min((name for name in taken if name != OURS), key=lambda name: taken[name].median_s)
    cells = [f"{name} {timing.median_s * 1e3:.2f} ms" for name, timing in taken.items()]
    print(shape, *cells, f"over {fastest}: {ratios(taken, fastest)[OURS] - 1:+.1%}", sep="  ", flush=True)


if __name__ == "__main__":
    main()
