"""What the backends in Python share: requests that Triton batched become one run, and its rows go back to each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

Arrays = dict[str, np.ndarray]
Run = Callable[[Arrays], Sequence[np.ndarray]]


class Rows:
    """Answers batches of requests by runs of an engine.

    Args:
        axes: input -> number of its axes in the graph. Triton shows one of no axis but the batch as (rows, 1).
        outputs: names of what a run gives, in its order.
        run: inputs by name, the rows of all requests below each other, to outputs.
        callers_fault: the exceptions of inputs that do not fit.
    """

    def __init__(
        self, axes: Mapping[str, int], outputs: Sequence[str], run: Run, callers_fault: tuple[type[Exception], ...]
    ) -> None:
        self._axes = axes
        self._outputs = outputs
        self._run = run
        self._callers_fault = callers_fault

    def answer(self, requests: Sequence[Any]) -> list[Any]:
        """A response to each request. What does not fit is the caller's fault: HTTP answers 400."""
        feeds = [self._feed(request) for request in requests]
        try:
            return self._together(feeds)
        except self._callers_fault:
            # One request that does not fit must not take those that came with it.
            return [self._alone(feed) for feed in feeds]

    def _feed(self, request: Any) -> Arrays:
        arrays = {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._axes}
        return {name: x.reshape(x.shape[: self._axes[name]]) for name, x in arrays.items()}

    def _alone(self, feed: Arrays) -> Any:
        try:
            return self._together([feed])[0]
        except self._callers_fault as error:
            message = " ".join(str(error).split())[:300]
            fault = pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(output_tensors=[], error=fault)

    def _together(self, feeds: Sequence[Arrays]) -> list[Any]:
        results = self._run({name: np.concatenate([feed[name] for feed in feeds]) for name in self._axes})
        ends = np.cumsum([len(next(iter(feed.values()))) for feed in feeds])
        rows = zip(*(np.split(x, ends[:-1]) for x in results), strict=True)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(n, x) for n, x in zip(self._outputs, row, strict=True)])
            for row in rows
        ]
