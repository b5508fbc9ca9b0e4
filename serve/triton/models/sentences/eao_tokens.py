"""Sentences as token ids, with the rules of `eao.data.text`, by the package `tokenizers` alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

# B sentences, L token ids with the special ones, N rows of text tokens


def tokenize(sentence: str) -> list[str]:
    """The words of a sentence: runs of letters of any script, digits, underscores and apostrophes."""
    return re.findall(r"[\w']+", sentence)


def shorten(sentence: str) -> str:
    """A sentence as messages show it."""
    return repr(sentence if len(sentence) <= 80 else sentence[:77] + "...")


class TokenIds:
    """Token ids of sentences, padded to a fixed length, so that Triton can batch any of them.

    Args:
        path: tokenizer.json.
        facts: of words.json: `encoder`, `max_words`, `length` and the ids `pad` and `unknown`; and `ids`, how many ids
            the network is given.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self._facts = facts
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length=facts["length"])

    def __call__(self, sentences: Sequence[str]) -> dict[str, np.ndarray]:
        """`input_ids` (B, L) int64, `attention_mask` (B, L) int64, and `text_mask` (B, N) bool, True = a word.

        Raises:
            ValueError: naming the first sentence that has no known word.
        """
        length, rows = self._facts["ids"], self._facts["max_words"]
        ids = np.full((len(sentences), length), self._facts["pad"], dtype=np.int64)
        attention = np.zeros((len(sentences), length), dtype=np.int64)
        counts = np.zeros(len(sentences), dtype=np.int64)
        # Of CLIP's network only words are shown, as the training data had them.
        shown = [" ".join(tokenize(s)) for s in sentences] if self._facts["encoder"] == "clip" else list(sentences)
        for row, encoded in enumerate(self._tokenizer.encode_batch(shown)):
            found = np.array(encoded.ids, dtype=np.int64)
            is_word = np.array(encoded.special_tokens_mask) == 0
            if (found[is_word] != self._facts["unknown"]).any():
                counts[row] = is_word.sum()
            # A causal network's states do not depend on what is cut off here, and others were cut to this length.
            ids[row, : len(found)] = found[:length]
            attention[row, : len(found)] = 1
        for sentence, count in zip(sentences, counts, strict=True):
            if not count:
                said = "none of the words in {} is in the vocabulary" if tokenize(sentence) else "{} has no words"
                raise ValueError(said.format(f"the sentence {shorten(sentence)}"))
        return {
            "input_ids": ids,
            "attention_mask": attention,
            "text_mask": np.arange(rows) < np.minimum(counts, length - 1)[:, None],
        }
