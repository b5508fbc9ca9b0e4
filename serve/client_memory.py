"""Tensors handed over in the system's shared memory, to a server on the same machine."""

from __future__ import annotations

import contextlib
import os
import uuid
import weakref
from collections.abc import Awaitable, Callable, Mapping
from multiprocessing.shared_memory import SharedMemory
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from eao.errors import DataError, EaoError, ServingError
from eao.serve.client_connection import Connection, finish

T = TypeVar("T")
_ALIGNMENT = 64


class Region:
    """A stretch of shared memory: the inputs of one request, then its output.

    Args:
        size: in bytes.
    """

    def __init__(self, size: int) -> None:
        self.name = f"eao-{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._memory = SharedMemory(self.name, create=True, size=size)
        self.size = self._memory.size

    def write(self, array: NDArray, offset: int) -> None:
        """Copy an array to a place."""
        view: NDArray = np.ndarray(array.shape, array.dtype, buffer=self._memory.buf, offset=offset)
        view[...] = array

    def read(self, shape: tuple[int, ...], offset: int) -> NDArray[np.float32]:
        """A copy of the float32 array at a place."""
        view: NDArray[np.float32] = np.ndarray(shape, np.float32, buffer=self._memory.buf, offset=offset)
        return view.copy()

    def unlink(self) -> None:
        """Give the memory back to the system. What the server has mapped goes when it unregisters."""
        self._memory.close()
        with contextlib.suppress(FileNotFoundError):
            self._memory.unlink()


class Regions:
    """The regions of a connection: kept for further requests, given back when it closes or the interpreter ends.

    What a process leaves that is killed, Python's resource tracker gives back. Everything here runs on the connection's
    event loop.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._free: list[Region] = []
        self._all: dict[str, Region] = {}
        self._give_back = weakref.finalize(self, _give_back, connection, self._all)

    async def use(self, size: int, work: Callable[[Region], Awaitable[T]]) -> T:
        """Do work with a region of at least `size` bytes that the server knows.

        A server that was restarted knows none of the old ones: then the work is done again with a new one. After any
        other error the region is given up, since the server may still be writing into it.
        """
        while True:
            region = self._take(size) or await self._create(size)
            try:
                result = await work(region)
            except DataError:
                forgotten = region.name not in await self._connection.request(_registered)
                await self._drop(region)
                if not forgotten:
                    raise
            except BaseException:
                await self._drop(region)
                raise
            else:
                self._free.append(region)
                return result

    def close(self) -> None:
        """Unregister and unlink all of them."""
        self._give_back()
        self._free.clear()

    def _take(self, size: int) -> Region | None:
        fitting = [region for region in self._free if region.size >= size]
        if not fitting:
            return None
        smallest = min(fitting, key=lambda region: region.size)
        self._free.remove(smallest)
        return smallest

    async def _create(self, size: int) -> Region:
        region = Region(1 << (size - 1).bit_length())  # so that requests of similar size share regions
        self._all[region.name] = region
        try:
            await self._connection.request(
                lambda client: client.register_system_shared_memory(region.name, f"/{region.name}", region.size)
            )
        except BaseException as error:
            del self._all[region.name]
            region.unlink()
            if not isinstance(error, DataError):
                raise
            raise ServingError(
                f"{self._connection.address} cannot use this machine's shared memory: {error.message}",
                "it must run on this machine, as the same user and with the same /dev/shm; else connect without",
            ) from None
        return region

    async def _drop(self, region: Region) -> None:
        try:
            await _unregister(self._connection, region)
        finally:
            self._all.pop(region.name, None)
            region.unlink()


def place(arrays: Mapping[str, NDArray]) -> tuple[dict[str, int], int]:
    """Where each array begins in a region, and where the free space after them begins, in bytes."""
    offsets, end = {}, 0
    for name, array in arrays.items():
        offsets[name] = end
        end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    return offsets, end


async def _registered(client: Any) -> set[str]:
    """The names of the regions that the server knows."""
    status = await client.get_system_shared_memory_status()
    if isinstance(status, list):  # by HTTP
        return {region["name"] for region in status}
    return set(status.regions)


async def _unregister(connection: Connection, region: Region) -> None:
    # A server that is gone has forgotten it in its own way.
    with contextlib.suppress(EaoError):
        await connection.request(lambda client: client.unregister_system_shared_memory(region.name))


def _give_back(connection: Connection, regions: dict[str, Region]) -> None:
    async def work() -> None:
        try:
            for region in list(regions.values()):
                await _unregister(connection, region)
        finally:
            while regions:
                regions.popitem()[1].unlink()

    finish(work(), connection.loop)
