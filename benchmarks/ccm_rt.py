"""CCM-LoRA at budget 6 of r=16 against LoRA r=16, on review sentences (`rt`), several seeds.

    python benchmarks/ccm_rt.py train OUT [--seeds 0 1 2] [--model minilm-l6] [--sentences 6000] [--epochs 2]
    python benchmarks/ccm_rt.py score OUT
    python benchmarks/ccm_rt.py distill OUT [--seeds 0] [--steps 300]

`train` trains both with one recipe (AdamW 1e-3 linear, batch 32 by length, α=32, all linears) and keeps what it
trained under OUT; LoRA is PEFT's own. `score` deploys, exports, and prints accuracy on all test sentences. `distill`
gates the trained PEFT LoRA without training it: routers alone, on 1,024 unlabelled training sentences.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model

import gatefx
from gatefx.models.packaged import batches, encoder, sentences
from gatefx.passes.gated import GatedModel


def sample(seed: int, count: int) -> tuple[list[str], list[int]]:
    data = sentences("rt")
    order = list(range(len(data.train_texts)))
    random.Random(seed).shuffle(order)
    return [data.train_texts[i] for i in order[:count]], [data.train_labels[i] for i in order[:count]]


def train(model: torch.nn.Module, tokenizer: object, seed: int, args: argparse.Namespace) -> dict[str, object]:
    texts, labels = sample(seed, args.sentences)
    epochs = [batches(tokenizer, texts, labels, batch_size=32, seed=10 * seed + e) for e in range(args.epochs)]
    total = sum(map(len, epochs))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3)
    rate = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total)
    schedule = model.schedule(total) if isinstance(model, GatedModel) else None
    model.train()
    started = time.perf_counter()
    for batch in (batch for epoch in epochs for batch in epoch):
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        rate.step()
        if schedule is not None:
            schedule.step()
    row = {"steps": total, "train_seconds": round(time.perf_counter() - started, 1)}
    if schedule is not None:
        row["collapse_rate"] = schedule.collapse_rate()
    return row


@torch.no_grad()
def accuracy(answer: object, tokenizer: object) -> float:
    data = sentences("rt")
    right = total = 0
    for batch in batches(tokenizer, data.test_texts, data.test_labels, batch_size=64):
        labels = batch.pop("labels")
        logits = torch.as_tensor(answer(**batch)["logits"])
        right += int((logits.argmax(-1) == labels).sum())
        total += len(labels)
    return right / total


def run_training(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for kind in ("lora", "ccm"):
            if (args.out / f"{kind}-{seed}").exists():
                continue
            torch.manual_seed(seed)
            model, tokenizer = encoder(args.model, num_labels=2, seed=seed)
            if kind == "lora":
                config = LoraConfig(
                    r=16, lora_alpha=32, lora_dropout=0.1, task_type="SEQ_CLS", target_modules="all-linear"
                )
                trained = get_peft_model(model, config)
            else:
                texts, _ = sample(seed, 2)
                example = batches(tokenizer, texts, batch_size=2)[0]
                method = gatefx.CCM(rank=16, alpha=32, lora_dropout=0.1)
                trained = gatefx.prepare(model, method, budget=6, example_inputs=example)
            row = {"model": args.model, "seed": seed, "kind": kind, **train(trained, tokenizer, seed, args)}
            trained.save_pretrained(args.out / f"{kind}-{seed}")
            with (args.out / "training.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(row, flush=True)


def run_scoring(args: argparse.Namespace) -> None:
    print("| seed | LoRA r=16 | ccm 6/16 | exported ccm | effective rank mean, P50, P90 (test) | collapse | form |")
    print("|---|---|---|---|---|---|---|")
    log = [json.loads(line) for line in (args.out / "training.jsonl").read_text().splitlines()]
    for row in (row for row in log if row["kind"] == "ccm"):
        seed = row["seed"]
        model, tokenizer = encoder(row["model"], num_labels=2, seed=seed)
        lora = accuracy(PeftModel.from_pretrained(model, str(args.out / f"lora-{seed}")).eval(), tokenizer)
        texts, _ = sample(seed, 1024)
        calibration = batches(tokenizer, texts, batch_size=32)
        base, _ = encoder(row["model"], num_labels=2, seed=seed)
        gated = gatefx.from_pretrained(base, args.out / f"ccm-{seed}", example_inputs=calibration[0])
        fast = gatefx.optimize(gated, data=calibration)
        test = batches(tokenizer, sentences("rt").test_texts, batch_size=64)
        ranks = torch.cat([fast.effective_ranks(batch) for batch in test]).double()
        folder = gatefx.export(fast, args.out / f"onnx-{seed}", overwrite=True)
        session = gatefx.load(folder)
        p50, p90 = ranks.flatten().quantile(0.5), ranks.flatten().quantile(0.9)
        forms = ", ".join(sorted({site.form for site in fast.sites}))
        print(
            f"| {seed} | {lora:.4f} | {accuracy(fast, tokenizer):.4f} | {accuracy(session, tokenizer):.4f} | "
            f"{ranks.mean():.2f}, {p50:g}, {p90:g} | {row['collapse_rate']:.3f} | {forms} |",
            flush=True,
        )


def run_distilling(args: argparse.Namespace) -> None:
    print("| seed | LoRA r=16 | the same adapter, routers distilled | seconds | notes |")
    print("|---|---|---|---|---|")
    for seed in args.seeds:
        model, tokenizer = encoder(args.model, num_labels=2, seed=seed)
        adapted = PeftModel.from_pretrained(model, str(args.out / f"lora-{seed}")).eval()
        texts, _ = sample(seed, 1024)
        started = time.perf_counter()
        data = batches(tokenizer, texts, batch_size=32, seed=seed)
        fast = gatefx.optimize(adapted, budget=6, data=data, distill_steps=args.steps)
        seconds = time.perf_counter() - started
        scores = f"{accuracy(adapted, tokenizer):.4f} | {accuracy(fast, tokenizer):.4f}"
        print(f"| {seed} | {scores} | {seconds:.0f} | {'; '.join(fast.report.notes)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=["train", "score", "distill"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--sentences", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    torch.set_num_threads(1)
    {"train": run_training, "score": run_scoring, "distill": run_distilling}[args.step](args)


if __name__ == "__main__":
    main()
