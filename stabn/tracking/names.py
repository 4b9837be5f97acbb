"""What things are called in MLflow, how long a name may be, and where a page is."""

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stabn.endpoint import without_user
from stabn.errors import StabnError

EXPERIMENT = "stabn"
CHAMPION = "champion"
STAGE, STAGE_KEY, RUN_ID, PIPELINE = "stabn.stage", "stabn.stage_key", "stabn.run_id", "stabn.pipeline"
ROLE, ERROR, IMAGE, PARENT_MODEL = "stabn.role", "stabn.error", "stabn.image", "stabn.parent_model"
PARENT_RUN, COMMIT = "mlflow.parentRunId", "mlflow.source.git.commit"  # names that MLflow's pages know
MAX_PARAM_CHARS, MAX_TAG_CHARS, MAX_NAME_CHARS = 6000, 5000, 250
FORMER_MAX_CHARS = (500, 250)  # of a value, on older servers


class TrackingError(StabnError):
    """The tracking settings are unusable."""


def safe_name(text: str) -> str:
    """Return a name that MLflow accepts for a metric, parameter or tag."""
    return re.sub(r"[^A-Za-z0-9_\-. :/]", "_", text)[:MAX_NAME_CHARS]


def check_name(text: str, what: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}", text):
        raise TrackingError(f"{what} {text!r}: use letters, digits, '.', '_', '-' and '/'")


def check_model_name(name: str) -> None:
    """Refuse a name that MLflow's model registry does not take, or that would have to be escaped somewhere.

    Raises:
        TrackingError: says what it may be made of.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", name):
        raise TrackingError(f"model {name!r}: use letters, digits, '.', '_' and '-', beginning with a letter or digit")


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(value) if isinstance(value, list | tuple) else str(value)


def ui_url() -> str:
    uri = os.environ.get("STABN_MLFLOW_UI_URL") or os.environ.get("MLFLOW_TRACKING_URI", "")
    return without_user(uri).rstrip("/") if uri.startswith("http") else ""


def common_tags() -> dict[str, str]:
    return {
        PIPELINE: os.environ.get("STABN_PIPELINE", ""),
        RUN_ID: os.environ.get("STABN_RUN_ID", ""),
        COMMIT: os.environ.get("STABN_GIT_COMMIT") or git_commit(),
        IMAGE: os.environ.get("STABN_IMAGE", ""),
    }


def git_commit() -> str:
    """Return the commit of the checkout this code runs from, with `-dirty` if it was changed; "" if it is none."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
