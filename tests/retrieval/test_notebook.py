"""The notebook in docs/ runs from its first cell to its last, in a real kernel, on real little videos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nbclient
import nbformat
import pytest

from eao.embedder import Embedder

NOTEBOOK = Path(__file__).parents[2] / "docs" / "search.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_embedder: Callable[[int], Embedder],
    clips: Path,
) -> None:
    from eao.backend import TorchBackend
    from eao.checkpoint import save_native

    embedder = make_embedder(0)
    assert isinstance(embedder.backend, TorchBackend)
    save_native(tmp_path / "model", embedder.backend.model, embedder.config)
    monkeypatch.setenv("EAO_MODEL", str(tmp_path / "model"))
    monkeypatch.setenv("EAO_VIDEOS", str(clips))
    monkeypatch.setenv("EAO_QUERY", "red square")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("4 files, 6 clips, 0 could not be read" in text for text in printed)
    assert sum("red.mp4" in text for text in printed) > 2


def test_no_output_is_kept_in_the_notebook() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
