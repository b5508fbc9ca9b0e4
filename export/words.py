"""What turns sentences into text tokens without a PyTorch model and transformers: for bundles, C++ and servers.

Beside the text encoder's own files, a bundle's folder `text` holds

* `words.json`: which encoder, its sizes and the ids of its special tokens;
* `words.onnx`: the frozen network, from `input_ids` and `attention_mask`, int64 (B, L), to `states`, float32 (B, L, D);
* `words.tokenizer.json`: the tokenizer in the format of the package tokenizers, as transformers uses it, with its
  truncation and padding set.

Of a sentence's states, those between start and end are its tokens, at most `max_words` of them, and none at all where
every id is the unknown one. Word vectors need no network: there, `words.json` alone is written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from eao.config import TextConfig
from eao.data.text import (
    ClipText,
    HiddenStates,
    KeptStates,
    MiniLMText,
    WordStates,
    build_text_encoder,
    pad_words,
    replace_surrogates,
    spaced_words,
)
from eao.errors import DataError
from eao.export.encoders import BATCH, TEXT_TOKENS, Axis, InputSpec
from eao.export.onnx import OPSET, Subject, export_subject
from eao.export.session import open_session
from eao.files import write_json, write_text

# B sentences, L token ids of one, special ones included, D width

WORDS_JSON = "words.json"
WORDS_ONNX = "words.onnx"
WORDS_TOKENIZER = "words.tokenizer.json"
INPUTS = ("input_ids", "attention_mask")
STATES = "states"


def write_words(config: TextConfig, folder: Path) -> list[str]:
    """Write what stands above into the folder with the text encoder's files.

    Args:
        config: with the path of the encoder's files in `folder`.
        folder: the folder `text` of a bundle.

    Returns:
        the names of the files written.

    Raises:
        ExportError: the network cannot be exported.
        DataError: the encoder's files cannot be read.
        MissingDependencyError: a package for that is not installed.
    """
    facts: dict[str, Any] = {"encoder": config.encoder, "max_words": config.max_words}
    if config.encoder == "word2vec":
        assert config.path is not None
        path = Path(config.path)
        write_json(folder / WORDS_JSON, {**facts, "dim": _width(path), "file": path.name})
        return [WORDS_JSON]
    encoder = build_text_encoder(config)
    assert isinstance(encoder, MiniLMText | ClipText)
    words = encoder.words
    shape = (Axis(BATCH), Axis(TEXT_TOKENS, maximum=words.network.max_length))
    inputs = tuple(InputSpec(name, "int64", shape) for name in INPUTS)
    subject = Subject(f"text encoder {config.encoder}", _Network(words.network), inputs, STATES)
    graph = export_subject(subject, folder / WORDS_ONNX, OPSET)
    write_text(folder / WORDS_TOKENIZER, _tokenizer_json(words))
    tokenizer = words.tokenizer
    start = tokenizer.cls_token_id if config.encoder == "minilm" else tokenizer.bos_token_id
    end = tokenizer.sep_token_id if config.encoder == "minilm" else tokenizer.eos_token_id
    ids = {"start": start, "end": end, "pad": tokenizer.pad_token_id, "unknown": tokenizer.unk_token_id}
    write_json(folder / WORDS_JSON, {**facts, "length": words.length, "dim": encoder.dim, **ids})
    external = [graph.external.name] if graph.external else []
    return [WORDS_JSON, WORDS_ONNX, WORDS_TOKENIZER, *external]


class GraphText:
    """The text encoder of a bundle in onnxruntime, on the CPU; see `eao.data.text.TextEncoder`.

    Its tokens are those of the PyTorch model to float32 accuracy, in a fraction of the time for a single sentence.

    Args:
        folder: with what `write_words` wrote for "minilm" or "clip".
        threads: of one run; by default as many as the machine has cores.

    Raises:
        ExportError: the graph cannot be opened.
        DataError: the tokenizer or the facts about it cannot be read.
        MissingDependencyError: onnxruntime is not installed.
    """

    def __init__(self, folder: str | Path, threads: int | None = None) -> None:
        from tokenizers import Tokenizer

        folder = Path(folder)
        try:
            file = folder / WORDS_JSON
            facts = json.loads(file.read_text(encoding="utf-8"))
            self.dim: int = facts["dim"]
            self.max_words: int = facts["max_words"]
            self._unknown: int = facts["unknown"]
            self._prepare = spaced_words if facts["encoder"] == "clip" else list[str]
            file = folder / WORDS_TOKENIZER
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises no class of its own
            raise DataError(f"cannot read {file}: {error}", "export the bundle again") from None
        self._session = open_session(folder / WORDS_ONNX, threads)
        self._states = KeptStates(self._compute)

    def encode(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See `eao.data.text.TextEncoder.encode`."""
        return pad_words(self._states(self._prepare(sentences)), self.max_words, self.dim)

    def _compute(self, sentences: list[str]) -> list[NDArray[np.float32]]:
        encoded = self._tokenizer.encode_batch(replace_surrogates(sentences))
        feeds = {
            "input_ids": np.array([e.ids for e in encoded], np.int64),
            "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
        }
        states = self._session.run([STATES], feeds)[0]
        found = []
        for ids, attention, row in zip(*feeds.values(), states, strict=True):
            last = attention.sum() - 1
            says_something = (ids[1:last] != self._unknown).any()
            found.append(row[1 : 1 + min(last - 1, self.max_words) * says_something].copy())
        return found


class _Network(nn.Module):
    """The network as a function of positional tensors, as every graph's module is."""

    def __init__(self, network: HiddenStates) -> None:
        super().__init__()
        self.network = network

    def forward(self, *tensors: Tensor) -> Tensor:
        states: Tensor = self.network(*tensors)
        return states


def _tokenizer_json(words: WordStates) -> str:
    """The tokenizer as it is used here: transformers changes parts of the file that it reads."""
    from tokenizers import Tokenizer

    tokenizer = words.tokenizer
    whole = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    whole.enable_truncation(words.length)
    whole.enable_padding(pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
    return str(whole.to_str())


def _width(path: Path) -> int:
    """The width that a file of word vectors states in its first line, "<words> <width>"."""
    with path.open("rb") as file:
        header = file.readline(100)
    try:
        _, width = map(int, header.split())
    except ValueError:
        raise DataError(
            f"{path} does not begin with the number of words and their width", "it must be in word2vec's binary format"
        ) from None
    return width
