"""What turns sentences into text tokens, for programs that have neither PyTorch nor transformers: C++ and servers.

Beside the text encoder's own files, a bundle's folder `text` holds

* `words.json`: which encoder, its sizes and the ids of its special tokens;
* `words.onnx`: the frozen network, from `input_ids` and `attention_mask`, int64 (B, L), to `states`, float32 (B, L, D);
* `words.tokenizer.json`: the tokenizer in the format of the package tokenizers, as transformers uses it, with its
  truncation and padding set.

Of a sentence's states, those between start and end are its tokens, at most `max_words` of them, and none at all where
every id is the unknown one. Word vectors need no network: there, `words.json` alone is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from eao.config import TextConfig
from eao.data.text import ClipText, HiddenStates, MiniLMText, WordStates, build_text_encoder
from eao.errors import DataError
from eao.export.encoders import BATCH, TEXT_TOKENS, Axis, InputSpec
from eao.export.onnx import OPSET, Subject, export_subject
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
