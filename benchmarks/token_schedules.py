"""What a schedule chosen for a budget in FLOPs gains over one cut after a quarter of the layers: `rt` and MiniLM-L6.

    python benchmarks/token_schedules.py OUT [--train 2000] [--test 800] [--flops 0.8 0.6 0.4]

The model of `token_scores.py` (plain LoRA, trained once, kept under OUT). For each budget gatefx.optimize chooses a
schedule on 512 unlabelled training sentences; the default cut is the candidate after layer 2 of the same search, which
is predicted to cost the same. Both are deployed, and measured on test sentences: accuracy, KL(full ‖ masked), and the
FLOPs that torch counts in the compacted model's own calls, over those of the merged model.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from token_scores import tuned
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import gatefx
from gatefx.methods import Flops, MaskLoRA
from gatefx.models.packaged import batches, sentences
from gatefx.passes.deployed import DeployedModel
from gatefx.passes.faithfulness import faithfulness

CALIBRATION, DEFAULT_CUT, BATCH = 512, 2, 32
Batches = Sequence[dict[str, Tensor]]


def flops_of(model: DeployedModel, data: Batches) -> int:
    """FLOPs of the model's calls on the data, as torch counts them."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for batch in data:
            model(**{name: value for name, value in batch.items() if name != "labels"})
    return counter.get_total_flops()


def measured(fast: DeployedModel, test: Batches, dense: int) -> dict[str, float]:
    """Accuracy, KL and FLOPs on test sentences."""
    found = faithfulness(fast, test)
    return {
        "accuracy": found.accuracy,
        "full_accuracy": found.full_accuracy,
        "kl": found.divergence,
        "flops": flops_of(fast, test) / dense,
    }


def compared(model: nn.Module, asked: float, calibration: Batches, test: Batches, dense: int) -> dict[str, object]:
    """The chosen schedule beside the default cut."""
    started = time.process_time()
    chosen = gatefx.optimize(model, MaskLoRA(), Flops(asked), data=calibration, progress=False)
    seconds = time.process_time() - started
    fact = chosen.report.facts["schedule"]["masklora"]
    row: dict[str, object] = {"asked": asked, "cpu_seconds": seconds, **fact, "chosen": measured(chosen, test, dense)}
    same = [item["keep"] for item in fact["candidates"] if list(item["keep"]) == [str(DEFAULT_CUT)]]
    if same:  # one late cut does not reach every budget
        keep = {DEFAULT_CUT: same[0][str(DEFAULT_CUT)]}
        default = gatefx.optimize(model, MaskLoRA(keep=keep), data=calibration, progress=False)
        row["default"] = {"keep": keep, **measured(default, test, dense)}
    return row


def main() -> None:
    """Parse, run, write JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=800)
    parser.add_argument("--flops", type=float, nargs="+", default=(0.8, 0.6, 0.4))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = tuned(args.out, args.train)
    model.base_model.model.set_attn_implementation("sdpa")
    data, half = sentences("rt"), args.test // 2
    texts, labels = (rows[:half] + rows[-half:] for rows in (list(data.test_texts), list(data.test_labels)))
    test = batches(tokenizer, texts, labels, batch_size=BATCH)
    calibration = batches(tokenizer, list(data.train_texts[::16])[:CALIBRATION], batch_size=BATCH)
    whole = gatefx.optimize(model, MaskLoRA(), "100%", fold=True, data=calibration, progress=False)
    dense = flops_of(whole, test)
    with (args.out / "token_schedules.jsonl").open("w") as log:
        for asked in args.flops:
            row = compared(model, asked, calibration, test, dense)
            log.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}")


if __name__ == "__main__":
    main()
