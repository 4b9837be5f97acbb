"""Waiting for a person's yes or no to a network that would become the champion."""

import math
import os
import time

from stabn.errors import RetryableError, StabnError
from stabn.tracking import WANTED, YES, ask_for_approval, read_approval, run_link, stages_of
from stabn.tracking.approval import APPROVAL

POLL_SECONDS, REMIND_SECONDS = 15.0, 900.0  # between looks at the tag, and lines that say what is waited for


def wait_for_approval(model_name: str, version: str, timeout_seconds: float) -> tuple[bool, str]:
    """Wait until somebody says yes or no to a version, with a line now and then; return which, and a sentence.

    When the time is up the answer is no; a yes that comes later counts at the next try. A server that is away is asked
    again.
    """
    ask_for_approval(model_name, version)
    began, shown = time.monotonic(), -math.inf
    while True:
        state, words = WANTED, ""
        try:
            state, words = read_approval(model_name, version)
        except RetryableError as error:
            print(f"promote: {error}; trying again", flush=True)
        if state != WANTED:
            return state == YES, f"{'Approved' if state == YES else 'Declined'} {words or 'by a person'}."
        waited, hours = time.monotonic() - began, timeout_seconds / 3600
        if waited >= timeout_seconds:
            return False, (
                f"Nobody approved within {hours:g} hours: `stabn approve {model_name} {version}`, and promote again."
            )
        if waited - shown >= REMIND_SECONDS:
            shown = waited
            print(
                f"promote: {model_name} version {version} waits for a person, {waited / 3600:.1f} of {hours:g} hours: "
                f"`stabn approve {model_name} {version}` (or with --decline), or the version's tag {APPROVAL} = yes"
                f"{_report()}",
                flush=True,
            )
        time.sleep(min(POLL_SECONDS, max(0.0, timeout_seconds - waited) + 0.01))


def _report() -> str:
    """Return where this pipeline run's report is, for the end of a line, if there is one yet and it has a page."""
    run_id = os.environ.get("STABN_RUN_ID", "")
    try:
        reports = [stage for stage in stages_of(run_id) if stage.key == "report"] if run_id else []
        link = run_link(reports[-1].run_id) if reports else ""
    except StabnError:
        return ""
    return f"; the report: {link}" if link else ""
