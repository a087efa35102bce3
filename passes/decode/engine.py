"""A deployed decoder in torch, as an engine of `runtime/generation`."""

from __future__ import annotations

from torch import nn

from ...errors import InputError
from ...runtime.cache_names import LOGITS
from ...runtime.generation.engine import DecoderFacts
from ...runtime.generation.torch_engine import TorchEngine
from ...runtime.generation.update_records import UpdateRecords
from ..deployed import DeployedModel
from ..graph.edit import answers_of, shape_of
from ..graph.signature import signature_of
from .programs import DecoderPrograms
from .recording import RecordedProgram, check_recorded


def engine_of(model: DeployedModel, *, masked: bool = False, records: UpdateRecords | None = None) -> TorchEngine:
    """The engine of a model.

    Args:
        masked: on the dense prefill that says what the compacted one must equal; records: is told what gates on tokens
            decide, which runs slower.

    Raises:
        InputError: the model is no decoder that can generate, or has nothing to record.
    """
    programs = required_programs(model)
    prefill, decode = programs.reference if masked else programs.prefill, programs.decode
    run_prefill: nn.Module = prefill
    run_decode: nn.Module = decode
    if records is not None:
        check_recorded(model)
        run_prefill, run_decode = (
            RecordedProgram(prefill, records, "prefill"),
            RecordedProgram(decode, records, "decode"),
        )
    return TorchEngine(
        (run_prefill, signature_of(prefill).input_names),
        (run_decode, signature_of(decode).input_names),
        facts=facts_of(model),
        name=f"{model.signature.architecture} {id(model):x}",
        resolved=lambda budget: model.budget if budget is None else model.resolved_budget(budget),  # type: ignore[arg-type]
        at=model.at_budget,
    )


def required_programs(model: DeployedModel) -> DecoderPrograms:
    """The graphs that generate.

    Raises:
        InputError: there are none.
    """
    if model.programs is None:
        notes = [note for note in model.report.notes if "cannot generate" in note]
        raise InputError(
            "The model cannot generate.",
            given=notes[0]
            if notes
            else f"{model.signature.architecture}, inputs {', '.join(model.signature.input_names)}",
            expected="a decoder of transformers, prepared or optimized with input_ids and attention_mask",
            remedy="load a causal language model, and pass both inputs as example_inputs or in data",
        )
    return model.programs


def facts_of(model: DeployedModel) -> DecoderFacts:
    """What the model's config says of its tokens."""
    config, logits = model.config, answers_of(required_programs(model).decode.graph)[LOGITS]
    stop = getattr(config, "eos_token_id", None)
    stops = () if stop is None else (stop,) if isinstance(stop, int) else tuple(stop)
    pad = getattr(config, "pad_token_id", None)
    positions = getattr(config, "max_position_embeddings", None)
    return DecoderFacts(
        vocabulary=int(shape_of(logits)[-1]),
        positions=positions,
        stop=stops,
        pad=pad if isinstance(pad, int) and pad >= 0 else stops[0] if stops else 0,
    )
