"""ccm, tspeft, gatera and weightlora on a real language model, SmolLM2-135M: what they learn, what a token costs.

    gatefx build-native
    python benchmarks/decoder_methods.py train OUT       # each method for a few steps on a real text
    python benchmarks/decoder_methods.py score OUT       # deployed in torch: perplexity of held-out text, some tokens
    python benchmarks/decoder_methods.py export OUT      # as artifacts for ONNX Runtime, which say the same tokens
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/decoder_methods.py time OUT

The text is CPython's reference, split as in `decoders.py`. r=16 on all linear layers, float32. `merged` and `LoRA` are
one LoRA of PEFT's. Perplexity is that of what follows prompts of held-out text, through the deployed prefill and
decode. All artifacts are timed in one process, alternating; figures are medians of ratios taken round by round.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from decoders import continuation_loss, rows, texts
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

import gatefx
from gatefx.methods import CCM, TSPEFT, GateRA, WeightLoRA
from gatefx.models.packaged_decoder import language_model
from gatefx.passes.deployed import DeployedModel
from gatefx.runtime.profile import compare, pinned_threads, ratios
from gatefx.runtime.sessions.decoder import OnnxDecoder

RANK, ALPHA, RATE, TOKENS, START = 16, 32, 2e-3, 96, 32  # START: tokens of a text that are given, not predicted
PROMPT, CONTINUATION, GENERATED = 256, 64, 24
#: What is trained: name → (method, budget), None is PEFT's LoRA.
TRAINED: dict[str, tuple[Any, Any] | None] = {
    "lora": None,
    "ccm": (CCM(rank=RANK, alpha=ALPHA, prefix=START), 6),
    "tspeft": (TSPEFT(rank=RANK, alpha=ALPHA), 0.5),
    "gatera": (GateRA(rank=RANK, alpha=ALPHA, update="lora"), 0.5),
    "weightlora": (WeightLoRA(rank=RANK, alpha=ALPHA), None),
}
#: What is deployed: name → (which trained one, fold).
DEPLOYED: dict[str, tuple[str, bool | None]] = {
    "merged": ("lora", True),
    "LoRA": ("lora", False),
    "ccm, 6 of 16 ranks": ("ccm", None),
    "tspeft, half of the updates": ("tspeft", None),
    "gatera, half of the tokens": ("gatera", None),
    "weightlora, half of the adapters": ("weightlora", False),
}


def train(kind: str, out: Path, steps: int, seed: int = 0) -> None:
    """Fine-tune in place, and keep what was trained."""
    model, tokenizer = language_model(print)
    data = rows(texts(tokenizer, held_out=False), TOKENS)
    given = TRAINED[kind]
    torch.manual_seed(seed)
    if given is None:
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
        tuned: Any = get_peft_model(model, config)
    else:
        tuned = gatefx.prepare(model, *given, example_inputs=_batch(data[:2]))
    optimiser = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=RATE)
    schedule = None if given is None else tuned.schedule(steps, optimiser)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    tuned.train()
    started, losses = time.perf_counter(), []
    for step in range(steps):
        ids = data[order[[2 * step % len(data), (2 * step + 1) % len(data)]]]
        labels = torch.cat([torch.full_like(ids[:, :START], -100), ids[:, START:]], 1)
        answer = tuned(**_batch(ids), labels=labels)
        answer.loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if schedule is not None:
            schedule.step()
        losses.append(float(answer["loss" if given is None else "task_loss"].detach()))
    tuned.eval().save_pretrained(out / kind)
    figures = {} if schedule is None else {name: round(value, 4) for name, value in schedule.figures().items()}
    first, last = (statistics.mean(part) for part in (losses[:8], losses[-8:]))
    print(f"{kind}: loss {first:.3f} → {last:.3f}, {time.perf_counter() - started:.0f} s, {figures}", flush=True)


def _batch(ids: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def deployed(name: str, out: Path) -> DeployedModel:
    """One candidate, calibrated on rows of the training topics."""
    kind, fold = DEPLOYED[name]
    model, tokenizer = language_model(print)
    data = [_batch(ids) for ids in rows(texts(tokenizer, held_out=False), PROMPT)[:8].view(4, 2, PROMPT)]
    if kind == "lora":
        adapted = PeftModel.from_pretrained(model, out / kind).eval()
        return gatefx.optimize(adapted, "ccm", RANK, data=data, fold=fold, progress=False)
    gated = gatefx.from_pretrained(model, out / kind, example_inputs=data[0])
    return gatefx.optimize(gated, data=data, fold=fold, progress=False)


def held_out(tokenizer: Any, windows: int) -> Tensor:
    """Rows of a prompt and what follows it, evenly over the held-out topics."""
    data = rows(texts(tokenizer, held_out=True), PROMPT + CONTINUATION)
    return data[:: max(1, len(data) // windows)][:windows]


@torch.no_grad()
def base_loss(windows: Tensor) -> list[float]:
    """The model's own loss on the continuations before any training, in nats a token."""
    model, _ = language_model(print)
    logits = [model(input_ids=ids[None, :-1]).logits[0, PROMPT - 1 :] for ids in windows]
    wanted = windows[:, PROMPT:]
    return [float(torch.nn.functional.cross_entropy(a, b)) for a, b in zip(logits, wanted, strict=True)]


def score(name: str, out: Path, windows: int) -> None:
    """Deploy one candidate and judge it."""
    fast, (_, tokenizer) = deployed(name, out), language_model(print)
    chosen = held_out(tokenizer, windows)
    losses, base = [continuation_loss(fast, ids[None], PROMPT) for ids in chosen], base_loss(chosen)
    gaps = [after - before for after, before in zip(losses, base, strict=True)]
    error = statistics.stdev(gaps) / math.sqrt(len(gaps))
    forms = ", ".join(sorted({site.form for site in fast.sites})) or "no adapter left"
    print(
        f"| {name} | {forms} | {math.exp(statistics.mean(base)):.2f} | {math.exp(statistics.mean(losses)):.2f} | "
        f"{statistics.mean(gaps):+.3f} ± {error:.3f} | {'; '.join(fast.report.notes)}",
        flush=True,
    )


def export(name: str, out: Path, windows: int) -> None:
    """Export one candidate if that is not done yet, and hold the artifact's tokens against torch's."""
    folder = _folder(out, name)
    if folder.is_dir():
        print(f"{name}: exported before", flush=True)
        return
    fast, (_, tokenizer) = deployed(name, out), language_model(print)
    given = prompts(held_out(tokenizer, windows))
    wanted = gatefx.generate(fast, given, max_new_tokens=GENERATED, stop=()).tokens
    started, cpu = time.perf_counter(), time.process_time()
    gatefx.export(fast, folder, generate=True)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    said = gatefx.generate(gatefx.load(folder, threads=1), given, max_new_tokens=GENERATED, stop=()).tokens
    same = torch.equal(said, wanted)
    print(
        f"{name}: exported in {seconds:.0f} s ({cpu:.0f} s of CPU); torch's {said.numel()} tokens: {same}", flush=True
    )


def prompts(windows: Tensor) -> list[list[int]]:
    """Two of different lengths."""
    return [windows[0, :PROMPT].tolist(), windows[1, : PROMPT // 3].tolist()]


def _folder(out: Path, name: str) -> Path:
    return out / f"artifact-{name.replace(' ', '-').replace(',', '')}"


def calls(sessions: dict[str, OnnxDecoder], length: int, phase: str) -> dict[str, Callable[[], object]]:
    """Each candidate's prefill of one prompt, or one step of decode behind it."""
    known = min(session.facts.vocabulary for session in sessions.values())
    ids = torch.randint(3, known, (1, length), generator=torch.Generator().manual_seed(1))
    whole, one = torch.ones_like(ids), torch.ones(1, 1, dtype=torch.int64)
    runs: dict[str, Callable[[], object]] = {}
    for name, session in sessions.items():
        if phase == "prefill":
            runs[name] = lambda session=session: session.prefill(ids, whole, session.budget)
        else:
            _, cache = session.prefill(ids, whole, session.budget)
            runs[name] = lambda session=session, cache=cache: session.decode(ids[:, -1:], one, cache)
    return runs


def measure(out: Path, lengths: list[int], rounds: int) -> None:
    """Time over the merged model's, of what was exported."""
    print(f"onnxruntime {onnxruntime.__version__}, torch {torch.__version__}")
    opened = {name: gatefx.load(_folder(out, name), threads=1) for name in DEPLOYED if _folder(out, name).is_dir()}
    sessions = {name: session for name, session in opened.items() if isinstance(session, OnnxDecoder)}
    for length in lengths:
        for phase, count in (("prefill", rounds), ("decode", 5 * rounds)):
            with pinned_threads(1):
                taken = compare(calls(sessions, length, phase), warmup=2, rounds=count)
            found = ratios(taken, "merged")
            cells = [f"{name} {value - 1:+.1%}" for name, value in found.items() if name != "merged"]
            print(f"{phase} {length}: merged {taken['merged'].median_s * 1e3:.1f} ms |", " | ".join(cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=["train", "score", "export", "time"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="", help="trained or deployed ones whose name holds this")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.stage == "time":
        measure(args.out, args.lengths, args.rounds)
    for name in (n for n in TRAINED if args.stage == "train" and args.only in n):
        train(name, args.out, args.steps)
    for name in (n for n in DEPLOYED if args.stage in ("score", "export") and args.only in n):
        {"score": score, "export": export}[args.stage](name, args.out, args.windows)


if __name__ == "__main__":
    main()
