"""Kernels with a fault put in on purpose, to see that their tests would find it."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def mutate(tmp_path: Path) -> Callable[[ModuleType, str, str], ModuleType]:
    """A function that gives a copy of a module in which one piece of its source, which occurs once, is replaced."""

    def copy(module: ModuleType, old: str, new: str) -> ModuleType:
        source = inspect.getsource(module)
        assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times in {module.__name__}"
        # Triton reads the source of its functions from their file.
        file = tmp_path / f"mutated_{module.__name__.rpartition('.')[2]}.py"
        file.write_text(source.replace(old, new))
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None and spec.loader is not None
        mutated = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(mutated)
        return mutated

    return copy
