"""Errors that a user can act on, and the exit code each ends a process with."""

from stabn.masking import masked


class StabnError(Exception):
    """Report bad input, naming the file or id, the value and the remedy; trying again will not help.

    Its text is without secrets, whatever it was made of.
    """

    exit_code = 2

    def __str__(self) -> str:
        return masked(super().__str__())


class RetryableError(StabnError):
    """Report a failure that may pass by itself (storage, preemption); the same command may be run again.

    The exit code is EX_TEMPFAIL of sysexits.h, which launchers can map to a retry.
    """

    exit_code = 75


class Preempted(RetryableError):
    """Report that the process was asked to end (SIGTERM) and saved where it was; run again, it goes on."""


class Overdue(RetryableError):
    """Report that others (people, a run, restarts of a job) were waited for as long as was asked: not again at once."""


class Interrupted(Preempted):
    """Report the same of Ctrl+C (SIGINT); the exit code is what shells expect then, 128 + SIGINT."""

    exit_code = 130
