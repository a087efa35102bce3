"""Everything one demo measured, as its table, its notes and its report read it."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from ..models.packaged import MODELS
from ..models.rank_statistics import RankSummary
from .demo_scoring import RoutedRanks
from .demo_serving import CCM, LORA, MERGED, Served
from .demo_settings import THREADS, DemoSettings
from .demo_training import DemoData
from .training import TrainingRun

TABLE_COLUMNS = ("accuracy", "rank", "P50", "P90", "ms", "IQR", "ratio")
_PACKAGES = ("torch", "transformers", "peft", "onnxruntime")
_WITHIN = 0.01  # accuracy: what counts as reaching LoRA's
_LEVEL = 0.02  # relative latency: what counts as the same


@dataclass(frozen=True)
class Row:
    """One line of the demo's table; None where nothing was measured.

    Attributes:
        model, engine: what ran where; key: of its timing, if it was timed.
        accuracy: share of test sentences; ranks: effective rank on them.
    """

    model: str
    engine: str
    accuracy: float | None
    ranks: RankSummary | None
    key: str | None = None


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured.

    Attributes:
        lora, ccm: the training runs; lora_accuracy, ccm_accuracy, exported_accuracy: on the test sentences.
        ranks: the routers' choices on the test sentences, with the sites' names; None if every gate turned static.
        sites, report: of the deployed model, as its manifest has them.
        seconds: from start to the report; folder: where it all lies.
    """

    settings: DemoSettings
    seed: int
    data: DemoData
    lora: TrainingRun
    ccm: TrainingRun
    lora_accuracy: float
    ccm_accuracy: float
    exported_accuracy: float
    ranks: RoutedRanks | None
    site_names: tuple[str, ...]
    sites: Sequence[Mapping[str, Any]]
    report: Mapping[str, Any]
    served: Served
    seconds: float
    folder: Path

    @property
    def rows(self) -> tuple[Row, ...]:
        """The table, from the reference to the routed model."""
        full = RankSummary(*([float(self.settings.rank)] * 4))
        routed = self.ranks.summary if self.ranks is not None else None
        lora = f"LoRA r={self.settings.rank}"
        ccm = f"ccm budget {self.settings.budget}"
        return (
            Row(f"{lora}, merged", "ONNX Runtime", None, None, MERGED),
            Row(lora, "torch", self.lora_accuracy, full),
            Row(f"{lora}, exported", "ONNX Runtime", None, full, LORA),
            Row(ccm, "torch", self.ccm_accuracy, routed),
            Row(f"{ccm}, exported", "ONNX Runtime", self.exported_accuracy, routed, CCM),
        )

    def cells(self, row: Row) -> tuple[str, ...]:
        """A row's figures in the order of `TABLE_COLUMNS`; empty where nothing was measured."""
        ranks = row.ranks
        scored = "" if row.accuracy is None else f"{row.accuracy:.4f}"
        chosen = ("", "", "") if ranks is None else (f"{ranks.mean:.2f}", f"{ranks.p50:g}", f"{ranks.p90:g}")
        if row.key is None:
            return (scored, *chosen, "", "", "")
        timing, ratio = self.served.timings[row.key], self.served.ratios[row.key]
        return (scored, *chosen, f"{timing.median_s * 1e3:.1f}", f"{timing.iqr_s * 1e3:.1f}", f"{ratio:.2f}")

    @property
    def legend(self) -> str:
        """What the table's columns mean."""
        served = self.served
        return (
            f"Empty where nothing was measured. rank: ranks computed per test sentence and layer, out of "
            f"{self.settings.rank}. ms: {served.sentences} test sentences padded to {served.tokens} tokens, median, on "
            f"{served.provider} with {served.threads} thread{'s' * (served.threads > 1)}. ratio: to the merged model, "
            f"in the same run."
        )

    @property
    def standard_error(self) -> float:
        """Of LoRA's accuracy, from the number of test sentences."""
        return math.sqrt(self.lora_accuracy * (1 - self.lora_accuracy) / self.data.tested)

    @property
    def prediction(self) -> Mapping[str, Any] | None:
        """The cost model's figures for the batch that was served; None where nothing is routed."""
        found: Mapping[str, Any] | None = self.report["facts"].get("prediction")
        return found

    @property
    def overheads(self) -> tuple[tuple[str, float, float], ...]:
        """(model, predicted, measured) milliseconds per batch over the merged model."""
        if self.prediction is None:
            return ()
        names = (("LoRA", LORA, "lora_seconds"), ("ccm", CCM, "routed_seconds"))
        return tuple(
            (label, self.prediction[field] * 1e3, self.served.overhead(key) * 1e3) for label, key, field in names
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should take from the table, and what not."""
        return (*self._accuracy_notes(), *self._latency_notes(), *self._rank_notes())

    def _accuracy_notes(self) -> tuple[str, ...]:
        gap = self.ccm_accuracy - self.lora_accuracy
        judged = "within" if abs(gap) <= _WITHIN else "not within"
        return (
            f"accuracy on {self.data.tested} test sentences (films not seen in training): ccm is "
            f"{abs(gap) * 100:.1f} points {'above' if gap >= 0 else 'below'} LoRA, {judged} one point; one standard "
            f"error is {self.standard_error * 100:.1f} points, and this is one seed",
        )

    def _latency_notes(self) -> tuple[str, ...]:
        served, ratio = self.served, self.served.ratios[CCM]
        if ratio > 1 + _LEVEL:
            verdict = f"ccm is slower than the merged adapter ({ratio:.2f} x): where latency is what counts, merge"
        elif ratio < 1 - _LEVEL:
            verdict = f"ccm is faster than the merged adapter ({ratio:.2f} x)"
        else:
            verdict = f"ccm takes the merged adapter's time ({ratio:.2f} x)"
        against = ratio / served.ratios[LORA]
        told = ", ".join(f"{name} {guess:.1f} and {found:.1f}" for name, guess, found in self.overheads)
        return (
            f"latency of {served.sentences} sentences padded to {served.tokens} tokens, one thread: "
            f"{verdict}; against unmerged LoRA it takes {against:.2f} x",
            *([f"ms over the merged model, predicted and measured: {told}"] if told else []),
            f"exported and torch logits differ by at most {served.difference:.1e} on those sentences",
        )

    def _rank_notes(self) -> tuple[str, ...]:
        share = self.ccm.collapse_rate
        told = f"masks collapsed in {share:.0%} of the training steps" if share else "no mask collapsed in training"
        return (told, *self.report["notes"])

    def description(self) -> dict[str, str]:
        """What was run, for the head of the report."""
        source, settings = self.data.source, self.settings
        return {
            "encoder": MODELS[settings.encoder].description,
            "task": f"{source.name}: is a sentence of a film review {' or '.join(source.label_names)}; {source.source}",
            "licence of the texts": source.licence,
            "recipe": f"{settings.train_sentences} sentences x {settings.epochs} epochs for each model, AdamW 1e-3 "
            f"falling to 0, batches of {settings.batch_size} by length, r={settings.rank}, alpha={settings.alpha:g}, "
            f"dropout {settings.lora_dropout:g}, every linear layer, seed {self.seed}",
            "calibration": f"{settings.calibration_sentences} held-out training sentences, without labels",
            "machine": f"{_processor()}, {os.cpu_count()} cores; training and scoring on {THREADS} threads, latency on "
            f"{self.served.threads}",
            "versions": ", ".join([f"gatefx {__version__}", *(f"{name} {_version(name)}" for name in _PACKAGES)]),
            "seconds": f"{self.seconds:.0f} in all, training LoRA {self.lora.seconds:.0f}, ccm {self.ccm.seconds:.0f}",
        }

    def to_json(self) -> dict[str, Any]:
        """The figures as plain data."""
        served = self.served
        return {
            "description": self.description(),
            "test_sentences": self.data.tested,
            "rows": [asdict(row) for row in self.rows],
            "latency": {name: timing.to_json() for name, timing in served.timings.items()},
            "latency_ratio_to_merged": dict(served.ratios),
            "served": {"sentences": served.sentences, "tokens": served.tokens, "provider": served.provider},
            "largest_logit_difference": served.difference,
            "collapse_rate": self.ccm.collapse_rate,
            "losses": {"lora": self.lora.losses, "ccm": self.ccm.losses},
            "gates": [asdict(step) for step in self.ccm.gates],
            "prediction": self.prediction,
            "notes": list(self.notes),
        }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """The processor's name as Linux knows it, else what Python can say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
