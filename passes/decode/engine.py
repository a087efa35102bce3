"""A deployed decoder in torch, as an engine of `runtime/generation`."""

from __future__ import annotations

from torch import Tensor, fx

from ...errors import InputError
from ...runtime.cache_names import LOGITS, is_past, is_seen, is_states
from ...runtime.generation.engine import DecoderFacts
from ...runtime.generation.torch_engine import Program, TorchEngine
from ...runtime.generation.update_records import Phase, UpdateRecords
from ..deployed import DeployedModel
from ..find.answer_rows import has_encoder
from ..graph.edit import answers_of, shape_of
from ..graph.signature import signature_of
from .programs import DecoderPrograms
from .recording import RecordedProgram, check_recorded

_BY_PROMPT = ("masklora", "ccm")
_IN_PARTS = ("masklora",)


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
    if records is not None:
        check_recorded(model)

    def program(graph_module: fx.GraphModule, phase: Phase) -> Program:
        runs = graph_module if records is None else RecordedProgram(graph_module, records, phase)
        return Program(runs, signature_of(graph_module).input_names, lambda rows: _blank(graph_module, rows))

    return TorchEngine(
        program(prefill, "prefill"),
        program(decode, "decode"),
        lambda: program(programs.buffered_decode, "decode"),
        lambda: program(programs.reference_part if masked else programs.part, "prefill"),
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
            expected="a decoder of transformers, prepared or optimized with input_ids and attention_mask, or an "
            "encoder-decoder with decoder_input_ids beside them",
            remedy="load a language model, and pass all of its inputs as example_inputs or in data",
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
        start=_start(model) if has_encoder(model.graph_module) else (),
        chooses={name: decision.limit for name, decision in model.decisions.items() if name in _BY_PROMPT},
        streams=_IN_PARTS,
    )


def _start(model: DeployedModel) -> tuple[int, ...]:
    """What an encoder-decoder's answers start with.

    Raises:
        InputError: its config does not say.
    """
    start = getattr(model.config, "decoder_start_token_id", None)
    if not isinstance(start, int):
        raise InputError(
            "The model's config does not say what answers start with.",
            given=f"decoder_start_token_id={start!r}",
            expected="a token",
            remedy="set model.config.decoder_start_token_id before gatefx.optimize",
        )
    return (start,)


def _blank(program: fx.GraphModule, rows: int) -> dict[str, Tensor]:
    """A cache of so many sequences without a row, and scores that nothing was seen of."""
    found = {}
    like = next(program.parameters())
    for spec in signature_of(program).inputs:
        if is_past(spec.name) or is_seen(spec.name):
            sizes = (axis.size if axis.size is not None else 0 for axis in spec.axes[1:])
            dtype = like.dtype if is_states(spec.name) else spec.dtype
            found[spec.name] = like.new_zeros(rows, *sizes, dtype=dtype)
    return found
