"""Write the cases of the C++ tests: small bundles, and what Python makes of odd strings, sentences and tensors.

    python serve/cpp/tests/expected.py build/cpp/tests/cases

A folder that holds them already, made by the same sources, is left as it is.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from odd_strings import PLAIN, odd_strings
from torch import Tensor

import eao
from eao.config import Config, DataConfig, ModelConfig, TextConfig
from eao.data import text
from eao.data.text import build_text_encoder, minilm_folder, tokenize
from eao.export import manifest, words
from eao.export.bundle import write_bundle
from eao.export.encoders import input_specs
from eao.export.runtime import Bundle
from eao.files import atomic_path, sha256, write_json
from eao.model import Batch, build_model

MAX_WORDS = 20
SENTENCES = [
    *("a dog barks", "A CAT sleeps in the café", "the dog's don't", "rain on a tin roof, and thunder", "speech"),
    *("a " * 50 + "dog", "İstanbul e\u0301tude", "[SEP] a dog", "日本 dog 語", "the dog\u200b 👩‍👧 runs", "3.5 km/h"),
]
ENCODERS = {
    "word2vec": "text,video,video-audio,text-video",
    "minilm": "text",
    "clip": "text",
}


def write_cases(out: Path) -> None:
    """Every case in a folder of its own, unless all are there."""
    here = Path(__file__).parent
    made_by = (here / "expected.py", here / "odd_strings.py", words.__file__, text.__file__, manifest.__file__)
    sources = b"".join(Path(file).read_bytes() for file in made_by)
    stamp = {"sources": hashlib.sha256(sources).hexdigest(), "eao": eao.__version__}
    if (out / "stamp.json").is_file() and json.loads((out / "stamp.json").read_text()) == stamp:
        return
    strings = odd_strings()
    with atomic_path(out) as folder:
        folder.mkdir()
        for name, encoders in ENCODERS.items():
            write_case(folder / name, name, encoders, strings)
        write_json(folder / "stamp.json", stamp)


def write_case(folder: Path, name: str, encoders: str, strings: list[str]) -> None:
    """A bundle, and what Python computes with it."""
    folder.mkdir()
    text_config = {"word2vec": word_vectors, "minilm": minilm, "clip": clip}[name](folder, strings)
    encoder = build_text_encoder(text_config)
    tokens: dict[str, Any] = {"strings": strings, "words": [tokenize(s) for s in strings]}
    if name != "word2vec":
        tokenizer = encoder.words.tokenizer  # type: ignore[attr-defined]
        given = [" ".join(found) for found in tokens["words"]] if name == "clip" else strings
        tokens["ids"] = [tokenizer(s, add_special_tokens=False)["input_ids"] for s in given]
    (folder / "tokens.json").write_text(json.dumps(tokens), encoding="utf-8")
    torch.manual_seed(0)
    model_config = ModelConfig(
        text_dim=encoder.dim,
        video_dim=10,
        embedding_dim=16,
        fusion={"embed_dim": 32, "num_heads": 2},  # type: ignore[arg-type]
        audio={"version": "v1", "channels": (4, 4), "blocks": (1,)},  # type: ignore[arg-type]
    )
    config = Config(model=model_config, data=DataConfig(text=text_config))
    model = build_model(model_config).eval()
    with torch.no_grad():  # larger than at initialisation, so that every input shows
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    write_bundle(model, folder / "bundle", config, encoders)
    loaded = eao.load(folder / "bundle")
    files = empty_to_long(folder)
    expected = {
        "encoders": loaded.encoders,
        "dim": loaded.embedding_dim,
        "model": loaded.model_hash,
        "sentences": SENTENCES,
        "embeddings": loaded.embed(text=SENTENCES).tolist(),
        "tensors": {e: tensors(loaded.backend, model, e) for e in loaded.encoders},
        "hashes": {file.name: sha256(file) for file in files},
    }
    (folder / "embeddings.json").write_text(json.dumps(expected), encoding="utf-8")


def tensors(bundle: Any, model: Any, encoder: str) -> dict[str, Any]:
    """Inputs of an encoder with rows of different length, and their embeddings."""
    assert isinstance(bundle, Bundle)
    generator = torch.Generator().manual_seed(1)
    rows, counts = 3, {"text": MAX_WORDS, "video": 5, "audio": 192}
    batch = Batch()
    for name, dim in (("text", model.config.text_dim), ("video", 10), ("audio", 40)):
        count = counts[name]
        values: Tensor = torch.randn(rows, count, dim, generator=generator)
        mask = torch.arange(count) < torch.tensor([[count], [count // 2], [1]])
        setattr(batch, name, values if name != "audio" else (values.mT * 15 - 40).contiguous())
        setattr(batch, f"{name}_mask", mask)
    found: dict[str, Any] = {}
    if encoder == "text-video":
        found["sentences"] = SENTENCES[:rows]
        batch.text, batch.text_mask = eao.load(bundle.path).text_encoder.encode(SENTENCES[:rows])
    found["inputs"] = {spec.name: as_json(getattr(batch, spec.name)) for spec in input_specs(model, encoder)}
    found["embeddings"] = bundle.encode(batch, encoder).tolist()
    return found


def as_json(tensor: Tensor) -> dict[str, Any]:
    """A tensor as C++ reads it; masks as 0 and 1."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    values = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor
    return {"dtype": dtype, "shape": list(tensor.shape), "values": values.flatten().tolist()}


def empty_to_long(folder: Path) -> list[Path]:
    """Files around the sizes at which a hash function does something else."""
    files = []
    for size in (0, 1, 55, 56, 63, 64, 65, 1 << 20, (1 << 20) + 1):
        files.append(folder / f"{size}.bytes")
        files[-1].write_bytes(random.Random(size).randbytes(size))
    return files


def word_vectors(folder: Path, strings: list[str]) -> TextConfig:
    """Vectors of the words of every second string, and of those in the sentences but for a few."""
    found = [word for s in [*strings[::2], *SENTENCES, *PLAIN] for word in tokenize(s) if len(word) < 1000]
    known = sorted({*found} - {"tin", "thunder"})
    vectors = np.random.default_rng(0).standard_normal((len(known), 12)).astype(np.float32)
    path = folder / "vectors.bin"
    with path.open("wb") as file:
        file.write(f"{len(known)} 12\n".encode())
        for word, vector in zip(known, vectors, strict=True):
            file.write(word.encode() + b" " + vector.tobytes() + b"\n")
    return TextConfig(encoder="word2vec", path=str(path), max_words=MAX_WORDS)


def minilm(folder: Path, strings: list[str]) -> TextConfig:
    """The real MiniLM."""
    return TextConfig(encoder="minilm", path=str(minilm_folder()), max_words=MAX_WORDS)


def clip(folder: Path, strings: list[str]) -> TextConfig:
    """A CLIP text tower with random weights, and a byte pair encoding learned from the strings."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    target = folder / "clip"
    target.mkdir()
    start, end = "<|startoftext|>", "<|endoftext|>"
    letters = [chr(c) for c in [*range(33, 127), *range(161, 173), *range(174, 324)]]
    base = [*letters, *(x + "</w>" for x in letters)]
    assert len(base) == 512  # those of the 256 bytes
    split = CLIPTokenizer(vocab={x: i for i, x in enumerate([*base, start, end])}, merges=[]).backend_tokenizer
    assert split.normalizer is not None and split.pre_tokenizer is not None
    counts: Counter[tuple[str, ...]] = Counter()
    for s in [*strings, *PLAIN * 20, *SENTENCES]:
        normal = split.normalizer.normalize_str(" ".join(tokenize(s)))
        for piece, _ in split.pre_tokenizer.pre_tokenize_str(normal):
            if len(piece) < 100:
                counts[(*piece[:-1], piece[-1] + "</w>")] += 1
    merges = learn_merges(counts, 400)
    vocabulary = {x: i for i, x in enumerate([*base, *(a + b for a, b in merges), start, end])}
    (target / "vocab.json").write_text(json.dumps(vocabulary))
    (target / "merges.txt").write_text("".join(["#version: 0.2\n", *(f"{a} {b}\n" for a, b in merges)]))
    (target / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        projection_dim=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=vocabulary[start],
        eos_token_id=vocabulary[end],
    )
    CLIPTextModelWithProjection(config).save_pretrained(target)
    return TextConfig(encoder="clip", path=str(target), max_words=MAX_WORDS)


def learn_merges(counts: Counter[tuple[str, ...]], count: int) -> list[tuple[str, str]]:
    """The pairs that byte pair encoding merges, most frequent first; each text they make comes once."""
    merges: list[tuple[str, str]] = []
    made: set[str] = set()
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, times in counts.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += times if "".join(pair) not in made else 0
        (a, b), _ = max(pairs.items(), key=lambda item: (item[1], item[0]))
        merges.append((a, b))
        made.add(a + b)
        merged: Counter[tuple[str, ...]] = Counter()
        for word, times in counts.items():
            merged[tuple(_merge(word, a, b))] += times
        counts = merged
    return merges


def _merge(word: tuple[str, ...], a: str, b: str) -> list[str]:
    result: list[str] = []
    for symbol in word:
        if result and result[-1] == a and symbol == b:
            result[-1] = a + b
        else:
            result.append(symbol)
    return result


if __name__ == "__main__":
    write_cases(Path(sys.argv[1]).absolute())
