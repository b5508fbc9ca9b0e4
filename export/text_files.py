"""What the text encoder reads, copied into a bundle, so that it embeds sentences wherever it is moved."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from eao.config import Config, override_config
from eao.errors import ExportError
from eao.export.manifest import TEXT_FOLDER, FileEntry
from eao.export.words import write_words

_UNNEEDED = (".py", ".pyc", ".h5", ".msgpack", ".ot", ".md", ".gitattributes")
"""Of a model's folder: code, weights of other frameworks, and notes."""


def copy_text_files(config: Config, folder: Path) -> tuple[Config, tuple[FileEntry, ...]]:
    """Copy word vectors, or a transformers model with its tokenizer, into the folder `text` of a bundle.

    Beside them lies what programs without PyTorch and transformers read; see `write_words`. Files are linked where the
    file system can, so that gigabytes of word vectors are not doubled.

    Args:
        config: of the experiment.
        folder: the bundle.

    Returns:
        the configuration with `data.text.path` relative to the bundle, and the files. Without a path in the
        configuration there is nothing to copy: then whoever embeds sentences has to give one.

    Raises:
        ExportError: `data.text.path` leads nowhere, or the model there cannot be exported.
        DataError: the files there cannot be read.
    """
    source = _source(config)
    if source is None:
        return config, ()
    target = folder / TEXT_FOLDER
    target.mkdir()
    if source.is_file():
        files = [source]
        path = f"{TEXT_FOLDER}/{source.name}"
    else:
        files = [file for file in sorted(source.iterdir()) if file.is_file() and file.suffix not in _UNNEEDED]
        path = TEXT_FOLDER
    for file in files:
        link_or_copy(file, target / file.name)
    names = [file.name for file in files]
    names += write_words(config.data.text.model_copy(update={"path": str(folder / path)}), target)
    entries = tuple(FileEntry.of(target / name, folder) for name in names)
    return override_config(config, [f"data.text.path={path}"]), entries


def _source(config: Config) -> Path | None:
    text = config.data.text
    if text.path is None:
        if text.encoder != "minilm":
            return None
        from eao.data.text import minilm_folder

        return minilm_folder()
    if not Path(text.path).exists():
        raise ExportError(
            f"data.text.path: {text.path} does not exist, but a bundle holds what words are looked up in",
            "give data.text.path=FILE, or leave the text out: --encoder video-audio ...",
        )
    return Path(text.path)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system cannot."""
    # Only real files are linked, and never a link itself: a bundle holds its own files.
    source = source.resolve()
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
