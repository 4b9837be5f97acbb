"""Writing beside the training: copies in memory that are used again, and a thread that writes the newest of them."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor

from stabn.errors import StabnError
from stabn.storage import ClaimLost

MAX_FAILED_WRITES = 3  # one after the other, before training stops

T = TypeVar("T")


class BackgroundWriter(Generic[T]):
    """Write one thing at a time in a thread, the newest only: it takes the place of one that still waits.

    Whoever submits never waits. A failed write is told; an error is raised in the submitting thread, at the next submit
    or at the end. Used as a context: leaving it waits for what is being written and for what still waits.

    Attributes:
        writing: what is being written; None: nothing.
    """

    def __init__(self, write: Callable[[T], None], report: Callable[[str], None]) -> None:
        self._write, self._report = write, report
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="stabn-checkpoint")
        self._lock = threading.Lock()
        self._running: Future[None] | None = None
        self._waiting: T | None = None
        self.writing: T | None = None
        self._error: BaseException | None = None  # of the last write
        self._failed = 0  # writes one after the other

    @property
    def busy(self) -> bool:
        """Tell whether something is being written or waits."""
        with self._lock:
            return self.writing is not None or self._waiting is not None

    def withdraw(self) -> None:
        """Forget what still waits, because something newer is about to be submitted."""
        with self._lock:
            self._waiting = None

    def submit(self, item: T) -> None:
        """Hand over what is to be written next.

        Raises:
            StorageError, RetryableError: the last writes failed one after the other.
            ClaimLost: the output is another run's by now.
        """
        if self._failed >= MAX_FAILED_WRITES or not _may_pass(self._error):
            self._raise()
        with self._lock:
            self._waiting = item
            if self.writing is None:
                self._take()
                self._running = self._pool.submit(self._write_all)

    def finish(self) -> None:
        """Wait until everything is written.

        Raises:
            StorageError, RetryableError: the last write failed.
        """
        self.wait()
        self._raise()

    def wait(self) -> None:
        """Wait until nothing is being written and nothing waits."""
        if self._running is not None:
            self._running.result()

    def _write_all(self) -> None:
        while self.writing is not None:
            try:
                self._write(self.writing)
                self._error, self._failed = None, 0
            except BaseException as error:  # raised in the thread that submits
                self._error, self._failed = error, self._failed + 1
                if _may_pass(error) and self._failed < MAX_FAILED_WRITES:
                    self._report(f"not saved: {error}; training goes on, the next state is tried again")
            with self._lock:
                self._take()

    def _take(self) -> None:
        self.writing, self._waiting = self._waiting, None

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self._pool.shutdown(wait=True)
        if kind is not None and self._error is not None:
            self._report(f"not saved: {self._error}")


def copy_to_memory(content: Any, former: Any = None) -> Any:
    """Copy all tensors in nested dicts and lists to memory, so that training can change the originals meanwhile.

    A GPU's tensors are copied to pinned memory in the order of its other work, and nothing waits: see `copies_done`.

    Args:
        content: tensors and plain values.
        former: what an earlier call returned; its memory is used again where shape, type and layout are the same.
    """
    if isinstance(content, Tensor):
        if not _fits(former, content):
            former = torch.empty_like(content, device="cpu", requires_grad=False, pin_memory=content.is_cuda)
        return former.copy_(content.detach(), non_blocking=True)
    if isinstance(content, Mapping):
        named = former if isinstance(former, Mapping) else {}
        return {key: copy_to_memory(value, named.get(key)) for key, value in content.items()}
    if isinstance(content, list | tuple):
        before = former if isinstance(former, list | tuple) and len(former) == len(content) else [None] * len(content)
        return type(content)(copy_to_memory(value, there) for value, there in zip(content, before, strict=True))
    return content


def copies_done(device: torch.device) -> Callable[[], None]:
    """Return what waits until the copies begun so far are complete; on a processor they are at once."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event.synchronize


def _fits(former: Any, tensor: Tensor) -> bool:
    return (
        isinstance(former, Tensor)
        and (former.shape, former.dtype) == (tensor.shape, tensor.dtype)
        and former.stride() == torch.empty_like(tensor, device="meta").stride()
    )


def _may_pass(error: BaseException | None) -> bool:
    """Tell whether training may go on after this error of a write."""
    return error is None or (isinstance(error, StabnError) and not isinstance(error, ClaimLost))
