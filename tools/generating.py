"""What `gatefx generate` does: prompts in, the texts that a decoder goes on with out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..config import Budgets
from ..errors import InputError, UntrainedGateError
from ..runtime.artifact import Artifact
from ..runtime.manifest import MANIFEST_FILE
from .console import Stages, messages, output, without_warnings
from .model_folder import GATES, open_model_folder
from .texts import read_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..passes.deployed import DeployedModel
    from ..runtime.generation.loop import Generation
    from ..runtime.sessions.onnxruntime import OnnxSession

    Tokenized = tuple["OnnxSession | DeployedModel", PreTrainedTokenizerBase]

_DECODER = "decoder"
_BATCH = 8  # texts of --data that run together
_EXPORTED = "a folder that `gatefx export onnx … --generate` wrote, or one of saved gates"


@dataclass(frozen=True)
class GenerateRequest:
    """The options of the command; see its --help."""

    folder: Path
    prompts: tuple[str, ...]
    max_tokens: int
    budget: Budgets | None
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int | None
    chunk: int | None
    max_cache_len: int | None
    evict_every: int | None
    data: Path | None
    base: str | None
    threads: int | None


def run_generate(request: GenerateRequest, *, as_json: bool) -> None:
    """Generate behind every prompt; one alone is printed as it comes.

    Raises:
        InputError: no prompt, a folder that does not generate, or what `gatefx.generate` refuses.
    """
    prompts = _prompts(request.prompts)
    stages = Stages(messages())
    with stages.stage("loading libraries"):
        opener = _opener(request)
    with stages.stage("opening the model"), without_warnings():
        model, tokenizer = opener()
    generation = _start(request, model, [tokenizer(prompt)["input_ids"] for prompt in prompts])
    if as_json:
        typer.echo(json.dumps(_result(generation, tokenizer, prompts), indent=2))
        return
    if len(prompts) == 1:
        _stream(generation, tokenizer)
    else:
        for number, text in enumerate(_texts(generation, tokenizer), 1):
            output().print(f"[{number}] {text}", markup=False, soft_wrap=True)
    stages.say(_summary(generation))


def _prompts(given: tuple[str, ...]) -> list[str]:
    """The prompts; "-" stands for all of standard input."""
    prompts = [typer.get_text_stream("stdin").read() if text == "-" else text for text in given]
    empty = [number for number, text in enumerate(prompts, 1) if not text.strip()]
    if not prompts or empty:
        raise InputError(
            "There is no prompt." if not prompts else "A prompt is empty.",
            given=f"prompt {empty[0]}" if empty else "a folder alone",
            expected="one text or more behind the folder; - reads standard input",
        )
    return prompts


def _opener(request: GenerateRequest) -> Callable[[], Tokenized]:
    """What opens the folder. What its files alone can refuse is refused here.

    Raises:
        InputError: no such folder, or one that does not generate; UntrainedGateError: an adapter without gates.
    """
    if (request.folder / MANIFEST_FILE).is_file():
        artifact = Artifact.open(request.folder)
        if artifact.manifest.get("kind") != GATES:
            return _exported(request, artifact)
    folder = open_model_folder(request.folder, request.base)
    if folder.manifest is None:
        raise UntrainedGateError(
            "The adapter has no gates, so nothing is deployed that could generate.",
            given=str(request.folder),
            expected=_EXPORTED,
            remedy="gatefx optimize MODEL OUT --data FILE, and generate with OUT",
        )
    texts = None if request.data is None else read_texts(request.data)

    def opened() -> Tokenized:
        from ..deploy import optimize
        from ..models.packaged_text import batches
        from .model_loading import example_batch, load_gated, load_tokenizer

        tokenizer = load_tokenizer(folder)
        data = None if texts is None else batches(tokenizer, texts, batch_size=_BATCH)
        gated = load_gated(folder, data[0] if data else example_batch(tokenizer))
        return optimize(gated, data=data, progress=False), tokenizer

    return opened


def _exported(request: GenerateRequest, artifact: Artifact) -> Callable[[], Tokenized]:
    if artifact.manifest.get("kind") != _DECODER:
        raise InputError(
            "The exported model reads whole texts and does not generate.",
            given=f"{artifact.path}, kind {artifact.manifest.get('kind')!r}",
            expected=_EXPORTED,
            remedy="export it again: gatefx export onnx MODEL OUT --generate",
        )
    if request.data is not None or request.base is not None:
        raise InputError(
            "An exported model takes no data and no base model.",
            given=f"{artifact.path} with --data or --base",
            remedy="leave them out; they belong to saved gates",
        )
    from ..loading import load
    from .artifact_tokens import artifact_tokenizer

    return lambda: (load(artifact.path, threads=request.threads), artifact_tokenizer(artifact))  # type: ignore[return-value]  # its kind says so


def _start(request: GenerateRequest, model: Any, ids: Sequence[Sequence[int]]) -> Generation:
    from ..generating import generate

    return generate(
        model, ids, max_new_tokens=request.max_tokens, temperature=request.temperature, top_k=request.top_k,
        top_p=request.top_p, seed=request.seed, budget=request.budget,  # type: ignore[arg-type]  # a parsed one holds no None
        chunk=request.chunk, max_cache_len=request.max_cache_len, evict_every=request.evict_every,
    )  # fmt: skip


def _stream(generation: Generation, tokenizer: PreTrainedTokenizerBase) -> None:
    from transformers import TextStreamer

    streamer = TextStreamer(tokenizer, skip_special_tokens=True)
    for tokens in generation:
        streamer.put(tokens)
    streamer.end()


def _texts(generation: Generation, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    rows = zip(generation.tokens, generation.lengths.tolist(), strict=True)
    return [str(tokenizer.decode(row[:length], skip_special_tokens=True)) for row, length in rows]


def _result(generation: Generation, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> dict[str, Any]:
    texts = _texts(generation, tokenizer)
    rows = zip(prompts, texts, generation.lengths.tolist(), strict=True)
    return {
        "generated": [{"prompt": prompt, "text": text, "tokens": length} for prompt, text, length in rows],
        "prefill": asdict(generation.prefill),
        "decode": asdict(generation.decode),
    }


def _summary(generation: Generation) -> str:
    prefill, decode = generation.prefill, generation.decode
    speed = f", {decode.tokens / decode.seconds:.1f} tokens/s" if decode.seconds else ""
    return (
        f"{prefill.tokens} tokens read in {prefill.seconds:.2f} s, {decode.calls} steps{speed}, "
        f"cache {decode.bytes / 1e6:.2f} MB"
    )
