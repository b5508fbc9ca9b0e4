"""How far an engine is from what the machine can do: its arithmetic and its traffic, over the measured ceilings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from eao.bench.ceiling import Ceiling
from eao.config import ModelConfig
from eao.export.encoders import EncoderModule, example_inputs
from eao.export.manifest import EngineEntry
from eao.model import build_model

# B batch, E embedding

_FLOAT = 4


class Work(NamedTuple):
    """What one call of an encoder takes.

    Attributes:
        gflop: 1e9 floating-point operations of the dense forward, which engines are compiled from; padding counts.
        weights: bytes of the float32 parameters that take part.
    """

    gflop: float
    weights: int


def encoder_work(config: ModelConfig, encoder: str, sizes: Mapping[str, int]) -> Work:
    """Count the arithmetic and the weights of an encoder. Nothing is computed: the tensors have shapes and no values.

    Args:
        config: of the model.
        encoder: a name.
        sizes: by axis name.
    """
    with torch.device("meta"):
        module = EncoderModule(build_model(config).eval(), encoder)  # type: ignore[arg-type]
    inputs = [tensor.to("meta") for tensor in example_inputs(module.model, encoder, sizes)]
    with torch.inference_mode(False), torch.enable_grad():
        with FlopCounterMode(display=False) as counter:
            output = module(*inputs)
        output.sum().backward()
    # Those without a gradient belong to other encoders.
    weights = sum(parameter.nbytes for parameter in module.parameters() if parameter.grad is not None)
    return Work(counter.get_total_flops() / 1e9, weights)


def weight_bytes(folder: Path, entry: EngineEntry) -> int:
    """Bytes that an engine reads of its bundle's files: of a file that encoders share, only its own weights."""
    graph = folder / entry.files[0].file
    if graph.suffix != ".onnx":
        return sum(file.size for file in entry.files)
    import onnx

    places = set()
    for tensor in onnx.load(graph, load_external_data=False).graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            found = {item.key: item.value for item in tensor.external_data}
            places.add((found["location"], int(found.get("offset", 0)), int(found["length"])))
    return entry.files[0].size + sum(length for _, _, length in places)


def call_bytes(weights: int, feeds: Mapping[str, NDArray], embedding_dim: int) -> int:
    """The least traffic of a call: weights and inputs read once, the output (B, E) float32 written once."""
    batch = len(next(iter(feeds.values())))
    return weights + sum(array.nbytes for array in feeds.values()) + batch * embedding_dim * _FLOAT


def bound_ms(ceiling: Ceiling, gflop: float, traffic: int) -> tuple[float, str]:
    """The least milliseconds that a call can take under these ceilings, and which of the two sets them.

    Args:
        ceiling: of the machine, for float32; narrower types may lie below.
        gflop: arithmetic of the call, in 1e9 operations.
        traffic: its bytes.

    Example:
        >>> bound_ms(Ceiling(gflops=100, gbs=10), gflop=1, traffic=50_000_000)
        (10.0, 'arithmetic')
    """
    arithmetic, memory = 1e3 * gflop / ceiling.gflops, traffic / 1e6 / ceiling.gbs
    return (arithmetic, "arithmetic") if arithmetic >= memory else (memory, "memory")
