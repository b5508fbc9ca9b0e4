"""What a Triton Inference Server says of its models: inputs, batches, and which weights they were made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eao.errors import ServingError
from eao.export.encoders import BATCH, SPECTROGRAM_FRAMES, TEXT_TOKENS, VIDEO_TOKENS, Axis, InputSpec
from eao.model.batch import ENCODERS

# B batch, E embedding

OUTPUT = "embedding"
ENSEMBLE = "embed-"
"""Before the name of an encoder, that of the ensemble from raw inputs to its embedding."""

_DTYPES = {"TYPE_FP32": "float32", "TYPE_BOOL": "bool", "TYPE_INT64": "int64", "TYPE_STRING": "bytes"}
_AXES = {"text": TEXT_TOKENS, "video": VIDEO_TOKENS, "audio": SPECTROGRAM_FRAMES}


@dataclass(frozen=True)
class ServedModel:
    """A model of a server.

    Attributes:
        name: an encoder, or an ensemble `embed-<encoder>`.
        inputs: as a `Batch` has them, with the batch as their first axis.
        max_batch_size: rows of one request; 0: the server sets no limit.
        embedding_dim: E.
        parameters: of the model's configuration: `model_sha256`, `engine`, `precision`, `config`.
    """

    name: str
    inputs: tuple[InputSpec, ...]
    max_batch_size: int
    embedding_dim: int
    parameters: Mapping[str, str]

    @property
    def is_encoder(self) -> bool:
        """Whether `eao serve triton` wrote it, for one of the model's encoders."""
        return self.name in ENCODERS and {"model_sha256", "config"} <= self.parameters.keys()

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> ServedModel | None:
        """From a model's configuration as JSON; None if it gives no embeddings."""
        output = next((o for o in config.get("output", ()) if o["name"] == OUTPUT), None)
        if output is None or any(i["data_type"] not in _DTYPES for i in config.get("input", ())):
            return None
        batched = int(config.get("max_batch_size", 0)) > 0
        return cls(
            name=config["name"],
            inputs=tuple(_spec(i, batched) for i in config["input"]),
            max_batch_size=int(config.get("max_batch_size", 0)),
            embedding_dim=int(output["dims"][-1]),
            parameters={name: p.get("string_value", "") for name, p in config.get("parameters", {}).items()},
        )


def choose_encoders(models: Mapping[str, ServedModel], server: str) -> dict[str, ServedModel]:
    """The encoders among a server's models, in the usual order.

    Raises:
        ServingError: there are none, or they were made from different weights.
    """
    found = {name: models[name] for name in ENCODERS if name in models and models[name].is_encoder}
    if not found:
        raise ServingError(
            f"{server} has no encoders that are ready (it has {', '.join(models) or 'no models'})",
            "write them a repository: eao serve triton --bundle BUNDLE --out REPOSITORY",
        )
    hashes = {name: model.parameters["model_sha256"] for name, model in found.items()}
    if len(set(hashes.values())) > 1:
        shown = ", ".join(f"{name} {digest[:12]}" for name, digest in hashes.items())
        raise ServingError(
            f"the encoders of {server} come from different weights: {shown}", "serve one bundle from a repository"
        )
    return found


def _spec(entry: Mapping[str, Any], batched: bool) -> InputSpec:
    name, modality = entry["name"], entry["name"].partition("_")[0]
    dims = [int(size) for size in entry["dims"]]
    if batched:  # one number a row has an axis of its own there, which the model does not see
        dims = [-1] if "reshape" in entry else [-1, *dims]
    # Of the sizes that vary, the first is the batch, and there is one more at most.
    axes = [Axis(BATCH), *[Axis(_AXES.get(modality, name))] * (len(dims) - 1)]
    shape = tuple(axis if size < 0 else size for size, axis in zip(dims, axes, strict=True))
    return InputSpec(name, _DTYPES[entry["data_type"]], shape)
