"""What the demo runs, and on how many threads; imported before torch, which reads its environment once."""

from __future__ import annotations

import os
from dataclasses import dataclass

THREADS = min(os.cpu_count() or 1, 2)
"""More threads than this help sentences of this length little, and the figures stay comparable between machines."""


@dataclass(frozen=True)
class DemoSettings:
    """One size of the demo; the recipe is the same for all.

    Attributes:
        encoder: key of a packaged encoder.
        train_sentences, epochs: what LoRA and ccm are each trained on.
        calibration_sentences: held-out training sentences, without their labels.
        test_sentences: how many are scored; None scores all.
        rounds: timed rounds of the latency comparison.
        expectation: how long it takes, said at the start.
    """

    encoder: str
    train_sentences: int
    epochs: int
    calibration_sentences: int
    test_sentences: int | None
    rounds: int
    expectation: str

    #: Of the method and the recipe.
    rank: int = 16
    alpha: float = 32.0
    lora_dropout: float = 0.1
    budget: int = 6
    batch_size: int = 32
    served: int = 32


FULL = DemoSettings("minilm-l6", 4000, 1, 512, None, 12, "three to five minutes on two cores")
FAST = DemoSettings("minilm-l3", 768, 1, 256, 512, 10, "about a minute on two cores")


def configure_threads() -> None:
    """Set what torch, ONNX Runtime and tokenizers read at import, unless the caller has set it.

    Spinning threads on a busy machine of two cores made torch several times slower than one thread.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
