"""Load the model of a `ModelFolder`: its base, its adapter or gates, and its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import InputError
from ..models.families import HEAD_MODULES
from ..models.hf import quiet, transformers_for
from ..models.packaged_text import batches
from ..passes.gated import GatedModel
from ..saving import from_pretrained
from .model_folder import ADAPTER_WEIGHTS, ModelFolder
from .peft_models import load_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FEATURE = "reading a model folder"
_AUTO_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "FEATURE_EXTRACTION": "AutoModel",
}
_LABELLED = ("SEQ_CLS", "TOKEN_CLS")
_NAMED = 4  # missing weights that an error names
_EXAMPLES = ("Two sentences of different length show which axes vary.", "Here is the second one.")


def load_tokenizer(folder: ModelFolder) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside the adapter, else the base model's.

    Raises:
        InputError: neither has one.
    """
    transformers = transformers_for(_FEATURE)
    beside = (folder.path / "tokenizer_config.json").is_file()
    source = str(folder.path) if beside else folder.base
    try:
        with quiet(transformers):
            return transformers.AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise _unreadable("tokenizer", source, error) from error


def example_batch(tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """Two made-up sentences as a batch: enough to capture a model, not to calibrate it."""
    return batches(tokenizer, _EXAMPLES, batch_size=len(_EXAMPLES))[0]


def load_gated(folder: ModelFolder, example: Mapping[str, Tensor]) -> GatedModel:
    """The trained gates of a folder over their base model.

    Raises:
        InputError, ArtifactError: a base model that is missing, incomplete, or another one.
    """
    return from_pretrained(load_base(folder), folder.path, example_inputs=example, share_frozen=True)


def load_peft(folder: ModelFolder) -> nn.Module:
    """The PEFT model of a folder without gates, in eval mode.

    Raises:
        InputError: a base model that is missing or incomplete, or an adapter of another one.
    """
    base = load_base(folder)
    try:
        return load_adapter(base, folder.path).eval()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _unreadable("adapter", str(folder.path), error) from error


def load_base(folder: ModelFolder) -> nn.Module:
    """The base model in float32 and eval mode, with as many labels as the adapter's head has.

    Raises:
        InputError: it cannot be read, or lacks weights that the adapter does not bring: they would be random.
    """
    import torch

    transformers = transformers_for(_FEATURE)
    saved = _saved_names(folder)
    labels = _label_count(saved) if folder.task_type in _LABELLED else None
    options: dict[str, Any] = {} if labels is None else {"num_labels": labels}
    try:
        with quiet(transformers):
            kind = _model_class(transformers, folder)
            model, found = kind.from_pretrained(folder.base, dtype=torch.float32, output_loading_info=True, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise _unreadable("base model", folder.base, error) from error
    absent = sorted(name for name in found["missing_keys"] if not any(name in key for key in saved))
    if absent:
        raise InputError(
            "The base model lacks weights, and the adapter does not bring them: they would be random.",
            given=f"{folder.base} without {', '.join(absent[:_NAMED])}" + (" …" if len(absent) > _NAMED else ""),
            expected="the checkpoint that the adapter was trained on",
            remedy="pass --base FOLDER with a checkpoint that has them",
        )
    loaded: nn.Module = model.eval()
    return loaded


def _model_class(transformers: Any, folder: ModelFolder) -> Any:
    """The auto class of the adapter's task, else the architecture that the base model's config names."""
    if folder.task_type in _AUTO_CLASSES:
        return getattr(transformers, _AUTO_CLASSES[folder.task_type])
    config = transformers.AutoConfig.from_pretrained(folder.base)
    architecture = (config.architectures or ["AutoModel"])[0]
    return getattr(transformers, architecture, transformers.AutoModel)


def _saved_names(folder: ModelFolder) -> dict[str, list[int]]:
    """Names and shapes in the adapter's weights."""
    path = folder.path / ADAPTER_WEIGHTS
    try:
        with safe_open(path, "pt") as tensors:
            return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError) as error:
        raise _unreadable("adapter", str(path), error) from error


def _label_count(saved: Mapping[str, list[int]]) -> int | None:
    """Rows of the saved head's last layer; None where no head was saved."""
    heads = [
        shape
        for name, shape in saved.items()
        if name.endswith(".weight") and "lora_" not in name and any(part in HEAD_MODULES for part in name.split("."))
    ]
    # A head of several layers ends in the narrowest one.
    return min((shape[0] for shape in heads), default=None)


def _unreadable(what: str, source: str, error: Exception) -> InputError:
    return InputError(
        f"The {what} cannot be read.",
        given=f"{source}: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}",
        expected="a folder that transformers can load",
        remedy="pass --base FOLDER" if what != "adapter" else "save the adapter again",
    )
