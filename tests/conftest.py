"""What every test gets: two threads for torch, fixed seeds, and gpu tests skipped where there is no CUDA device."""

from __future__ import annotations

import os
import sys

import pytest

# Set before any test imports torch, so that it costs the tests without torch nothing.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_items = [item for item in items if "gpu" in item.keywords]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test that uses torch starts from the same seed with at most two threads."""
    torch = sys.modules.get("torch")
    # A half-imported torch (its import failed) has no seed to set.
    if torch is not None and hasattr(torch, "manual_seed"):
        torch.manual_seed(0)
        if torch.get_num_threads() > 2:
            torch.set_num_threads(2)
