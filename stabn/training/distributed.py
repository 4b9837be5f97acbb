"""Several processes train one network: who takes part, what they exchange, and how they are started.

Each process has a full copy of the network and a share of every mini-batch (DistributedDataParallel). The environment
of torchrun (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) says that there are several; without it there is
one.
"""

import contextlib
import datetime
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from stabn.errors import RetryableError, StabnError

Result = TypeVar("Result")

EXIT_CODES = (StabnError.exit_code, RetryableError.exit_code)
LOST_SECONDS = 5.0


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Attributes:
        rank: this process, 0 to size - 1; 0 alone logs and writes.
        size: how many there are, over all nodes.
        local_rank: this process on its node, which is the number of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process logs and writes."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the network with gradients averaged over all processes."""
        if self.size == 1:
            return model
        device = next(model.parameters()).device
        ids = [device.index] if device.type == "cuda" else None
        # BatchNorm's statistics need no exchange in training: those of process 0 are used, see `share_buffers`.
        return nn.parallel.DistributedDataParallel(model, device_ids=ids, forward_sync_buffers=False)

    def no_exchange(self, network: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Return a block in which gradients are summed up in each process only; `network` is from `wrap`."""
        if isinstance(network, nn.parallel.DistributedDataParallel):
            return network.no_sync()  # type: ignore[no-any-return]
        return contextlib.nullcontext()

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the BatchNorm statistics of process 0."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return each value's sum over all processes, in float64."""
        if self.size == 1:
            return dict(values)
        total = torch.tensor(list(values.values()), dtype=torch.float64, device=self._device())
        dist.all_reduce(total)
        return dict(zip(values, total.tolist(), strict=True))

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Tell for each flag whether it is set in some process."""
        if self.size == 1:
            return flags
        values = torch.tensor(flags, dtype=torch.int32, device=self._device())
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return tuple(bool(value) for value in values.tolist())

    def gather(self, value: Any) -> list[Any]:
        """Return the value of every process, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def _device(self) -> torch.device:
        return torch.device("cuda", self.local_rank) if dist.get_backend() == "nccl" else torch.device("cpu")


def is_launched() -> bool:
    """Tell whether torchrun has started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextlib.contextmanager
def join(device: torch.device, timeout_seconds: float) -> Iterator[World]:
    """Take part in the run that torchrun has started, or be alone.

    Args:
        device: where the network is computed; CUDA uses NCCL, the processor Gloo.
        timeout_seconds: a process that waits longer for another gives up, so that all end and can be restarted.
    """
    if not is_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield World()
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_seconds))
    try:
        yield World(dist.get_rank(), dist.get_world_size(), local_rank)
    finally:
        dist.destroy_process_group()


def run_on_processes(num_processes: int, max_restarts: int, function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function in several processes of this machine, as torchrun does, and return what process 0 returns.

    If one process dies, all are ended and started again, up to `max_restarts` times.

    Raises:
        RetryableError: this process was asked to end; what the processes have saved is gone on from.
        StabnError: a process failed for good; its own message is in the output above.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Else the processes of a second attempt meet in the store of the first and find the addresses of the dead.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        rdzv_configs={"timeout": 120},
        max_restarts=max_restarts,
        monitor_interval=0.5,
        start_method="spawn",
    )
    try:
        with _signal_handlers_kept():
            return elastic_launch(config, _call)(function, *arguments)[0]  # type: ignore[no-any-return]
    except SignalException as error:
        raise RetryableError(f"stopped ({error}); run it again to go on from the last checkpoint") from None
    except ChildFailedError as error:
        own = [rank for rank, failure in error.failures.items() if failure.exitcode in EXIT_CODES]
        rank = own[0] if own else error.get_first_failure()[0]
        failure = error.failures[rank]
        kind = RetryableError if failure.exitcode == RetryableError.exit_code else StabnError
        raise kind(
            f"process {rank} of {num_processes} ended with code {failure.exitcode}; its message is above"
        ) from None


@contextlib.contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Put the signal handlers back that the launcher replaces with its own and leaves."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kinds = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    former = {kind: signal.getsignal(kind) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in former.items():
            signal.signal(kind, handler)


def _call(function: Callable[..., Result], *arguments: Any) -> Result:
    try:
        return function(*arguments)
    except StabnError as error:
        print(f"process {os.environ.get('RANK')}: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
            print(f"process {os.environ.get('RANK')}: lost another process", file=sys.stderr, flush=True)
            time.sleep(LOST_SECONDS)  # let the one that knows the reason be the first to end
        raise
