"""One step of the optimizer: plain, in parts (gradient accumulation), in chunks (GradCache), over several processes.

All of them go the same way. The model gives embeddings; the loss and its gradient are computed on the embeddings
alone, gathered from all processes; then that gradient is carried on through the model. GradCache (Gao et al.,
arXiv 2101.06983) only does the last part chunk by chunk, running the model a second time for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from eao.config import Config
from eao.errors import ConfigError
from eao.model import Batch
from eao.model.batch import MODALITIES
from eao.training.augment import augment
from eao.training.batchnorm import frozen_statistics
from eao.training.distributed import ALONE, Processes
from eao.training.loss import CombinatorialLoss

# B clips of this process, W processes, E embedding

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class OptimizerStep:
    """Trains a model by one batch at a time.

    Whatever is random in a step (dropout, augmentation) is drawn from generators seeded by the experiment's seed, the
    step, the process and the chunk: a run needs no random state to be resumed, and the second pass of a chunk draws
    what the first one drew.

    With several processes every one computes the loss of all clips, and carries on the gradient of its own rows times
    W, so that the mean that DistributedDataParallel takes is the gradient of the whole batch.

    BatchNorm in training mode normalises each part or chunk with its own statistics, and moves its running statistics
    once for each; so does each process, unless `trainer.sync_batchnorm` is set.

    Args:
        model: on its device; its mode (training or eval) is left to the caller.
        loss: of the embeddings.
        optimizer: of the model's parameters; its learning rate is left to the caller.
        config: the experiment.
        precision: "fp32", "bf16" or "fp16".
        processes: those that train together.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: CombinatorialLoss,
        optimizer: torch.optim.Optimizer,
        config: Config,
        precision: str = "fp32",
        processes: Processes = ALONE,
    ) -> None:
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.config = config
        self.processes = processes
        self.device = next(model.parameters()).device
        self.dtype = HALF.get(precision)
        self.encoders = training_encoders(model, loss, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self._replica = model
        if processes.world > 1:
            self._replica = DistributedDataParallel(
                model,
                # Published layers that were never applied get no gradient, nor do heads without a term in the loss.
                find_unused_parameters=True,
                gradient_as_bucket_view=True,
            )

    def __call__(self, batch: Batch, step: int) -> StepValues:
        """Train by this process's part of a batch; its tensors may lie on the CPU and are not changed.

        Returns:
            the loss and its terms, of the clips of all processes.
        """
        trainer = self.config.trainer
        self.optimizer.zero_grad(set_to_none=True)
        bounds = [i * len(batch) // trainer.accumulate for i in range(trainer.accumulate + 1)]
        parts = [batch[start:stop] for start, stop in pairwise(bounds) if start < stop]
        values = [
            self._add_gradient(part, (step, self.processes.rank, i), 1 / len(parts), i == len(parts) - 1)
            for i, part in enumerate(parts)
        ]
        if trainer.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), trainer.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return StepValues(tuple(self.loss.weights), torch.stack(values), len(batch) * self.processes.world)

    def _add_gradient(self, part: Batch, seed: tuple[int, ...], weight: float, is_last: bool) -> Tensor:
        """Add the gradient of `weight` times the part's loss to the parameters'; the loss and its terms."""
        present = self.processes.gather_flags(self.model.nonempty(part))  # type: ignore[operator]
        size = self.config.trainer.gradcache_chunk or len(part)
        chunks = [part[start : start + size] for start in range(0, len(part), size)]
        if len(chunks) == 1:
            with self._synchronized(is_last):
                embeddings = self._embed(self._replica, part, seed)
                gradients, values = self._loss_gradient(embeddings, present, weight)
                _backward(embeddings, gradients)
            return values
        with torch.no_grad(), frozen_statistics(self.model):
            outputs = [self._embed(self.model, chunk, (*seed, i)) for i, chunk in enumerate(chunks)]
        embeddings = {encoder: torch.cat([output[encoder] for output in outputs]) for encoder in self.encoders}
        del outputs
        gradients, values = self._loss_gradient(embeddings, present, weight)
        row = 0
        for i, chunk in enumerate(chunks):
            with self._synchronized(is_last and i == len(chunks) - 1):
                embeddings = self._embed(self._replica, chunk, (*seed, i))
                _backward(embeddings, {e: g[row : row + len(chunk)] for e, g in gradients.items()})
            row += len(chunk)
        return values

    def _embed(self, module: nn.Module, chunk: Batch, seed: tuple[int, ...]) -> dict[str, Tensor]:
        """Encoder -> (B, E), in float32 at least, since similarities in half precision would be noise."""
        trainer = self.config.trainer
        seed_torch(self.config.seed, *seed)
        chunk = augment(chunk.to(self.device, non_blocking=True), trainer.noise, trainer.token_dropout)
        with torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext():
            embeddings = module(chunk, self.encoders)
        return {encoder: x.to(torch.promote_types(x.dtype, torch.float32)) for encoder, x in embeddings.items()}

    def _loss_gradient(
        self, embeddings: Mapping[str, Tensor], present: Mapping[str, Tensor], weight: float
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The gradient of `weight` times the loss for the rows of this process, scaled, and the loss and its terms."""
        processes = self.processes
        everywhere = {e: processes.gather(x.detach()).requires_grad_() for e, x in embeddings.items()}  # (W * B, E)
        loss, terms = self.loss(everywhere, present)
        scaled = self.scaler.scale(loss * (weight * processes.world))
        if scaled.requires_grad:
            scaled.backward()
        rows = len(next(iter(embeddings.values())))
        own = slice(processes.rank * rows, (processes.rank + 1) * rows)
        gradients = {
            # Without a complete clip in any process a term gives a gradient of zero, as in the original.
            encoder: torch.zeros_like(x[own]) if x.grad is None else x.grad[own]
            for encoder, x in everywhere.items()
        }
        missing = loss.new_tensor(float("nan"))
        return gradients, torch.stack([loss.detach(), *(terms.get(term, missing) for term in self.loss.weights)])

    def _synchronized(self, is_last: bool) -> AbstractContextManager[None]:
        """Gradients are averaged over processes once in a step, with the last of its backward passes."""
        if isinstance(self._replica, DistributedDataParallel) and not is_last:
            return self._replica.no_sync()
        return nullcontext()


class StepValues:
    """The loss and its terms of one step, on their way from the device.

    Asking a GPU for a number waits until all that was queued before is done. Here the copy is queued with the step, and
    reading it waits for that step alone, while the next one is already running.

    Attributes:
        clips: clips of the step over all processes.
    """

    def __init__(self, terms: tuple[str, ...], values: Tensor, clips: int) -> None:
        self._terms = terms
        self.clips = clips
        self._event: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._values = values

    def read(self) -> tuple[float, dict[str, float]]:
        """The loss, and the terms that had a complete clip: means over the parts of the batch."""
        if self._event is not None:
            self._event.synchronize()
        loss, *terms = (float(x) for x in (self._values[:, 0].mean(), *self._values[:, 1:].nanmean(0)))
        return loss, {term: value for term, value in zip(self._terms, terms, strict=True) if not np.isnan(value)}


def training_encoders(model: nn.Module, loss: CombinatorialLoss, config: Config) -> tuple[str, ...]:
    """The embeddings that training compares: those with a weight that the model gives, pairs only if it is to fuse.

    Raises:
        ConfigError: if no weighted term is left.
    """
    offered = [e for e in model.encoders if config.model.cross_modal or e in MODALITIES]  # type: ignore[union-attr]
    encoders = tuple(encoder for encoder in loss.encoders if encoder in offered)
    if not loss.active_terms(encoders):
        raise ConfigError(
            f"the model gives {', '.join(offered)}, and no weighted term of the loss compares two of these",
            "set loss.weights for embeddings this architecture has",
        )
    return encoders


def seed_torch(seed: int, *position: int) -> None:
    """Seed torch's generators on all devices for one position of a run."""
    sequence = np.random.SeedSequence([seed % 2**32, *position])
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))


def _backward(embeddings: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
    torch.autograd.backward(list(embeddings.values()), [gradients[encoder] for encoder in embeddings])
