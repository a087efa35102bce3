"""Facts about architectures that no graph shows."""

from __future__ import annotations

#: Names of the task heads that are trained whole beside adapters, and that "all-linear" leaves alone.
HEAD_MODULES = ("classifier", "score", "qa_outputs")

#: Names of output projections that "all-linear" leaves alone without training them.
OUTPUT_PROJECTIONS = ("lm_head", "embed_out", "proj_out", "decoder.weight")

#: Modules whose class draws a random number while training to skip a layer (LayerDrop). The draw is control flow on
#: data, which no single graph can hold; they are captured in eval mode, their children still in training mode.
LAYER_DROP_CLASSES = (
    "BartEncoder",
    "BartDecoder",
    "MBartEncoder",
    "MBartDecoder",
    "PegasusEncoder",
    "PegasusDecoder",
    "LEDEncoder",
    "LEDDecoder",
    "WhisperEncoder",
    "WhisperDecoder",
    "OPTDecoder",
)

#: The input that says which positions are real, and what it says for them.
ATTENTION_MASK = "attention_mask"

#: Inputs whose axis 1 is one and the same length, group by group.
LENGTH_GROUPS = (
    ("input_ids", ATTENTION_MASK, "token_type_ids", "position_ids", "inputs_embeds"),
    ("decoder_input_ids", "decoder_attention_mask", "decoder_inputs_embeds"),
)
