"""export and load: a deployed model → one artifact folder → a session that runs it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import InputError, MethodError
from .passes.deployed import DeployedModel
