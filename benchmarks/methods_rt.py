"""Every method at its paper's budget against LoRA r=16, on review sentences (`rt`), several seeds.

    python benchmarks/methods_rt.py train OUT [--methods lora masklora …] [--seeds 0 1 2] [--model minilm-l6]
    python benchmarks/methods_rt.py score OUT
    python benchmarks/methods_rt.py table OUT

`train` trains each with one recipe (AdamW 1e-3 linear, batch 32 by length, α=32, all linears, LoRA dropout 0.1,
gradient clip 1) and keeps what it trained under OUT; LoRA is PEFT's own. `score` deploys with 1,024 unlabelled
training sentences and prints accuracy on all test sentences, with the budget that the test sentences really got;
`table` prints what was scored as Markdown.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model

import gatefx
from gatefx.models.configs.catalogue import METHODS
from gatefx.models.packaged import batches, encoder, sentences
from gatefx.passes.deployed import DeployedModel
from gatefx.passes.faithfulness import faithfulness
from gatefx.passes.gated import GatedModel
from gatefx.passes.harden.token_calibration import hard_gates
from gatefx.tools.measured_gates import measure_gates

#: Beside the methods with their default options.
VARIANTS = {"gatera-lora": replace(METHODS["gatera"], update="lora")}
#: Method → the budgets it is deployed at; it is trained at the first. None is what training arrives at.
BUDGETS: dict[str, tuple[float | None, ...]] = {
    "ccm": (6,),
    "masklora": (0.5, 0.7, 0.3),
    "tspeft": (0.5,),
    "gatera": (None, 0.5),
    "gatera-lora": (None, 0.5),
    "weightlora": (None,),
    "weightlora+": (None,),
}
CALIBRATION = 1024


def sample(seed: int, count: int) -> tuple[list[str], list[int]]:
    """`count` training sentences, drawn without replacement."""
    data = sentences("rt")
    order = list(range(len(data.train_texts)))
    random.Random(seed).shuffle(order)
    return [data.train_texts[i] for i in order[:count]], [data.train_labels[i] for i in order[:count]]


def untrained(kind: str, seed: int, args: argparse.Namespace) -> tuple[torch.nn.Module, object]:
    """A fresh encoder with LoRA or with a method's gates."""
    torch.manual_seed(seed)
    model, tokenizer = encoder(args.model, num_labels=2, seed=seed)
    if kind == "lora":
        config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.1, task_type="SEQ_CLS", target_modules="all-linear")
        return get_peft_model(model, config), tokenizer
    example = batches(tokenizer, sample(seed, 2)[0], batch_size=2)[0]
    config = replace((METHODS | VARIANTS)[kind], rank=16, alpha=32, lora_dropout=0.1)
    return gatefx.prepare(model, config, budget=BUDGETS[kind][0], example_inputs=example), tokenizer


def train(model: torch.nn.Module, tokenizer: object, seed: int, args: argparse.Namespace) -> dict[str, object]:
    """Train in place; steps, seconds, last figures of the gates."""
    texts, labels = sample(seed, args.sentences)
    epochs = [batches(tokenizer, texts, labels, batch_size=32, seed=10 * seed + e) for e in range(args.epochs)]
    total = sum(map(len, epochs))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3)
    rate = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total)
    schedule = model.schedule(total, optimiser) if isinstance(model, GatedModel) else None
    model.train()
    started = time.perf_counter()
    for batch in (batch for epoch in epochs for batch in epoch):
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimiser.step()
        optimiser.zero_grad()
        rate.step()
        if schedule is not None:
            schedule.step()
    figures = {} if schedule is None else dict(schedule.figures())
    return {"steps": total, "train_seconds": round(time.perf_counter() - started, 1), "figures": figures}


@torch.no_grad()
def accuracy(answer: object, tokenizer: object) -> float:
    """Share of the test sentences that are answered right."""
    data = sentences("rt")
    right = total = 0
    for batch in batches(tokenizer, data.test_texts, data.test_labels, batch_size=64):
        labels = batch.pop("labels")
        right += int((torch.as_tensor(answer(**batch)["logits"]).argmax(-1) == labels).sum())
        total += len(labels)
    return right / total


def achieved(gated: GatedModel, fast: DeployedModel, tokenizer: object) -> dict[str, float]:
    """What the budget came to on the test sentences: tokens kept, ranks, or updates taken (mean over adapters)."""
    data = batches(tokenizer, sentences("rt").test_texts, batch_size=64)
    if hard_gates(fast.reference_graph):
        found = faithfulness(fast, data)
        return {"token_share": found.share, "token_share_sd": found.deviation, "kl": found.divergence}
    rows = measure_gates(gated, fast, data).sites.values()
    figures = {name for row in rows for name in row}
    return {name: sum(row.get(name, 0.0) for row in rows) / len(rows) for name in sorted(figures)}


def run_training(args: argparse.Namespace) -> None:
    """Train what is not there yet."""
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for kind in args.methods:
            if (args.out / f"{kind}-{seed}").exists():
                continue
            model, tokenizer = untrained(kind, seed, args)
            row = {"model": args.model, "seed": seed, "kind": kind, **train(model, tokenizer, seed, args)}
            model.save_pretrained(args.out / f"{kind}-{seed}")
            with (args.out / "training.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(row, flush=True)


def run_scoring(args: argparse.Namespace) -> None:
    """Deploy and score what was trained and not scored yet."""
    path = args.out / "scores.jsonl"
    done = {(row["kind"], row["seed"]) for row in _rows(path)}
    for trained in _rows(args.out / "training.jsonl"):
        if (trained["kind"], trained["seed"]) in done:
            continue
        for row in score(trained["kind"], trained["seed"], trained["model"], args.out):
            with path.open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(row, flush=True)


def score(kind: str, seed: int, name: str, out: Path) -> list[dict[str, object]]:
    """Accuracy at every budget of the method."""
    model, tokenizer = encoder(name, num_labels=2, seed=seed)
    if kind == "lora":
        adapted = PeftModel.from_pretrained(model, str(out / f"lora-{seed}")).eval()
        return [{"kind": kind, "seed": seed, "budget": None, "accuracy": accuracy(adapted, tokenizer)}]
    calibration = batches(tokenizer, sample(seed, CALIBRATION)[0], batch_size=32)
    gated = gatefx.from_pretrained(model, out / f"{kind}-{seed}", example_inputs=calibration[0])
    rows = []
    for budget in BUDGETS[kind]:
        fast = gatefx.optimize(gated, budget=budget, data=calibration)
        forms = sorted({site.form for site in fast.sites})
        reached = achieved(gated, fast, tokenizer)
        rows.append(
            {
                "kind": kind,
                "seed": seed,
                "budget": budget,
                "accuracy": accuracy(fast, tokenizer),
                "forms": forms,
                **reached,
                "notes": list(fast.report.notes),
            }
        )
    return rows


def run_table(args: argparse.Namespace) -> None:
    """A row for each method and budget, a column for each seed."""
    rows = _rows(args.out / "scores.jsonl")
    print(f"| method | budget | {' | '.join(f'seed {seed}' for seed in args.seeds)} | mean | it really took |")
    print(f"|{'---|' * (len(args.seeds) + 4)}")
    for kind in args.methods:
        for budget in BUDGETS.get(kind, (None,)):
            found = {row["seed"]: row for row in rows if (row["kind"], row["budget"]) == (kind, budget)}
            if found:
                scores = [f"{100 * found[seed]['accuracy']:.2f}" if seed in found else "" for seed in args.seeds]
                mean = sum(row["accuracy"] for row in found.values()) / len(found)
                print(
                    f"| {kind} | {budget} | {' | '.join(scores)} | {100 * mean:.2f} | {_took(list(found.values()))} |"
                )


def _took(rows: list[dict[str, object]]) -> str:
    """Means over seeds of what the budget came to."""
    names = [name for name in ("token_share", "token_share_sd", "kl", "update_share", "gate_mean") if name in rows[0]]
    return ", ".join(f"{name} {sum(row[name] for row in rows) / len(rows):.3f}" for name in names)


def _rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=["train", "score", "table"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--methods", nargs="+", default=["lora", *BUDGETS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--sentences", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    {"train": run_training, "score": run_scoring, "table": run_table}[args.step](args)


if __name__ == "__main__":
    main()
