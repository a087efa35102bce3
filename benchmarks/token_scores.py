"""Which scores choose tokens well: post hoc, on one model trained with plain LoRA, `rt` and MiniLM-L6.

    python benchmarks/token_scores.py OUT [--train 2000] [--test 800]

One LoRA (r=16, α=32, all linears) is trained once and kept under OUT. Then tokens are dropped at one cut, by
    path        LoRA's shift in the layers before the cut            MaskLoRA(scores="path")
    predicted   the all-layer shift, predicted at the cut            MaskLoRA(scores="predicted"), 1,024 sentences
    oracle      the all-layer shift itself (needs the full forward)
    attention   attention received in the layers before the cut, mean over heads and queries
    random      noise
and accuracy and KL(full ‖ masked) are measured on test sentences. No gate takes part in training.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

import gatefx
from gatefx.models.configs.masklora import MaskLoRA
from gatefx.models.packaged import batches, encoder, sentences
from gatefx.passes.deployed import DeployedModel
from gatefx.passes.faithfulness import faithfulness
from gatefx.passes.harden.token_calibration import hard_gates
from gatefx.passes.methods.masklora_deploy import full_answers, scores_of
from gatefx.preparing import build_gated

CUTS, SHARES, CALIBRATION = (1, 2, 3), (0.7, 0.5, 0.3), 1024


def tuned(out: Path, count: int) -> tuple[nn.Module, object]:
    """The encoder with its LoRA, trained where OUT has none."""
    torch.manual_seed(0)
    model, tokenizer = encoder("minilm-l6", num_labels=2, seed=0)
    model.set_attn_implementation("eager")
    if (out / "lora").exists():
        return PeftModel.from_pretrained(model, str(out / "lora")).eval(), tokenizer
    config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.1, task_type="SEQ_CLS", target_modules="all-linear")
    adapted = get_peft_model(model, config).train()
    data = sentences("rt")
    order = torch.randperm(len(data.train_texts)).tolist()[:count]
    texts, labels = [data.train_texts[i] for i in order], [data.train_labels[i] for i in order]
    steps = [b for epoch in range(2) for b in batches(tokenizer, texts, labels, batch_size=32, seed=epoch)]
    optimiser = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-3)
    rate = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, len(steps))
    for batch in steps:
        adapted(**batch).loss.backward()
        nn.utils.clip_grad_norm_(adapted.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        rate.step()
    adapted.save_pretrained(str(out / "lora"))
    return adapted.eval(), tokenizer


class GivenScores(nn.Module):
    """Scores from outside in place of a gate's predictor, batch by batch."""

    def __init__(self) -> None:
        super().__init__()
        self.current: Tensor | None = None

    def forward(self, state: Tensor) -> Tensor:
        """log ŝ, (B,T)."""
        if self.current is None:
            raise ValueError(f"no scores for states {tuple(state.shape)}")
        return self.current.clamp_min(1e-9).log()


@torch.no_grad()
def received(model: nn.Module, batch: dict[str, Tensor], layers: int) -> Tensor:
    """Attention received in the first layers, (B,T): mean over heads and real queries."""
    rows = model(**batch, output_attentions=True).attentions[:layers]
    real = batch["attention_mask"].unsqueeze(-1).float()
    return sum((row.mean(1) * real).sum(1) for row in rows)


def measured(fast: DeployedModel, data: list[dict[str, Tensor]], given: list[Tensor] | None) -> dict[str, float]:
    """Accuracy and KL at the budget in force, with a gate's own scores or those given."""
    (gate,) = hard_gates(fast.reference_graph)
    own, outside = gate.predictor, GivenScores()
    gate.predictor = own if given is None else outside
    rows = []
    for index, batch in enumerate(data):
        outside.current = None if given is None else given[index]
        found = faithfulness(fast, [batch])
        rows.append((len(batch["labels"]), found.accuracy, found.divergence, found.full_accuracy, found.share))
    gate.predictor = own
    total = sum(row[0] for row in rows)
    means = [sum(row[0] * row[i] for row in rows) / total for i in range(1, 5)]
    return dict(zip(("accuracy", "kl", "full_accuracy", "share"), means, strict=True))


def run(args: argparse.Namespace) -> None:
    """Every source of scores at every cut and share, as JSON lines."""
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    model, tokenizer = tuned(args.out, args.train)
    data = sentences("rt")
    half = args.test // 2
    texts, labels = (rows[:half] + rows[-half:] for rows in (list(data.test_texts), list(data.test_labels)))
    test = batches(tokenizer, texts, labels, batch_size=100)
    bare = [{name: value for name, value in batch.items() if name != "labels"} for batch in test]
    calibration = batches(tokenizer, list(data.train_texts[::8])[:CALIBRATION], batch_size=32)
    gated = build_gated(model, [MaskLoRA()], 0.5, example_inputs=calibration[0], attach=False)
    noise = torch.Generator().manual_seed(1)
    outside = {"oracle": scores_of(full_answers(gated.graph_module.eval(), bare, show=False), MaskLoRA())}
    outside["random"] = [torch.rand(batch["attention_mask"].shape, generator=noise) for batch in bare]
    with (args.out / "token_scores.jsonl").open("w") as log:
        for cut in CUTS:
            outside["attention"] = [received(model, batch, cut) for batch in bare]
            for source in ("path", "predicted", "oracle", "attention", "random"):
                if source in ("path", "predicted"):  # the others replace the scores of the model of "predicted"
                    method = MaskLoRA(keep={cut: 0.5}, scores=source)
                    fast = gatefx.optimize(model, method, 0.5, data=calibration, distill_steps=1, progress=False)
                for share in SHARES:
                    fast.budget = share
                    row = {"cut": cut, "scores": source, "rho": share, **measured(fast, test, outside.get(source))}
                    log.write(json.dumps(row) + "\n")
                    print(row, flush=True)
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, CPU seconds ", end="")
    print(round(time.process_time() - started))


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=800)
    torch.set_num_threads(1)
    run(parser.parse_args())


if __name__ == "__main__":
    main()
