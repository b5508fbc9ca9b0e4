"""The Python models of the repository compute what this package computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eao.config import TextConfig
from eao.data.sampling import create_audio, create_video
from eao.data.text import build_text_encoder
from eao.features.spectrogram import log_mel, window_and_basis

from .conftest import TEXT_FOLDERS, load_model_file

WORDS = Path(__file__).parents[2] / "golden" / "data" / "tiny_w2v.bin"


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.integers(0, 70), min_size=1, max_size=2),
    tokens=st.sampled_from([1, 4, 6, 48]),
    strategy=st.sampled_from(["clip", "nearest", "max_pool"]),
    seed=st.integers(0, 3),
)
def test_video_tokens(rows: list[int], tokens: int, strategy: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    streams = [rng.standard_normal((n, 3 + i)).astype(np.float32) for i, n in enumerate(rows)]
    for x in streams:
        x[::5] = 0  # of no length: such rows stay zero
    ours = load_model_file("frames", "eao_sampling").create_video(streams, tokens, strategy)
    theirs = create_video(streams[0] if len(streams) == 2 else None, streams[-1], tokens, strategy)  # type: ignore[arg-type]
    for found, wanted in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_one_pooled_token_for_avlnet() -> None:
    rng = np.random.default_rng(0)
    streams = [rng.standard_normal((n, 4)).astype(np.float32) for n in (5, 3)]
    video, mask = load_model_file("frames", "eao_sampling").create_video(streams, 0, "clip")
    np.testing.assert_array_equal(video[0], create_video(*streams, 0)[0])
    assert mask.tolist() == [True]


@pytest.mark.parametrize("samples", [0, 1, 2, 159, 160, 401, 16_000, 48_123, 4096 * 160 + 77])
@pytest.mark.parametrize("kind", ["noise", "tone", "silence"])
def test_spectrogram(samples: int, kind: str) -> None:
    time = np.arange(samples) / 16_000
    waves = {
        "noise": np.random.default_rng(0).standard_normal(samples) * 0.1,
        "tone": np.sin(2 * np.pi * 440 * time) * np.exp(-3 * time),
        "silence": np.zeros(samples),
    }
    wave = waves[kind].astype(np.float32)
    found = load_model_file("sound", "eao_spectrogram").log_mel(wave, *window_and_basis())
    wanted = log_mel(wave)
    assert (found.shape, found.dtype) == (wanted.shape, np.float32)
    # One rounding of a float32 of this size, which a product of matrices of another height may cause.
    np.testing.assert_allclose(found, wanted, atol=1.6e-5)


@pytest.mark.parametrize("frames", [0, 3, 64, 65])
def test_audio(frames: int) -> None:
    spectrogram = np.random.default_rng(0).standard_normal((40, frames)).astype(np.float32)
    found = load_model_file("sound", "eao_spectrogram").create_audio(spectrogram, 64)
    for ours, theirs in zip(found, create_audio(spectrogram, 64), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_word_vectors() -> None:
    module = load_model_file("vectors", "eao_words")
    vectors = module.WordVectors(WORDS, 30, 4)
    theirs = build_text_encoder(TextConfig(path=str(WORDS), max_words=4))
    sentences = ["the man plays guitar", "the zzz dog", "dog", "a man in the road with the dog"]
    found = vectors(sentences)
    text, mask = theirs.encode(sentences)
    np.testing.assert_array_equal(found["text"], text)
    np.testing.assert_array_equal(found["text_mask"], mask)
    for sentence, said in (("?!", "has no words"), ("xyzzy", "is in the vocabulary")):
        with pytest.raises(ValueError, match=said):
            vectors([sentence])


def test_a_large_file_of_word_vectors_is_read_in_pieces(tmp_path: Path) -> None:
    dim, count = 300, 20_000  # 24 MB: more than is read at once
    values = np.arange(count * dim, dtype=np.float32).reshape(count, dim)
    with (tmp_path / "words.bin").open("wb") as file:
        file.write(f"{count} {dim}\n".encode())
        for i, row in enumerate(values):
            file.write(f"word{i} ".encode() + row.tobytes() + (b"\n" if i % 2 else b""))
    vectors = load_model_file("vectors", "eao_words").WordVectors(tmp_path / "words.bin", dim, 3)
    found = vectors([f"word0 word{count - 1} word13999"])
    np.testing.assert_array_equal(found["text"][0], values[[0, count - 1, 13999]])


def test_word_vectors_that_end_early_are_refused(tmp_path: Path) -> None:
    (tmp_path / "words.bin").write_bytes(WORDS.read_bytes()[:-10])
    with pytest.raises(ValueError, match="ends after"):
        load_model_file("vectors", "eao_words").WordVectors(tmp_path / "words.bin", 30, 3)


@pytest.fixture(scope="module", params=["minilm", "clip"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """The ids of the repository's model, and the text encoder, each with its files."""
    import json
    import shutil

    from eao.export.words import write_words

    folder: Path = tmp_path_factory.mktemp(request.param)
    config = TextConfig(encoder=request.param, path=str(TEXT_FOLDERS[request.param](folder)), max_words=5)
    write_words(config, folder)
    facts = json.loads((folder / "words.json").read_text())
    facts["ids"] = min(facts["length"], 6) if request.param == "clip" else facts["length"]
    shutil.copy(folder / "words.tokenizer.json", folder / "tokenizer.json")
    ids = load_model_file("sentences", "eao_tokens").TokenIds(folder / "tokenizer.json", facts)
    return ids, build_text_encoder(config), folder, facts


def embed(ids, folder: Path, facts: dict, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[no-untyped-def, type-arg]
    """Text tokens as the two models of the repository make them."""
    import onnxruntime

    from eao.serve.triton.graphs import write_words as write_graph

    graph = folder / "graph.onnx"
    if not graph.exists():
        write_graph(folder / "words.onnx", graph, facts["ids"], facts["max_words"])
    given = ids(sentences)
    return onnxruntime.InferenceSession(str(graph)).run(["text"], given)[0], given["text_mask"]


def test_text_tokens_of_many_odd_sentences(both) -> None:  # type: ignore[no-untyped-def]
    ids, encoder, folder, facts = both
    rng = np.random.default_rng(0)
    letters = list("abcxyz ?!'[]-éÉ視𒀀\u0301\n\t09_CAB<|>")
    sentences = ["".join(rng.choice(letters, rng.integers(0, 60))) for _ in range(1000)]
    sentences += ["𒀀 [SEP] cab [PAD]", "<|endoftext|> ab", "cab " * 50]
    text, mask = encoder.encode(sentences)
    known = [i for i, row in enumerate(mask) if row.any()]
    assert len(known) > 900
    found, found_mask = embed(ids, folder, facts, [sentences[i] for i in known])
    np.testing.assert_array_equal(found_mask, mask[known])
    np.testing.assert_allclose(found, text[known], atol=1e-5)
    for i in sorted(set(range(len(sentences))) - set(known)):
        with pytest.raises(ValueError, match=r"has no words|is in the vocabulary"):
            ids([sentences[i]])


def test_more_words_than_the_network_takes(tmp_path: Path) -> None:
    import json

    from eao.export.words import write_words

    config = TextConfig(encoder="clip", path=str(TEXT_FOLDERS["clip"](tmp_path)), max_words=30)
    write_words(config, tmp_path)
    facts = {**json.loads((tmp_path / "words.json").read_text()), "ids": 14}
    ids = load_model_file("sentences", "eao_tokens").TokenIds(tmp_path / "words.tokenizer.json", facts)
    sentences = ["a b c d e f g h i j k l m n o p q r s t u", "ab"]
    found, found_mask = embed(ids, tmp_path, facts, sentences)
    text, mask = build_text_encoder(config).encode(sentences)
    np.testing.assert_array_equal(found_mask, mask)
    np.testing.assert_allclose(found, text, atol=1e-5)
