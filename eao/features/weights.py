"""Original weight files of feature networks: read without running code in them, and checked to the last tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from eao.errors import CheckpointError

_COUNTER = "num_batches_tracked"


class Weights:
    """The tensors of a file, taken one by one, so that in the end it is known that none is missing and none left over.

    A prefix `module.` of every name (DataParallel's) is taken off, and the counters of BatchNorm are passed over.

    Args:
        tensors: a state dict.
        source: of the tensors, for messages: the file.
        network: its name, for messages.

    Example:
        weights = Weights.read("resnet152.pth", "ResNet-152")
        weights.fold(network.stem, "conv1", "bn1")
        weights.finish(unused=["fc."])
    """

    def __init__(self, tensors: Mapping[str, object], source: str, network: str) -> None:
        self.source = source
        self.network = network
        is_parallel = bool(tensors) and all(str(key).startswith("module.") for key in tensors)
        self._left = {
            str(key).removeprefix("module." if is_parallel else ""): value
            for key, value in tensors.items()
            if not str(key).endswith(_COUNTER)
        }

    @classmethod
    def read(cls, path: str | Path, network: str) -> Weights:
        """The state dict in a .pth or .safetensors file; one that a training checkpoint holds as `state_dict` too.

        Raises:
            CheckpointError: the file cannot be read, holds code, or is no state dict.
        """
        tensors = _load(Path(path), network)
        if isinstance(tensors, Mapping) and isinstance(tensors.get("state_dict"), Mapping):
            tensors = tensors["state_dict"]
        if not isinstance(tensors, Mapping):
            raise CheckpointError(
                f"{path} holds a {type(tensors).__name__}, not a state dict", f"give the original file of {network}"
            )
        return cls(tensors, str(path), network)

    def take(self, key: str, shape: Sequence[int]) -> Tensor:
        """A tensor in double precision, which then counts as used.

        Raises:
            CheckpointError: it is missing or has another shape.
        """
        tensor = self._left.pop(key, None)
        if not isinstance(tensor, Tensor):
            raise self._error(f"{key} is missing")
        if tuple(tensor.shape) != tuple(shape):
            raise self._error(f"{key} has shape {tuple(tensor.shape)}, not {tuple(shape)}")
        if not torch.isfinite(tensor).all():
            raise self._error(f"{key} holds values that are not finite")
        return tensor.double()

    def fold(
        self, layer: nn.Module, conv: str, norm: str, eps: float = 1e-5, kernel: Sequence[int] | None = None
    ) -> None:
        """Load a convolution without bias and the BatchNorm after it as one layer with bias.

        Args:
            layer: has `weight` and `bias`.
            conv: name of the convolution.
            norm: name of the BatchNorm.
            eps: of the BatchNorm.
            kernel: of the stored convolution, where the layer keeps it without its axes of size 1.

        Raises:
            CheckpointError: as for `take`.
        """
        assert isinstance(layer.weight, Tensor) and isinstance(layer.bias, Tensor)
        outputs, inputs, *own_kernel = layer.weight.shape
        weight = self.take(f"{conv}.weight", (outputs, inputs, *(own_kernel if kernel is None else kernel)))
        channels = weight.shape[:1]
        mean, variance, gain, offset = (
            self.take(f"{norm}.{name}", channels) for name in ("running_mean", "running_var", "weight", "bias")
        )
        scale = gain / torch.sqrt(variance + eps)
        with torch.no_grad():
            layer.weight.copy_((weight * scale.view(-1, *[1] * (weight.ndim - 1))).view_as(layer.weight))
            layer.bias.copy_(offset - mean * scale)

    def linear(self, layer: nn.Linear, name: str) -> None:
        """Load a linear layer.

        Raises:
            CheckpointError: as for `take`.
        """
        with torch.no_grad():
            layer.weight.copy_(self.take(f"{name}.weight", layer.weight.shape))
            layer.bias.copy_(self.take(f"{name}.bias", layer.bias.shape))

    def finish(self, unused: Sequence[str] = ()) -> None:
        """Check that nothing is left over.

        Args:
            unused: beginnings of names that the file may hold and the features do not need, such as the classifier.

        Raises:
            CheckpointError: another tensor was not used: the file is of another network.
        """
        left = sorted(key for key in self._left if not key.startswith(tuple(unused)))
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise self._error(f"{left[0]}{more} has no place in the network")

    def _error(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.source}: {what}", f"it holds another network: give the original file of {self.network}"
        )


def _load(path: Path, network: str) -> object:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(
            f"cannot read the weights {path}: {error.strerror or _first_line(error)}", "check the path"
        ) from None
    except Exception as error:  # of damaged or hostile bytes the readers raise nearly anything
        raise CheckpointError(
            f"cannot read the weights {path}: {_first_line(error)}",
            f"give the original file of {network}: a state dict, as .pth or .safetensors",
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
