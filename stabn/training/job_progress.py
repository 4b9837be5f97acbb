"""How much of a training is done, told now and then to MLflow and to Kubeflow Trainer.

Trainer, where its feature gate for it is on, gives every pod of a TrainJob an address, a token and a certificate for
this, and shows what it is told as `status.trainerStatus` of the job: `kubectl get trainjob -o yaml`, `stabn status`.
"""

import datetime
import json
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from stabn.masking import first_line

URL, CERTIFICATE = "KUBEFLOW_TRAINER_SERVER_URL", "KUBEFLOW_TRAINER_SERVER_CA_CERT"
TOKEN = "KUBEFLOW_TRAINER_SERVER_TOKEN"  # the path of a file, whose content changes
EVERY_SECONDS = 30.0
TIMEOUT_SECONDS = 5.0

log = logging.getLogger(__name__)


class JobProgress:
    """Tell how much of a training is done and how long the rest takes, at most every EVERY_SECONDS.

    Telling never holds up the training nor fails it: Trainer is told by a thread, and while one update is under way the
    next is left out.

    Args:
        track: takes the numbers for MLflow, `progress_percent` and `seconds_left`, and the percentage as their step.
    """

    def __init__(self, track: Callable[[dict[str, float], int], None]) -> None:
        self._track = track
        self._first: tuple[float, float] | None = None  # time and share
        self._told = time.monotonic()
        self._sending: threading.Thread | None = None
        self._warned = False

    def tell(self, share: float, numbers: Mapping[str, float]) -> None:
        """Tell what is done, if it is time.

        Args:
            share: of the whole training, 0 to 1.
            numbers: the newest, such as the loss.
        """
        now = time.monotonic()
        if self._first is None:
            self._first = (now, share)
        began, done_before = self._first
        if now - self._told < EVERY_SECONDS or share <= done_before:
            return
        self._told = now
        left = (now - began) / (share - done_before) * (1 - share)
        percent = int(100 * share)
        self._track({"progress_percent": float(percent), "seconds_left": left}, percent)
        self._send(_status(percent, left, numbers))

    def finish(self, numbers: Mapping[str, float]) -> None:
        """Tell Trainer that all is done, and wait for it."""
        self._wait()
        self._send(_status(100, 0.0, numbers))
        self._wait()

    def _wait(self) -> None:
        if self._sending is not None:
            self._sending.join(2 * TIMEOUT_SECONDS)

    def _send(self, status: dict[str, Any]) -> None:
        url = os.environ.get(URL, "")
        if not url.startswith(("https://", "http://")) or (self._sending is not None and self._sending.is_alive()):
            return
        self._sending = threading.Thread(target=self._post, args=(url, status), daemon=True, name="trainer status")
        self._sending.start()

    def _post(self, url: str, status: dict[str, Any]) -> None:
        try:
            certificate, token = os.environ.get(CERTIFICATE), os.environ.get(TOKEN)
            headers = {"Content-Type": "application/json"}
            if token:
                headers["Authorization"] = f"Bearer {Path(token).read_text().strip()}"
            request = Request(url, json.dumps({"trainerStatus": status}).encode(), headers)
            context = ssl.create_default_context(cafile=certificate or None)
            with urlopen(request, timeout=TIMEOUT_SECONDS, context=context if url.startswith("https") else None):
                pass
            self._warned = False
        except (OSError, ValueError) as error:  # of files, the network, TLS, or an answer that refuses
            if not self._warned:
                log.warning("Kubeflow Trainer is not told of the progress: %s; training goes on", first_line(error))
                self._warned = True


def _status(percent: int, left: float, numbers: Mapping[str, float]) -> dict[str, Any]:
    """Return a `trainerStatus` as Trainer's API has it."""
    return {
        "progressPercentage": percent,
        "estimatedRemainingSeconds": round(left),
        "metrics": [{"name": name, "value": f"{value:.6g}"} for name, value in numbers.items()],
        "lastUpdatedTime": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}",
    }
