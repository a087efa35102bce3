"""`gatefx inspect FOLDER --text "…" --html out.html`: what saved gates decide about the tokens of one sentence."""

from __future__ import annotations

from pathlib import Path

from ..deploy import optimize
from ..errors import InputError
from .heat_map import heat_rows, write_heat_map
from .model_folder import open_model_folder
from .model_loading import example_batch, load_gated, load_tokenizer


def write_text_map(folder: Path, text: str, out: Path, *, base: str | None = None) -> None:
    """Load the gates of `folder` over their base model, run them on `text`, and write the heat map to `out`.

    Args:
        folder: what gated.save_pretrained wrote; base: overrides the base model that the adapter names.

    Raises:
        InputError: an empty text, or a folder without gates; SiteError: no gate that decides token by token.
    """
    opened = open_model_folder(folder, base)
    if opened.manifest is None:
        raise InputError(
            "The folder holds an adapter without gates, so nothing decides about tokens.",
            given=str(folder),
            expected="a folder that gated.save_pretrained wrote",
            remedy="gatefx optimize ADAPTER OUT --method masklora --data sentences.txt, then inspect OUT",
        )
    if not text.strip():
        raise InputError("There is no text to show.", given=repr(text), expected="a sentence")
    tokenizer = load_tokenizer(opened)
    model = optimize(load_gated(opened, example_batch(tokenizer)), progress=False)
    encoded = tokenizer(text, return_tensors="pt", truncation=True)
    inputs = {name: encoded[name] for name in model.signature.input_names if name in encoded}
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"][0])
    write_heat_map(heat_rows(model, inputs), tokens, out, title=f"Tokens that {', '.join(model.methods)} keeps")
