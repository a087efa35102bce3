"""What dropping tokens of prompts costs and saves on a real language model, SmolLM2-135M.

    python benchmarks/decoders.py train OUT             # LoRA on a real text, a few minutes
    python benchmarks/decoders.py quality OUT           # continuations: masklora beside other selections
    python benchmarks/decoders.py table OUT             # their perplexity
    python benchmarks/decoders.py export OUT            # masklora as an artifact for ONNX Runtime
    python benchmarks/decoders.py time OUT              # prefill, decode and cache of the artifact

The text is CPython's reference (`pydoc_data.topics`): its two longest topics are held out, the others train and
calibrate. Every selection drops tokens at the same cut, in the same graph, which differs by the priorities alone.
`quality` goes on where an earlier run was broken off.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import pydoc_data.topics
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from decoder_losses import FULL, Losses
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

import gatefx
from gatefx.models.packaged_decoder import language_model
from gatefx.passes.decode.engine import required_programs
from gatefx.passes.deployed import DeployedModel
from gatefx.passes.harden.token_calibration import hard_gates
from gatefx.runtime.cache_names import LOGITS, is_present, past_of

HELD_OUT = ("specialnames", "compound")
CUT, SHARES, LENGTHS, CONTINUATION = 8, (0.7, 0.5, 0.3), (512, 1024, 2048), 64
SINKS, WINDOW, RECENT = 4, 32, 64  # of StreamingLLM; queries that SnapKV observes; last tokens of the variants
Priority = Callable[[Tensor], Tensor]


def texts(tokenizer: Any, *, held_out: bool) -> list[Tensor]:
    """Token ids of each topic."""
    topics = pydoc_data.topics.topics
    chosen = HELD_OUT if held_out else sorted(set(topics) - set(HELD_OUT))
    return [tokenizer(topics[name], return_tensors="pt")["input_ids"][0] for name in chosen]


def rows(parts: Sequence[Tensor], length: int) -> Tensor:
    """All of a text in rows of one length, (N, length)."""
    whole = torch.cat(list(parts))
    return whole[: len(whole) // length * length].view(-1, length)


def train(out: Path, steps: int, seed: int = 0) -> None:
    """LoRA r=16 on query and value."""
    model, tokenizer = language_model(print)
    torch.manual_seed(seed)
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    tuned = get_peft_model(model, adapter).train()
    optimiser = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-3)
    data = rows(texts(tokenizer, held_out=False), 256)
    order = torch.randperm(len(data))
    for step in range(steps):
        batch = data[order[[2 * step % len(data), (2 * step + 1) % len(data)]]]
        loss = tuned(input_ids=batch, labels=batch).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    tuned.save_pretrained(out / "adapter")


def tuned(out: Path) -> tuple[Any, Any]:
    """(the tuned model, its tokenizer)."""
    model, tokenizer = language_model(print)
    return PeftModel.from_pretrained(model, out / "adapter").eval(), tokenizer


def pruned(model: Any, tokenizer: Any) -> DeployedModel:
    """masklora with one cut, fitted on rows of the training topics."""
    data = rows(texts(tokenizer, held_out=False), 512)[:12]
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in data.view(6, 2, 512)]
    method = gatefx.methods.MaskLoRA(keep={CUT: 0.5})
    return gatefx.optimize(model, method, data=batches, progress=False)


@contextmanager
def choosing(model: DeployedModel, priority: Priority | None) -> Iterator[None]:
    """Another selection's priorities at the cut, (B, T) from the gate's own."""
    gate = hard_gates(required_programs(model).prefill)[0]
    if priority is None:
        yield
        return
    handle = gate.register_forward_hook(lambda _gate, _given, answer: (priority(answer[0]), answer[1]))
    try:
        yield
    finally:
        handle.remove()


def selections(received: Tensor, observed: Tensor) -> dict[str, Priority | None]:
    """Name → what it ranks tokens by; None is masklora's own. Attention (B, T) is that of the layers before the cut."""

    def kept(own: Tensor, other: Tensor) -> Tensor:
        """First and last token stay, as in masklora."""
        return torch.where(own == torch.finfo(own.dtype).max, own, other.to(own.dtype))

    def places(own: Tensor) -> Tensor:
        return torch.arange(own.shape[1], dtype=own.dtype).expand_as(own)

    def with_ends(own: Tensor) -> Tensor:
        """What `MaskLoRA(sinks=…, recent=…)` keeps."""
        ends = (places(own) < SINKS) | (places(own) >= own.shape[1] - RECENT)
        return own.masked_fill(ends, torch.finfo(own.dtype).max)

    def at_random(own: Tensor) -> Tensor:
        return torch.rand(own.shape, generator=random)

    random = torch.Generator().manual_seed(0)
    return {
        "masklora, predicted": None,
        "keep-last window": places,
        f"StreamingLLM, {SINKS} sinks": lambda own: places(own) + (places(own) < SINKS) * 1e6,
        f"SnapKV, last {WINDOW} queries": lambda own: kept(own, observed),
        "attention received": lambda own: kept(own, received),
        "random": lambda own: kept(own, at_random(own)),
        f"masklora, {SINKS} sinks, last {RECENT}": with_ends,
        f"random, {SINKS} sinks, last {RECENT}": lambda own: with_ends(at_random(own)),
    }


def first_layers(model: Any) -> Any:
    """The layers before the cut, with attention that shows its weights."""
    merged = copy.deepcopy(model).merge_and_unload()
    merged.model.layers = merged.model.layers[:CUT]
    merged.config.num_hidden_layers = CUT
    merged.set_attn_implementation("eager")
    return merged.eval()


@torch.no_grad()
def attention_scores(first: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Attention that each token gets, from all queries and from the last ones, mean over layers and heads: (B, T)."""
    weights = torch.stack(first.model(input_ids=ids, output_attentions=True).attentions).mean((0, 2))
    return weights.sum(1), weights[:, -WINDOW:].sum(1)


@torch.no_grad()
def continuation_loss(model: DeployedModel, ids: Tensor, length: int) -> float:
    """Mean negative log likelihood of what follows a prompt of `length`, in nats a token: ids (1, length + more)."""
    programs = required_programs(model)
    prompt, more = ids[:, :length], ids[:, length:]
    positions = torch.arange(ids.shape[1])[None]
    answers = dict(programs.prefill(prompt, torch.ones_like(prompt), positions[:, :length]))
    answers |= {"present_positions.0": positions[:, :length], "present_mask.0": torch.ones_like(prompt)}
    cache = {past_of(name) if is_present(name) else name: value for name, value in answers.items() if name != LOGITS}
    given = {"input_ids": more, "attention_mask": torch.ones_like(more), "position_ids": positions[:, length:], **cache}
    names = programs.decode.meta["signature"].input_names
    logits = torch.cat([answers["logits"], programs.decode(*(given[n] for n in names))["logits"][:, :-1]], 1)
    return float(torch.nn.functional.cross_entropy(logits[0], more[0]))


def held_out(tokenizer: Any, length: int, windows: int) -> dict[int, Tensor]:
    """Number → a prompt and what follows it, (1, length + more), evenly over the held-out topics."""
    data = torch.cat([rows([text], length + CONTINUATION) for text in texts(tokenizer, held_out=True)])
    chosen = range(0, len(data), max(1, len(data) // windows))[:windows]
    return {number: data[number : number + 1] for number in chosen}


def quality(out: Path, lengths: Sequence[int], windows: int, only: str) -> None:
    """Losses of continuations, selection by selection, of those whose name holds `only`; those in the file stay."""
    model, tokenizer = tuned(out)
    fast, first, losses = pruned(model, tokenizer), first_layers(model), Losses(out / "losses.jsonl")
    print(fast.report.notes)
    for length in lengths:
        for number, ids in held_out(tokenizer, length, windows).items():
            chosen_by = selections(*attention_scores(first, ids[:, :length]))
            wanted = [(FULL, 1.0), *((name, share) for name in chosen_by if only in name for share in SHARES)]
            for name, share in wanted:
                if (length, name, share, number) not in losses.known:
                    with fast.at_budget(share), choosing(fast, chosen_by.get(name)):
                        losses.add((length, name, share, number), continuation_loss(fast, ids, length))
                        print(length, number, name, share, flush=True)


def hand_over(out: Path, lengths: Sequence[int], windows: int) -> None:
    """Write the merged model and the windows for `decoders_kvpress.py`."""
    model, tokenizer = tuned(out)
    model.merge_and_unload().save_pretrained(out / "merged")
    for length in lengths:
        chosen = {number: ids[0].tolist() for number, ids in held_out(tokenizer, length, windows).items()}
        (out / f"windows-{length}.json").write_text(json.dumps(chosen))


def export(out: Path) -> None:
    """The artifact."""
    model, tokenizer = tuned(out)
    gatefx.export(pruned(model, tokenizer), out / "artifact", generate=True, overwrite=True)


def predicted(length: int, share: float) -> float:
    """The prefill's speed-up by its products alone: linear layers, and attention over every pair of tokens."""
    layers, width, heads, inner = 30, 576, 192, 1536

    def layer(tokens: float) -> float:
        return tokens * (2 * (2 * width * width + 2 * width * heads + 3 * width * inner) + 4 * width * tokens)

    return layers * layer(length) / (CUT * layer(length) + (layers - CUT) * layer(math.ceil(share * length)))


def measure(out: Path, lengths: Sequence[int], rounds: int, steps: int) -> None:
    """Prefill and decode of the artifact in ONNX Runtime, budgets alternating."""
    session = gatefx.load(out / "artifact", threads=1)
    ids = torch.arange(5, 5 + max(lengths)) % 40_000
    for length in lengths:
        prompt = ids[None, :length]
        seen: dict[float, list[tuple[float, float, int]]] = {}
        for turn in range(rounds + 1):
            for share in (1.0, *SHARES):
                generation = gatefx.generate(session, prompt, max_new_tokens=steps + 1, stop=(), budget=share)
                _ = generation.tokens
                row = (generation.prefill.seconds, generation.decode.seconds / steps, generation.prefill.bytes)
                seen.setdefault(share, []).extend([row] if turn else [])  # the first round warms up
        for share, found in seen.items():
            before = [statistics.median(a[i] / b[i] for a, b in zip(seen[1.0], found, strict=True)) for i in (0, 1)]
            prefill, decode = (statistics.median(row[i] for row in found) for i in (0, 1))
            print(
                f"| {length} | {share} | {prefill:.2f} s | {before[0]:.2f} | {predicted(length, share):.2f} | "
                f"{1 / decode:.1f} | {before[1]:.2f} | {found[0][2] / 1e6:.1f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=["train", "quality", "share", "table", "export", "time"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--only", default="")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.stage == "train":
        train(given.out, given.steps)
    elif given.stage == "quality":
        quality(given.out, given.lengths, given.windows, given.only)
    elif given.stage == "share":
        hand_over(given.out, given.lengths, given.windows)
    elif given.stage == "table":
        print(Losses(given.out / "losses.jsonl").table())
    elif given.stage == "export":
        export(given.out)
    else:
        measure(given.out, given.lengths, given.rounds, steps=24)


if __name__ == "__main__":
    main()
