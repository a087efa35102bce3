"""The door to PEFT: attach its LoRA, or load an adapter that it saved."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from torch import nn

from ..errors import missing_package


def attach_lora(model: nn.Module, *, rank: int, alpha: float, dropout: float) -> nn.Module:
    """PEFT's own LoRA on every linear layer of a sequence classifier, whose head trains too."""
    peft = _peft("attaching LoRA")
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, task_type="SEQ_CLS", target_modules="all-linear"
    )
    attached: nn.Module = peft.get_peft_model(model, config)
    return attached


def load_adapter(base: nn.Module, folder: Path) -> nn.Module:
    """The adapter of `folder` over its base model."""
    model: nn.Module = _peft("reading a PEFT adapter").PeftModel.from_pretrained(base, str(folder))
    return model


def _peft(feature: str) -> ModuleType:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise missing_package("peft", extra="hf", feature=feature) from error
    module: ModuleType = peft
    return module
