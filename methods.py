"""The methods' options by name: `gatefx.methods.MaskLoRA(keep={1: 0.8, 2: 0.5})`. One frozen config a method; no torch.

`Flops(0.6)` is a budget: the share of FLOPs for which masklora's cuts are chosen.

gatefx.prepare(model, method=gatefx.methods.GateRA(update="lora"), budget=0.5, example_inputs=batch)
"""

from __future__ import annotations

from .config import Flops
from .models.configs.ccm import CCM
from .models.configs.gatera import GateRA
from .models.configs.masklora import MaskLoRA
from .models.configs.tspeft import TSPEFT
from .models.configs.weightlora import WeightLoRA

__all__ = ["CCM", "TSPEFT", "Flops", "GateRA", "MaskLoRA", "WeightLoRA"]
