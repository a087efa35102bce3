"""NVIDIA's kvpress on the model and texts of `decoders.py`, in its own environment: it wants transformers < 5.3.

    python benchmarks/decoders.py share OUT --lengths 512            # the merged model and the windows
    python -m venv kvpress && kvpress/bin/pip install kvpress==0.5.5
    kvpress/bin/python benchmarks/decoders_kvpress.py OUT
    python benchmarks/decoders.py table OUT

kvpress reads the whole prompt in every layer and then shortens every layer's cache to the share kept.
"""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from decoder_losses import FULL, REFERENCE, Losses
from kvpress import ExpectedAttentionPress, KnormPress, RandomPress, SnapKVPress, StreamingLLMPress
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

SHARES = (0.7, 0.5, 0.3)
PRESSES = {
    "kvpress SnapKV": lambda ratio: SnapKVPress(compression_ratio=ratio, window_size=32),
    "kvpress StreamingLLM": lambda ratio: StreamingLLMPress(compression_ratio=ratio, n_sink=4),
    "kvpress random": lambda ratio: RandomPress(compression_ratio=ratio, seed=0),
    "kvpress expected attention": lambda ratio: ExpectedAttentionPress(compression_ratio=ratio),
    "kvpress key norm": lambda ratio: KnormPress(compression_ratio=ratio),
}


@torch.no_grad()
def continuation_loss(model: Any, press: Any, ids: Tensor, length: int) -> float:
    """Mean negative log likelihood of what follows a prompt of `length`, in nats a token: ids (1, length + more)."""
    cache = DynamicCache()
    with nullcontext() if press is None else press(model):
        first = model(input_ids=ids[:, :length], past_key_values=cache, logits_to_keep=1).logits
    positions = torch.arange(length, ids.shape[1] - 1)[None]
    rest = model(input_ids=ids[:, length:-1], past_key_values=cache, position_ids=positions).logits
    return float(torch.nn.functional.cross_entropy(torch.cat([first, rest], 1)[0], ids[0, length:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512])
    parser.add_argument("--windows", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(args.out / "merged", dtype=torch.float32).eval()
    losses = Losses(args.out / "losses.jsonl")
    for length in args.lengths:
        windows = json.loads((args.out / f"windows-{length}.json").read_text())
        for number, row in list(windows.items())[: args.windows]:
            ids, wanted = torch.tensor([row]), [(f"{REFERENCE} {FULL}", 1.0)]
            wanted += [(name, share) for name in PRESSES for share in SHARES]
            for name, share in wanted:
                if (length, name, share, int(number)) not in losses.known:
                    press = PRESSES[name](1 - share) if name in PRESSES else None
                    losses.add((length, name, share, int(number)), continuation_loss(model, press, ids, length))
    print("\n".join(row for row in losses.table().splitlines() if REFERENCE in row))


if __name__ == "__main__":
    main()
