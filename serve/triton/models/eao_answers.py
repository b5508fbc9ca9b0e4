"""What the models that prepare inputs share: one answer for each request, and whose fault a failure is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

Arrays = Mapping[str, np.ndarray]


def answer(
    requests: Sequence[Any], inputs: Sequence[str], outputs: Sequence[str], compute: Callable[[Arrays], Arrays]
) -> list[Any]:
    """Responses to a batch of requests, each computed on its own.

    A `ValueError` is the caller's fault: HTTP answers 400, gRPC INVALID_ARGUMENT, and the other requests go on.

    Args:
        requests: as Triton hands them over.
        inputs: their names; an optional one that was not sent is left out of what `compute` gets.
        outputs: the names of what `compute` returns; `done` is added, which the next model of an ensemble waits for.
        compute: inputs by name, with a leading batch axis, to outputs by name.
    """
    responses = []
    for request in requests:
        try:
            given = {name: pb_utils.get_input_tensor_by_name(request, name) for name in inputs}
            arrays = {name: tensor.as_numpy() for name, tensor in given.items() if tensor is not None}
            found = compute(arrays)
            tensors = [pb_utils.Tensor(name, np.ascontiguousarray(found[name])) for name in outputs]
            rows = len(next(iter(arrays.values())))
            tensors.append(pb_utils.Tensor("done", np.ones((rows, 1), dtype=bool)))
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
        except ValueError as error:
            fault = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            responses.append(pb_utils.InferenceResponse(output_tensors=[], error=fault))
    return responses


def decode(sentences: np.ndarray) -> list[str]:
    """Sentences (B, 1) of bytes as text.

    Raises:
        ValueError: one is not UTF-8.
    """
    try:
        return [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in sentences.reshape(-1)]
    except UnicodeDecodeError:
        raise ValueError("a sentence is not UTF-8 text") from None
