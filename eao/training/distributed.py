"""Several processes training one model: who takes part, what they gather, and how all of them end when one fails."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from eao.data.loader import Share
from eao.errors import ConfigError, DataError, EaoError

# W processes, B rows of one process

PATIENCE = timedelta(days=2)
"""How long processes wait for each other outside of a step: the first one validates and writes checkpoints alone."""


@dataclass(frozen=True)
class Processes:
    """The processes of a training job, seen from one of them.

    Attributes:
        rank: of this process; the first, 0, alone writes, validates and prints.
        world: how many there are.
        control: a group over gloo for small messages on the CPU, where waiting costs no GPU and may take long.
    """

    rank: int = 0
    world: int = 1
    control: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes, validates and prints."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """The part of each batch that this process reads."""
        return Share(self.rank, self.world)

    def gather(self, x: Tensor) -> Tensor:
        """The rows (B, ...) of every process, in the order of ranks: (W * B, ...), without gradient."""
        if self.world == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.world)]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    def gather_flags(self, flags: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Which clips of the whole batch have which modality: name -> (B,) bool to (W * B,) bool, on the CPU.

        Processes meet here first in every step, so this also checks that they are in step.

        Raises:
            DataError: in every process, if they do not hold equally many clips or the same modalities.
        """
        if self.world == 1:
            return dict(flags)
        held = torch.stack(list(flags.values())).to("cpu", torch.uint8)  # (modalities, B)
        shapes = self._gather_control(torch.tensor(held.shape))
        if any(not torch.equal(shape, shapes[0]) for shape in shapes):
            counts = ", ".join(f"{int(shape[1])} of {int(shape[0])} modalities" for shape in shapes)
            raise DataError(
                f"the processes hold different numbers of clips: {counts}",
                "give every item the same number of clips, or train in one process",
            )
        everywhere = torch.cat(self._gather_control(held), 1).bool()
        return dict(zip(flags, everywhere, strict=True))

    def share_json(self, value: Any) -> Any:
        """What the first process gives, in all of them; numbers are the same to the last bit."""
        if self.world == 1:
            return value
        encoded = json.dumps(value).encode() if self.is_first else b""
        size = torch.tensor([len(encoded)])
        dist.broadcast(size, 0, group=self.control)
        buffer = torch.frombuffer(bytearray(encoded.ljust(int(size), b"\0")), dtype=torch.uint8)
        dist.broadcast(buffer, 0, group=self.control)
        return json.loads(buffer.numpy().tobytes())

    def _gather_control(self, x: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(x) for _ in range(self.world)]
        dist.all_gather(parts, x, group=self.control)
        return parts


ALONE = Processes()
"""One process without others."""


def choose_device(device: str | None, local_rank: int = 0, world: int = 1) -> torch.device:
    """The device of a process: what is asked for, else a GPU of its own, else the CPU.

    Raises:
        ConfigError: if there are more processes on this machine than GPUs, or one GPU is named for all of them.
    """
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen.type != "cuda" or world == 1:
        return chosen
    if chosen.index is not None:
        raise ConfigError(f"--device {device} names one GPU for {world} processes", "leave out the number")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise ConfigError(
            f"process {local_rank} of this machine has no GPU: there are {count}",
            f"torchrun --nproc-per-node {max(count, 1)}, or --device cpu",
        )
    return torch.device("cuda", local_rank)


@contextmanager
def connect(device: str | None = None) -> Iterator[tuple[Processes, torch.device]]:
    """Join the other processes that `torchrun` started, if it did, and leave them at the end.

    NCCL connects GPUs, gloo CPUs. Whatever ends one process ends all of them, with one message: the first to fail
    tells, the others exit silently with code 2. A process that is killed cannot tell; then the first to lose its
    connection does.

    Raises:
        ConfigError: the environment that torchrun sets is incomplete, or there are too few GPUs.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield ALONE, choose_device(device)
        return
    try:
        rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    except KeyError as error:
        raise ConfigError(
            f"WORLD_SIZE is {world}, but {error.args[0]} is not set",
            "start with: torchrun --nproc-per-node N -m eao ...",
        ) from None
    chosen = choose_device(device, local_rank, world)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    store, _, _ = next(dist.rendezvous("env://", rank, world))
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.PrefixStore("eao", store), rank=rank, world_size=world)
    try:
        yield Processes(rank, world, dist.new_group(backend="gloo", timeout=PATIENCE)), chosen
    except (EaoError, KeyboardInterrupt, OSError):
        if _is_first_to_fail(store):
            raise
        raise SystemExit(2) from None
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        if not _is_first_to_fail(store):
            raise SystemExit(2) from None
        raise EaoError(
            f"process {rank} lost the connection to another one: {str(error).splitlines()[0]}",
            "that one was ended from outside: for example, the system was out of memory",
        ) from None
    finally:
        dist.destroy_process_group()


def _is_first_to_fail(store: dist.Store) -> bool:
    try:
        return store.add("eao/failed", 1) == 1
    except RuntimeError:
        # The process that keeps the store is gone, so it failed before this one.
        return False


def _is_lost_connection(error: RuntimeError) -> bool:
    """Whether a collective operation failed because another process is gone."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error)
    return "gloo" in text or "Connection closed by peer" in text or "Connection reset by peer" in text
