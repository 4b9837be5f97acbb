"""How much memory this process may take, how much /dev/shm has left, and whether the limit was reached."""

import os
from pathlib import Path

import psutil

from stabn.machine import control_groups, read_text

SHARED = Path("/dev/shm")


def memory_limit() -> int:
    """Return the bytes that the processes of this machine or container may take together."""
    limits = [psutil.virtual_memory().total]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        for folder in control_groups():
            text = read_text(folder / name)
            if text.isdigit():
                limits.append(int(text))
    return min(limits)


def free_shared_memory() -> int | None:
    """Return the bytes that are free in /dev/shm; None where there is none."""
    if not SHARED.is_dir():
        return None
    found = os.statvfs(SHARED)
    return found.f_bavail * found.f_frsize


def shared_memory() -> int | None:
    """Return the bytes that /dev/shm may hold; None where there is none."""
    if not SHARED.is_dir():
        return None
    found = os.statvfs(SHARED)
    return found.f_blocks * found.f_frsize


def has_been_short() -> bool:
    """Tell whether a process of this container was killed for want of memory since this one was started."""
    return _kills() > _KILLS_BEFORE


def _kills() -> int:
    for folder in control_groups():
        for line in read_text(folder / "memory.events").splitlines():
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    return 0


_KILLS_BEFORE = _kills()
