"""Stored outputs of the original 3-D ResNeXt-101 and S3D-G code, and the seeded weights and inputs they belong to.

Test files load this module by path, since the tests are no package.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

FOLDER = Path(__file__).parent
SEED = 20


def _recipe() -> Any:
    spec = importlib.util.spec_from_file_location("golden_recipe", FOLDER / "recipe.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def golden() -> dict[str, NDArray[Any]]:
    """The stored arrays."""
    with np.load(FOLDER / "features" / "networks.npz") as arrays:
        return dict(arrays)


def original_weights(network: str, gain: float = 1.0) -> dict[str, Tensor]:
    """A whole state dict by the recipe; weights of convolutions times `gain`."""
    keys = json.loads((FOLDER / "features" / "network_keys.json").read_text(encoding="utf-8"))[network]
    make = _recipe().weight
    with ThreadPoolExecutor(2) as pool:
        values = pool.map(make, keys, map(tuple, keys.values()), [SEED] * len(keys))
        return {key: x * np.float32(gain) if x.ndim == 5 else x for key, x in zip(keys, values, strict=True)}


def blocky(seed: int, coarse: Sequence[int], repeats: Sequence[int], distribution: str) -> NDArray[np.float64]:
    """Coarse noise with fine noise on it, since fine noise alone averages out."""
    random = np.random.RandomState(seed)
    draw = getattr(random, distribution)
    values = draw(tuple(coarse))
    for axis, times in enumerate(repeats):
        values = np.repeat(values, times, axis)
    return values * 0.75 + draw(values.shape) * 0.25
