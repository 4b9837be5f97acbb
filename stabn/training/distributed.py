"""The processes of a run under torchrun: who this one is, and how they agree.

torchrun starts every process with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, on one machine and on
many; without these variables a process is a world of its own, and nothing here communicates.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from stabn.config import ConfigError
from stabn.errors import RetryableError, StabnError
from stabn.machine import num_cores
from stabn.training.device import choose_device

T = TypeVar("T")

_BLAME_SECONDS = 2.0  # that a process with a lost peer outlives it: launchers give the first end they see as the reason


@dataclasses.dataclass(frozen=True)
class World:
    """This process among those of the run.

    Attributes:
        rank: its number, 0 to size - 1; 0 alone logs and saves.
        size: processes of the run, over all machines.
        local_rank: its number on its machine.
        local_size: processes of the run on its machine.
        control: group for small messages between the processors, beside the one for gradients.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    control: Any = None
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Tell whether this is the process that logs and saves."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print a line, once for all processes."""
        if self.is_main:
            print(text, flush=True)

    def sum_(self, values: Tensor) -> Tensor:
        """Add a tensor up over all processes, in place, on its device."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """Return every process' value, by rank, in every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def on_main(self, work: Callable[[], T]) -> T:
        """Do something in process 0 alone; return its result, or raise its error, in every process."""
        if self.size == 1:
            return work()
        outcome: Any = None
        if self.is_main:
            try:
                outcome = (work(), None)
            except StabnError as error:
                outcome = (None, error)
        value, failure = self.broadcast(outcome)
        if failure is not None:
            raise failure
        return value  # type: ignore[no-any-return]

    def agree(self, check: Callable[[], T]) -> T:
        """Check something in every process before any goes on; return the own result, or raise the first error in all.

        Raises:
            StabnError: what the check raised in the process of the lowest number that it failed in.
        """
        outcome: Any = None
        failure: StabnError | None = None
        try:
            outcome = check()
        except StabnError as error:
            failure = error
        for one in self.gather(failure):
            if one is not None:
                raise one
        return outcome  # type: ignore[no-any-return]

    def broadcast(self, value: T) -> T:
        """Return the value of process 0, in every process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]


def is_main() -> bool:
    """Tell whether this process is the one of its run that logs, before and after it has joined the others."""
    return int(os.environ.get("RANK") or 0) == 0


@contextlib.contextmanager
def join_world(device: str, timeout_seconds: float) -> Iterator[World]:
    """Meet the other processes of the run, for as long as the block runs.

    Args:
        device: the setting; NCCL carries what lies on GPUs, gloo what lies in memory.
        timeout_seconds: how long any exchange may take before the process gives up: what bounds the time that a dead
            or hung process costs.

    Raises:
        RetryableError: another process died or did not answer in time.
        ConfigError: the launcher's variables contradict each other, or there is no GPU for this process.
    """
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        yield World()
        return
    rank = _number("RANK", -1)
    if not 0 <= rank < size:
        raise ConfigError(f"RANK = {os.environ.get('RANK')!r} with WORLD_SIZE = {size}: start with torchrun, or unset")
    local_rank = _number("LOCAL_RANK", 0)
    uses_gpu = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
    if uses_gpu:
        choose_device(device, local_rank, size)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, num_cores() // _number("LOCAL_WORLD_SIZE", 1)))
    timeout = timedelta(seconds=timeout_seconds)
    with collective_errors():
        dist.init_process_group("cpu:gloo,cuda:nccl" if uses_gpu else "gloo", timeout=timeout)
        world = World(
            rank, size, local_rank, dist.new_group(backend="gloo", timeout=timeout), _number("LOCAL_WORLD_SIZE", 1)
        )
        yield world
        dist.destroy_process_group()  # not after an error: it might wait for processes that are gone


@contextlib.contextmanager
def collective_errors() -> Iterator[None]:
    """Turn what a broken exchange raises into an error that says what happened and what follows."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        lost = isinstance(error, dist.DistError) or "gloo" in text or "Connection" in text
        if not lost:
            raise
        time.sleep(_BLAME_SECONDS)
        raise RetryableError(
            f"process {os.environ.get('RANK')}: another process of the run died or did not answer in time "
            f"({text.splitlines()[0][:200]}); run it again, it goes on from the newest state"
        ) from error


class Control:
    """Agree over all processes, after every step, on whether to stop or to save; nobody waits for the answer.

    The messages of a step travel while the next one is computed, through the processors' group: no GPU is
    synchronised, and all processes hear the same answer, one step late, at the same step.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._flags, self._work = torch.zeros(2, dtype=torch.int32), None  # type: Tensor, Any

    def exchange(self, stop: bool, save: bool) -> tuple[bool, bool]:
        """Send this process' wishes and return what any process wished at the exchange before.

        Args:
            stop: this process is to end.
            save: a state is due; process 0 alone decides on that.
        """
        if self._world.size == 1:
            return stop, save
        answer = (False, False)
        if self._work is not None:
            self._work.wait()
            answer = (bool(self._flags[0]), bool(self._flags[1]))
        self._flags = torch.tensor([stop, save and self._world.is_main], dtype=torch.int32)
        self._work = dist.all_reduce(self._flags, dist.ReduceOp.MAX, group=self._world.control, async_op=True)
        return answer

    def finish(self) -> None:
        """Wait for the last exchange, so that no process leaves while another listens."""
        if self._work is not None:
            self._work.wait()
            self._work = None


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{name} = {text!r}: not a number; start with torchrun, or unset it") from None
