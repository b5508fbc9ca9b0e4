"""Sentences as word2vec vectors, with the rules of `eao.data.text`, by numpy alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

# B sentences, N rows of text tokens, D width of a word's vector


def tokenize(sentence: str) -> list[str]:
    """The words of a sentence: runs of letters of any script, digits, underscores and apostrophes."""
    return re.findall(r"[\w']+", sentence)


def shorten(sentence: str) -> str:
    """A sentence as messages show it."""
    return repr(sentence if len(sentence) <= 80 else sentence[:77] + "...")


def read_word2vec(path: Path) -> tuple[dict[str, int], np.ndarray]:
    """Word vectors in word2vec's binary format: word -> the byte at which its vector begins, and the file's bytes.

    The file is mapped, not read: gigabytes of vectors cost memory only where words are looked up. Of equal words the
    first counts.
    """
    content = np.memmap(path, dtype=np.uint8, mode="r")
    positions: dict[str, int] = {}
    with path.open("rb") as file:
        count, dim = (int(number) for number in file.readline().split())
        position = file.tell()
        size = 4 * dim
        buffer, start = b"", position  # what lies at `start` of the file
        for _ in range(count):
            end = buffer.find(b" ", position - start)
            while end < 0 or end + 1 + size > len(buffer):
                more = file.read(1 << 24)
                if not more:
                    raise ValueError(f"{path} ends after {len(positions)} of {count} words")
                buffer, start = buffer[position - start :] + more, position
                end = buffer.find(b" ")
            word = buffer[position - start : end].lstrip(b"\n").decode("utf-8")
            positions.setdefault(word, start + end + 1)
            position = start + end + 1 + size
    return positions, content


class WordVectors:
    """One vector per word; words outside the vocabulary are dropped before the first N are taken.

    Args:
        path: word vectors in word2vec's binary format.
        dim: D.
        max_words: N.
    """

    def __init__(self, path: Path, dim: int, max_words: int) -> None:
        self._positions, self._content = read_word2vec(path)
        self._dim = dim
        self._max_words = max_words

    def __call__(self, sentences: Sequence[str]) -> dict[str, np.ndarray]:
        """`text` (B, N, D) float32, zero padded, and `text_mask` (B, N) bool, True = a word.

        Raises:
            ValueError: naming the first sentence that has no known word.
        """
        text = np.zeros((len(sentences), self._max_words, self._dim), dtype=np.float32)
        mask = np.zeros(text.shape[:2], dtype=bool)
        for row, sentence in enumerate(sentences):
            words = tokenize(sentence)
            found = [self._positions[word] for word in words if word in self._positions][: self._max_words]
            if not found:
                said = "none of the words in {} is in the vocabulary" if words else "{} has no words"
                raise ValueError(said.format(f"the sentence {shorten(sentence)}"))
            for i, position in enumerate(found):
                text[row, i] = self._content[position : position + 4 * self._dim].view("<f4")
            mask[row, : len(found)] = True
        return {"text": text, "text_mask": mask}
