"""What a deployed adapter costs a decoder's layers in ONNX Runtime, at prefill and at a generated token.

    gatefx build-native
    python benchmarks/decoder_layers.py export OUT
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/decoder_layers.py time OUT [--rounds 20]

Two layers of SmolLM2-135M's shapes (width 576, 9 heads over 3, inner width 1,536) with random weights and a vocabulary
of 512 words, so that nothing but layers is timed; r=16 on all linear layers, B filled like a trained adapter's, gates
calibrated to half after a few steps (ccm: 6 of 16 ranks). Float32, one thread, batch 1. All artifacts run in one
process, alternating; figures are medians of the ratios to the merged model taken round by round.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from decoder_methods import ALPHA, RANK, calls
from end_to_end import fill
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import gatefx
from gatefx.methods import CCM, TSPEFT, GateRA, WeightLoRA
from gatefx.passes.deployed import DeployedModel
from gatefx.runtime.profile import compare, pinned_threads, ratios
from gatefx.runtime.sessions.decoder import OnnxDecoder

LAYERS, VOCABULARY, STEPS = 2, 512, 8
METHODS: dict[str, tuple[Any, Any]] = {
    "ccm": (CCM(rank=RANK, alpha=ALPHA, prefix=32), 6),
    "tspeft": (TSPEFT(rank=RANK, alpha=ALPHA), 0.5),
    "gatera": (GateRA(rank=RANK, alpha=ALPHA, update="lora"), 0.5),
    "weightlora": (WeightLoRA(rank=RANK, alpha=ALPHA), 7),
}


def decoder() -> LlamaForCausalLM:
    """The layers, seeded."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=576, intermediate_size=1536, num_hidden_layers=LAYERS,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192,
    )  # fmt: skip
    return LlamaForCausalLM(shape).eval()


def data() -> list[dict[str, Tensor]]:
    """Random texts, four batches of two."""
    ids = torch.randint(3, VOCABULARY, (4, 2, 64), generator=torch.Generator().manual_seed(2))
    return [{"input_ids": batch, "attention_mask": torch.ones_like(batch)} for batch in ids]


def deployed(name: str) -> DeployedModel:
    """One candidate: "merged", "LoRA", or a method of METHODS."""
    batches = data()
    if name not in METHODS:
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, task_type="CAUSAL_LM", target_modules="all-linear")
        adapted = get_peft_model(decoder(), config).eval()
        fill(adapted)
        return gatefx.optimize(adapted, "ccm", RANK, data=batches, fold=name == "merged", progress=False)
    gated = gatefx.prepare(decoder(), *METHODS[name], example_inputs=batches[0])
    fill(gated)
    optimiser = torch.optim.AdamW([p for p in gated.parameters() if p.requires_grad], lr=1e-3)
    schedule = gated.schedule(STEPS, optimiser)
    gated.train()
    for step in range(STEPS):
        batch = batches[step % len(batches)]
        gated(**batch, labels=batch["input_ids"]).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    fold = False if name == "weightlora" else None
    return gatefx.optimize(gated.eval(), data=batches, workload=(1, 1), fold=fold, progress=False)


def measure(out: Path, rounds: int, native: bool | None) -> None:
    """Prefill and decode of every artifact, over the merged model's."""
    print(f"onnxruntime {onnxruntime.__version__}, torch {torch.__version__}")
    opened = {
        folder.name: gatefx.load(folder, threads=1, native=native)
        for folder in sorted(out.iterdir())
        if folder.is_dir()
    }
    sessions = {name: session for name, session in opened.items() if isinstance(session, OnnxDecoder)}
    for length in (128, 512):
        for phase, count in (("prefill", rounds), ("decode", 10 * rounds)):
            with pinned_threads(1):
                taken = compare(calls(sessions, length, phase), warmup=3, rounds=count)
            base = taken["merged"].median_s * 1e3
            cells = [f"{name} {value - 1:+.1%}" for name, value in ratios(taken, "merged").items() if name != "merged"]
            print(f"{phase} {length}: merged {base / LAYERS:.3f} ms a layer | {' | '.join(cells)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=["export", "time"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", default=["merged", "LoRA", *METHODS])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--portable", dest="native", action="store_false", default=None, help="without native kernels")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.stage == "time":
        measure(args.out, args.rounds, args.native)
        return
    for name in args.only:
        fast = deployed(name)
        gatefx.export(fast, args.out / name, generate=True, overwrite=True)
        print(f"{name}: {', '.join(sorted({site.form for site in fast.sites})) or 'no adapter left'}", flush=True)


if __name__ == "__main__":
    main()
