"""Brings images to the device that trains on them, and threads that work ahead of others.

A decoded set that fits lies on an accelerator as a whole; of one that does not, every batch is
copied while the batch before it is computed on.
"""

import hashlib
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache
from typing import Any, ClassVar, NamedTuple, TypeVar, final

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from typing_extensions import override

from gradsurgery.data.image_set import ImageSet
from gradsurgery.data.pixels import gather, gather_into, gather_normalized, lookup_table, normalize
from gradsurgery.errors import suppress_out_of_memory

SHARE = 0.4
"""Of the device's free memory, what decoded sets may take."""

_AHEAD = 2  # batches that are on their way to the device or wait there
_COPIED = 64 << 20  # bytes of a set that are copied at a time

Batch = tuple[Float[Tensor, "batch 3 height width"], Int64[Tensor, " batch"]]
Positions = Int64[np.ndarray, " batch"]
Fetched = Callable[[], Batch]
Change = Callable[[UInt8[Tensor, "batch height width 3"]], UInt8[Tensor, "batch height width 3"]]
Key = TypeVar("Key")
Content = TypeVar("Content")
Result = TypeVar("Result")


def worked_on(
    contents: Iterable[tuple[Key, Content]],
    work: Callable[[Key, Content], Result],
    *,
    workers: int,
    ahead: int,
) -> Generator[Result, None, None]:
    """Yield `work(key, content)` for all `contents`, as those of a source, in their order.

    workers: threads that work. ahead: how many results may wait in memory.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for key, content in contents:
                if len(pending) == ahead:
                    yield pending.popleft().result()
                pending.append(pool.submit(work, key, content))
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def prefetched(
    at: Callable[[int], Result], first: int, last: int, *, ahead: int = 1
) -> Iterator[tuple[int, Result]]:
    """Yield `(step, at(step - 1))` for the steps `first` to `last`.

    One thread of its own works `ahead` steps in advance, in order; `at` is a pure function of its
    argument, so what is yielded does not depend on `ahead`. 0 does without the thread.
    """
    steps = ((step, step - 1) for step in range(first, last + 1))
    if ahead < 1:
        yield from ((step, at(before)) for step, before in steps)
        return
    yield from worked_on(steps, lambda step, before: (step, at(before)), workers=1, ahead=ahead + 1)


class ImageLoader(ABC):
    """Images of a set by their positions: normalised, on a device, with their labels.

    mean, std: as in `normalize`, whose bits they have on every device.
    channels_last: how batches lie in an accelerator's memory; on a processor they always do.

    ahead: how many batches are worth a thread that fetches them in advance.
    """

    ahead: ClassVar[int] = 1

    def __init__(
        self,
        images: ImageSet,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        *,
        channels_last: bool = True,
    ) -> None:
        self.images = images
        self.mean, self.std = mean, std
        self.device = device
        self._channels_last = channels_last
        self._table = torch.from_numpy(lookup_table(mean, std)).to(device)

    @abstractmethod
    def fetch(self, positions: Positions, change: Change | None = None) -> Fetched:
        """Do what can be done ahead of time, in any thread.

        change: what becomes of the pixels before they are normalised; it is called where the batch
            is asked for.

        Returns what gives the batch, to be called in the thread that computes, in the order of the
        fetches; it does not wait for the device.
        """

    def _normalized(
        self, pixels: Tensor, positions: Tensor | None = None, change: Change | None = None
    ) -> Tensor:
        """The images of an accelerator, all or those at `positions`, as its network takes them."""
        if change is not None:
            pixels = change(pixels if positions is None else pixels.index_select(0, positions))
            positions = None
        if positions is None:
            positions = torch.arange(len(pixels), device=self.device)
        return gather_normalized(pixels, positions, self._table, channels_last=self._channels_last)


@final
class HostLoader(ImageLoader):
    """For a processor: pixels are copied out of the cache, and normalised as they are needed."""

    @override
    def fetch(self, positions: Positions, change: Change | None = None) -> Fetched:
        pixels = gather(self.images.images, positions)
        labels = torch.from_numpy(self.images.label[positions])

        def batch() -> Batch:
            changed = pixels if change is None else change(pixels)
            return normalize(changed, self.mean, self.std), labels

        return batch


class DeviceImages(NamedTuple):
    """A decoded set on a device."""

    pixels: UInt8[Tensor, "images height width 3"]
    labels: Int64[Tensor, " images"]


@final
class ResidentLoader(ImageLoader):
    """For an accelerator that holds the whole set: what travels are positions."""

    def __init__(self, *about: Any, resident: DeviceImages, **options: Any) -> None:
        super().__init__(*about, **options)
        self._resident = resident

    @override
    def fetch(self, positions: Positions, change: Change | None = None) -> Fetched:
        waiting = _host_memory(self.device, (len(positions),), torch.int64)
        waiting.numpy()[:] = positions

        def batch() -> Batch:
            chosen = waiting.to(self.device, non_blocking=True)
            labels = self._resident.labels.index_select(0, chosen)
            return self._normalized(self._resident.pixels, chosen, change), labels

        return batch


@final
class StreamingLoader(ImageLoader):
    """For an accelerator that the set does not fit on: pixels travel beside the computation."""

    def __init__(self, *about: Any, **options: Any) -> None:
        super().__init__(*about, **options)
        on_cuda = self.device.type == "cuda"
        self._stream = _copying_stream(self._table.device) if on_cuda else None
        self._used: deque[torch.cuda.Event] = deque()
        """One event for each batch whose pixels the device has read, or will have."""

    @override
    def fetch(self, positions: Positions, change: Change | None = None) -> Fetched:
        while len(self._used) >= _AHEAD:  # a computing thread far ahead of its device fills it
            self._used.popleft().synchronize()
        shape = (len(positions), *self.images.images.shape[1:])
        pinned = _host_memory(self.device, shape, torch.uint8)
        gather_into(pinned, self.images.images, positions)
        pinned_labels = _host_memory(self.device, shape[:1], torch.int64)
        pinned_labels.numpy()[:] = self.images.label[positions]
        context: Any = nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        with context:
            pixels = pinned.to(self.device, non_blocking=True)
            labels = pinned_labels.to(self.device, non_blocking=True)
            copied = self._stream.record_event() if self._stream is not None else None

        def batch() -> Batch:
            if copied is not None:
                current = torch.cuda.current_stream(self.device)
                current.wait_event(copied)
                for tensor in (pixels, labels):
                    tensor.record_stream(current)
            numbers = self._normalized(pixels, change=change)
            if copied is not None:
                self._used.append(current.record_event())
            return numbers, labels

        return batch


@cache
def _copying_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all loaders of a device.

    torch hands out the same 32 over and over: among one for each of many runs there would be one
    that another run records a CUDA graph on, in which its copies would end.
    """
    return torch.cuda.Stream(device)


class ResidentSets:
    """Decoded sets on devices, kept for later runs of the process.

    All of them on a device take at most `SHARE` of the memory that is free there without them; the
    one that has not been asked for the longest gives way.

    free: the bytes free on a device.
    """

    def __init__(self, free: Callable[[torch.device], int]) -> None:
        self._free = free
        self._lock = threading.Lock()
        self._sets: OrderedDict[tuple[str, str, torch.device], DeviceImages] = OrderedDict()

    def get(self, images: ImageSet, device: torch.device) -> DeviceImages | None:
        """The set on the device, None where it does not fit.

        Only a set of the cache is kept: another one's digest is its maker's affair.
        """
        device = torch.empty(0, device=device).device  # "cuda" is whichever is the current one
        labels = hashlib.sha256(images.label.tobytes()).hexdigest()  # a copy may have others
        key, keeps = (images.digest, labels, device), images.has_cached_pixels
        with self._lock:
            if key in self._sets and keeps:
                self._sets.move_to_end(key)
                return self._sets[key]
            if not self._make_room(images.images.nbytes, device):
                return None
            resident = None
            with suppress_out_of_memory():  # another process has been faster
                resident = _copied(images, device)
            if resident is not None and keeps:
                self._sets[key] = resident
            return resident

    def _make_room(self, needed: int, device: torch.device) -> bool:
        there = [key for key in self._sets if key[2] == device]
        held = sum(self._sets[key].pixels.numel() for key in there)
        most = SHARE * (self._free(device) + held)
        if needed > most:
            return False
        for key in there:
            if held + needed <= most:
                break
            held -= self._sets.pop(key).pixels.numel()
        return True


def _copied(images: ImageSet, device: torch.device) -> DeviceImages:
    """The set on the device, copied a part at a time."""
    pixels = torch.empty(images.images.shape, dtype=torch.uint8, device=device)
    each = max(_COPIED // max(images.images[:1].nbytes, 1), 1)
    for start in range(0, len(pixels), each):
        positions = np.arange(start, min(start + each, len(pixels)))
        part = _host_memory(device, (len(positions), *pixels.shape[1:]), torch.uint8)
        gather_into(part, images.images, positions)
        pixels[start : start + each].copy_(part, non_blocking=True)
    return DeviceImages(pixels, torch.tensor(images.label.copy(), device=device))


def _host_memory(device: torch.device, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory of the host that the device copies from on its own."""
    return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=device.type == "cuda")


def _free_bytes(device: torch.device) -> int:
    """Free on the device, or kept by torch for this process and not in use."""
    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + kept


RESIDENT = ResidentSets(_free_bytes)
"""The sets that this process keeps on its devices."""


def image_loader(
    images: ImageSet,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    device: torch.device,
    channels_last: bool,
) -> ImageLoader:
    """What brings the images to `device`; the arguments are those of `ImageLoader`."""
    about = (images, mean, std, device)
    if device.type == "cpu":
        return HostLoader(*about)
    resident = RESIDENT.get(images, device)
    if resident is None:
        return StreamingLoader(*about, channels_last=channels_last)
    return ResidentLoader(*about, channels_last=channels_last, resident=resident)
