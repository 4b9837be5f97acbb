"""How clips get from the storage to the device: by the same loading processes from the first epoch to the last."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from stabn.data.dataset import ClipDataset
from stabn.errors import StabnError
from stabn.signals import deaf_children, leave_signals_to_parent
from stabn.training.device import Batch


class Request(NamedTuple):
    """A batch to be loaded: all that a loading process has to be told, as it lives longer than an epoch.

    Attributes:
        part: number of the dataset.
        epoch: decides on augmentation.
        positions: of the videos in the dataset.
        without_clips: of each, whether its clips are not needed; if none are, the batch has no `clips`.
    """

    part: int
    epoch: int
    positions: tuple[int, ...]
    without_clips: tuple[bool, ...]


class _Parts(Dataset):
    """The datasets of a loader; an item is a whole batch."""

    def __init__(self, datasets: Sequence[ClipDataset]) -> None:
        self.datasets = datasets

    def __getitem__(self, request: Request) -> Batch:
        dataset = self.datasets[request.part]
        dataset.epoch = request.epoch
        items = [
            dataset.item(position, with_clips=not without)
            for position, without in zip(request.positions, request.without_clips, strict=True)
        ]
        if all(request.without_clips):
            for item in items:
                del item["clips"]
        return default_collate(items)  # type: ignore[no-any-return]


class _Plan:
    """What is to be loaded next; a loader asks it anew for every pass."""

    requests: Iterable[Request] = ()

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)


class ClipLoader:
    """Load batches of one or several datasets, in this process or in others beside it; used as a context.

    The loading processes start with the first batch and end with the context. They get to know no signals but this
    process' own, see `leave_signals_to_parent`.
    """

    def __init__(self, datasets: Sequence[ClipDataset], device: torch.device, workers: int) -> None:
        """Prepare to load; nothing is started yet.

        Args:
            datasets: those that batches are asked of.
            device: where batches go.
            workers: loading processes; 0: this one loads.
        """
        self._datasets, self._device, self._plan = list(datasets), device, _Plan()
        how: dict[str, Any] = {}
        if workers:
            # The processes that training starts would by default start Python anew for each of these.
            context = "fork" if sys.platform.startswith("linux") else None
            how = {"persistent_workers": True, "multiprocessing_context": context, "worker_init_fn": start_worker}
        self._loader = DataLoader(
            _Parts(self._datasets),
            batch_size=None,
            sampler=self._plan,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            # It is not used, but without it a loader draws from the random numbers that dropout draws from, and an
            # epoch that is gone on with would differ from one that was not interrupted.
            generator=torch.Generator(),
            **how,
        )

    def batches(
        self,
        dataset: ClipDataset,
        batches: Iterable[Sequence[int]],
        is_known: Callable[[int], bool] = lambda row: False,
    ) -> Iterator[Batch]:
        """Yield batches of a dataset on the device, uint8 as they were loaded; `index` stays in memory.

        With a GPU the next batch crosses the bus, from pinned memory on a stream of its own, while the present one is
        computed.

        Args:
            dataset: one of the loader's; its `epoch` is that of the batches.
            batches: positions in it.
            is_known: whether the clips of a row of the manifest are not needed, such as those whose features are kept:
                nothing of them is read or decoded. They are zeros, and absent where a batch needs none; asked when the
                batch's turn to be loaded comes, so it may not become false afterwards.
        """
        part = self._datasets.index(dataset)

        def request(positions: Sequence[int]) -> Request:
            known = tuple(is_known(int(dataset.indices[position])) for position in positions)
            return Request(part, dataset.epoch, tuple(positions), known)

        return self._on_device(self._loaded(map(request, batches)))

    def close(self) -> None:
        """End the loading processes."""
        iterator = getattr(self._loader, "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()
            self._loader._iterator = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _loaded(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """Yield batches; an error of a loading process, a whole traceback, says what it said there."""
        self._plan.requests = requests
        try:
            with deaf_children():
                batches = iter(self._loader)
            yield from batches
        except StabnError as error:
            kind = type(error)
            _, found, said = str(error).rpartition(f"{kind.__module__}.{kind.__qualname__}: ")
            if not found:
                raise
            raise kind(said.strip()) from None

    def _on_device(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        device = self._device
        if device.type != "cuda":
            yield from batches
            return
        side = torch.cuda.Stream(device)
        ahead: Batch | None = None
        for batch in batches:
            with torch.cuda.stream(side):
                copied = {n: v if n == "index" else v.to(device, non_blocking=True) for n, v in batch.items()}
            if ahead is not None:
                yield ahead
            torch.cuda.current_stream(device).wait_stream(side)
            for value in (value for value in copied.values() if value.is_cuda):
                value.record_stream(torch.cuda.current_stream(device))
            ahead = copied
        if ahead is not None:
            yield ahead


def in_batches(positions: Sequence[int] | np.ndarray, size: int) -> Iterator[Sequence[int]]:
    """Yield positions in their order, so many at a time."""
    for start in range(0, len(positions), size):
        yield [int(position) for position in positions[start : start + size]]


def start_worker(number: int) -> None:
    """Prepare a loading process, before its first batch: it ends when its loader says so, and not sooner."""
    leave_signals_to_parent()
    info = get_worker_info()
    for dataset in info.dataset.datasets:  # type: ignore[union-attr]
        dataset.reader.share_memory(info.num_workers)  # type: ignore[union-attr]
