"""What a deployed adapter costs a whole encoder in ONNX Runtime or torch: methods and LoRA, beside merged.

    gatefx build-native
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/end_to_end.py [--engine torch] [--rounds 30]

MiniLM-L6 with r=16 on all linear layers, float32, one thread, native kernels on, random B of a trained adapter's size,
30 steps of training so that gates are what they are in use. In ONNX Runtime a candidate is an exported folder that
`gatefx.load` opened; in torch it is the deployed model, packed by `for_cpu` where it decides. All run in one process,
alternating. Figures are medians of the ratios to the merged model taken round by round. ccm has 6 of 16 ranks, tspeft
and gatera (hard) half of the tokens, on average over the calibration data.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnxruntime
import torch
from peft import LoraConfig, get_peft_model

import gatefx
from gatefx.methods import CCM, TSPEFT, GateRA
from gatefx.models.packaged import batches, encoder, sentences
from gatefx.passes.deployed import DeployedModel
from gatefx.passes.gated import GatedModel
from gatefx.runtime.profile import compare, pinned_threads, ratios

SHAPES = ((1, 128), (8, 128), (1, 512), (8, 512))
RANK, STEPS, EXAMPLES = 16, 30, 256
METHODS = {
    "ccm 6/16": (CCM(rank=RANK, alpha=32), 6),
    "tspeft 50 %": (TSPEFT(rank=RANK, alpha=32), 0.5),
    "gatera hard 50 %": (GateRA(rank=RANK, alpha=32), 0.5),
}


def fill(model: torch.nn.Module) -> None:
    """Give every B numbers, so that updates matter to the gates."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            with torch.no_grad():
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))


def trained(gated: GatedModel, data: list[dict[str, torch.Tensor]]) -> GatedModel:
    """A few steps, so that routers and thresholds have seen data."""
    fill(gated)
    optimiser = torch.optim.AdamW([p for p in gated.parameters() if p.requires_grad], lr=1e-3)
    schedule = gated.schedule(STEPS, optimiser)
    gated.train()
    for step in range(STEPS):
        gated(**data[step % len(data)]).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    return gated.eval()


def deployed(name: str, args: argparse.Namespace, workload: tuple[int, int]) -> DeployedModel:
    """One candidate: "merged", "LoRA", or a method of METHODS."""
    model, tokenizer = encoder(args.model, num_labels=2, seed=0)
    source = sentences("rt")
    data = batches(tokenizer, source.train_texts[:EXAMPLES], source.train_labels[:EXAMPLES], batch_size=32)
    if name in METHODS:
        config, budget = METHODS[name]
        example = {key: value for key, value in data[0].items() if key != "labels"}
        gated = trained(gatefx.prepare(model, config, budget, example_inputs=example), data)
        return gatefx.optimize(gated, data=data, workload=workload, forms=args.forms, progress=False)
    config = LoraConfig(r=RANK, lora_alpha=32, task_type="SEQ_CLS", target_modules="all-linear")
    adapted = get_peft_model(model, config).eval()
    fill(adapted)
    return gatefx.optimize(adapted, "ccm", RANK, data=data, fold=name == "merged", progress=False)


Candidate = Callable[[dict[str, torch.Tensor]], object]


def session_of(fast: DeployedModel, folder: Path, args: argparse.Namespace) -> Candidate:
    """The candidate in ONNX Runtime."""
    session = gatefx.load(gatefx.export(fast, folder), threads=1, native=args.native)
    return lambda given: session.run({spec.name: given[spec.name].numpy() for spec in session.inputs})


def program_of(fast: DeployedModel, name: str, args: argparse.Namespace) -> Candidate:
    """The candidate in torch."""
    program = fast.for_cpu() if name in METHODS and args.native else fast
    names = program.signature.input_names

    @torch.inference_mode()
    def run(given: dict[str, torch.Tensor]) -> object:
        return program(**{key: given[key] for key in names})

    return run


def inputs(shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    """One batch without padding."""
    ids = torch.randint(1000, 20000, shape, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--engine", choices=["onnxruntime", "torch"], default="onnxruntime")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--forms", choices=["gathered", "masked"])
    parser.add_argument("--portable", dest="native", action="store_false", help="without native kernels")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"onnxruntime {onnxruntime.__version__}, torch {torch.__version__}, native={args.native}")
    with tempfile.TemporaryDirectory() as scratch:
        candidates = {}
        for name in ("merged", "LoRA", *METHODS):
            fast = deployed(name, args, SHAPES[0])
            folder = Path(scratch) / name.replace("/", "-")
            in_torch = args.engine == "torch"
            candidates[name] = program_of(fast, name, args) if in_torch else session_of(fast, folder, args)
            print(f"{name}: {', '.join(sorted({site.form for site in fast.sites})) or 'no adapter left'}", flush=True)
        for shape in SHAPES:
            runs = {name: partial(run, inputs(shape)) for name, run in candidates.items()}
            with pinned_threads(1):
                taken = compare(runs, warmup=3, rounds=args.rounds)
            found = ratios(taken, "merged")
            cells = [f"{name} {value - 1:+.1%}" for name, value in found.items() if name != "merged"]
            print(shape, f"merged {taken['merged'].median_s * 1e3:.2f} ms", *cells, sep="  ", flush=True)


if __name__ == "__main__":
    main()
