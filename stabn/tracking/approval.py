"""Whether a person approves of a version becoming the champion: a tag on the version, which anybody may set.

`stabn approve`, MLflow's page and whoever calls `decide` set the same tag, `stabn.approval`: `yes …` or `no …`.
"""

import os
from datetime import UTC, datetime
from typing import NamedTuple

from stabn.masking import masked
from stabn.tracking.client import start_errors, tracking_client
from stabn.tracking.names import TrackingError, check_model_name

APPROVAL = "stabn.approval"  # the version's tag
WANTED, YES, NO = "wanted", "yes", "no"
KNOWN = {YES: YES, "true": YES, NO: NO, "false": NO}


class Approval(NamedTuple):
    """What was decided of a version: WANTED, YES or NO, and the rest of the tag: by whom, when, why."""

    state: str
    words: str


def decide(model_name: str, version: str, approved: bool, by: str, reason: str = "") -> str:
    """Say whether a registered version may become the champion; a stage promote that waits for it goes on.

    Args:
        model_name: of the registered model.
        version: its number.
        approved: yes or no.
        by: who says so.
        reason: why, in a few words.

    Returns:
        The tag as it was set.

    Raises:
        TrackingError: no tracking, or no such version.
        RetryableError: the tracking server does not answer.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise TrackingError("MLFLOW_TRACKING_URI is not set; set it to the server whose model this is")
    now = datetime.now(UTC).isoformat(timespec="minutes")
    said = " ".join(f"{YES if approved else NO} by {by} at {now}{': ' + reason if reason else ''}".split())
    read_approval(model_name, version)  # that it is there
    with start_errors():
        tracking_client().set_model_version_tag(model_name, version, APPROVAL, masked(said))
    return said


def read_approval(model_name: str, version: str) -> Approval:
    """Return what was decided of a version so far; raises as `decide`."""
    from mlflow.exceptions import MlflowException

    check_model_name(model_name)
    with start_errors():
        try:
            tags = tracking_client().get_model_version(model_name, version).tags
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise TrackingError(f"{model_name!r} has no version {version!r}; see MLflow's page of models") from None
    state, _, words = tags.get(APPROVAL, "").strip().partition(" ")
    return Approval(KNOWN.get(state.lower().rstrip(",:"), WANTED), words)


def ask_for_approval(model_name: str, version: str) -> None:
    """Mark a version as waiting for a person, unless somebody has decided already."""
    with start_errors():
        client = tracking_client()
        if APPROVAL not in client.get_model_version(model_name, version).tags:
            client.set_model_version_tag(model_name, version, APPROVAL, WANTED)
