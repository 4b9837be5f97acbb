"""What only some systems have, each behind one function that does its best without: cores, limits, locks, names.

Linux has all of it; macOS has no affinity and takes no limit of the address space; some file systems have no locks.
"""

import contextlib
import ctypes
import errno
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

CGROUPS = Path("/sys/fs/cgroup")
_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


class NoLocks(OSError):
    """The file system of a file has no locks."""


def num_cores() -> int:
    """Return how many cores this process may use: those of its affinity, and no more than its container's limit."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cores = os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(share) for share in _cpu_limits())]))


def control_groups() -> list[Path]:
    """Return the folders of this process' control group and of those around it; in a container the root's alone."""
    lines = read_text(Path("/proc/self/cgroup")).splitlines()
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    folder = CGROUPS / own.strip("/")
    return [one for one in (folder, *folder.parents) if one.is_relative_to(CGROUPS)]


def read_text(path: Path) -> str:
    """Return what a file of the kernel says; empty if there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _cpu_limits() -> Iterator[float]:
    """Yield how many cores' time the control groups around this process may take, those that have a limit."""
    for folder in control_groups():
        for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
            quota, *rest = [*" ".join(read_text(folder / name) for name in names).split(), ""]
            if quota.isdigit() and rest[0].isdigit() and int(rest[0]):
                yield int(quota) / int(rest[0])


def limit_memory(num_bytes: int) -> bool:
    """Let this process take no more than so many bytes of address space; return whether the system does that."""
    try:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, hard))
    except (ImportError, AttributeError, ValueError, OSError):  # macOS refuses what is below what it has mapped
        return False
    return True


def end_with_parent(number: int = signal.SIGKILL) -> Callable[[], object] | None:
    """Return what a new child process runs so that the kernel ends it if its parent is killed; None if impossible.

    The kernel watches the thread that starts the child: take it where that thread lives as long as the process.

    Args:
        number: the signal that the kernel sends.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        prctl = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return None
    return lambda: prctl(1, number)  # 1: PR_SET_PDEATHSIG


def process_space() -> str:
    """Name what this process' number belongs to: a machine since its start, and a container's own numbers."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def lock(file: IO, *, wait: bool = True, shared: bool = False) -> bool:
    """Lock an open file until it is closed; return whether it could be had, which without waiting may be no.

    Raises:
        NoLocks: its file system has none.
    """
    try:
        import fcntl

        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
    except ImportError:
        raise NoLocks(errno.ENOSYS, "this system has no flock") from None
    except OSError as error:
        if error.errno in _TAKEN and not wait:
            return False
        raise NoLocks(error.errno, f"{error.strerror} (its file system has no locks)") from None
    return True


@contextlib.contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let one process at a time into the block, by a file; where it cannot be written or locked, all of them."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            lock(stack.enter_context(open(path, "a")))
        yield
