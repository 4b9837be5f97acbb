"""The doctor's checks of object storage, MLflow, KFP, and the GPU of this machine."""

import email.utils
import json
import os
import shlex
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.doctor.places import TIMEOUT_SECONDS, Places, Skipped, Wrong, short
from stabn.endpoint import basic_authorization, without_user

MLFLOW_EXPERIMENT = "stabn-doctor"
MAX_CLOCK_SECONDS = 300
CREDENTIALS = {
    "MLFLOW_TRACKING_URI": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    "KF_PIPELINES_ENDPOINT": "KF_PIPELINES_SA_TOKEN_PATH or STABN_KFP_TOKEN",
}


def check_storage(places: Places) -> str:
    """Write, read in part, refuse to overwrite, list and delete an object."""
    from stabn.storage import check_promises, open_storage

    if not places.storage_uri:
        raise Skipped("no STABN_STORAGE_URI or --storage")
    started, storage = time.monotonic(), open_storage(places.storage_uri)
    if not check_promises(storage):
        raise Wrong(
            f"{storage.uri}: the store ignores If-None-Match: only one editor server may serve a round, and two runs "
            "into one output may not see each other in time; use a store that honours it"
        )
    return f"{storage.uri}: written, read, listed and deleted in {time.monotonic() - started:.1f} s"


def check_mlflow(places: Places) -> str:
    """Track a run with a metric and an artifact, and delete it."""
    if not places.tracking_uri:
        raise Skipped("no MLFLOW_TRACKING_URI: nothing will be tracked")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from stabn.tracking import artifact_root

    uri = places.tracking_uri
    if uri.startswith(("http://", "https://")):
        _get(f"{uri.rstrip('/')}/health", "MLFLOW_TRACKING_URI", _mlflow_headers(uri), plain=True)
    elif uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise Wrong(f"{uri}: no such database; make it with `mlflow db upgrade {shlex.quote(uri)}`")
    try:
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(MLFLOW_EXPERIMENT)
        root = artifact_root(uri)
        experiment = found.experiment_id if found else client.create_experiment(MLFLOW_EXPERIMENT, root)
        run_id = client.create_run(experiment).info.run_id
        try:
            client.log_metric(run_id, "checked", 1.0)
            client.log_text(run_id, "stabn doctor", "doctor.txt")
            if [item.path for item in client.list_artifacts(run_id)] != ["doctor.txt"]:
                raise Wrong(f"{uri}: an artifact just logged is not there; check --artifacts-destination of the server")
        finally:
            client.set_terminated(run_id, "FINISHED")
            client.delete_run(run_id)
    except MlflowException as error:
        raise Wrong(f"{uri}: {_mlflow_reason(uri, str(error))}") from None
    return f"{uri}: a run with a metric and an artifact was tracked and deleted"


def check_kfp(places: Places) -> str:
    """Ask KFP for its version and its pipelines."""
    if not places.kfp_host:
        raise Skipped("no KF_PIPELINES_ENDPOINT or --kfp")
    base = f"{places.kfp_host.rstrip('/')}/apis/v2beta1"
    health = _get(f"{base}/healthz", "KF_PIPELINES_ENDPOINT")
    token_path = Path(os.environ.get("KF_PIPELINES_SA_TOKEN_PATH", ""))
    token = token_path.read_text().strip() if token_path.is_file() else os.environ.get("STABN_KFP_TOKEN", "")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    found = _get(f"{base}/pipelines?page_size=1", "KF_PIPELINES_ENDPOINT", headers)
    version = health.get("tag_name") or "of unknown version"
    return f"{places.kfp_host}: KFP {version}, {found.get('total_size', 0)} pipelines"


def check_gpu_here(places: Places) -> str:
    """Compute on the GPU of this machine, if it has one, and compare its bf16 convolutions with those in fp32."""
    has_driver = any(Path("/dev").glob("nvidia[0-9]*"))
    try:
        import torch
    except ImportError:
        raise Skipped("PyTorch is not installed here; the trainer image has it") from None
    if not torch.cuda.is_available():
        if not has_driver:
            raise Skipped("no GPU on this machine, and so no cuDNN to check; training runs on the CPU")
        remedy = "build the trainer image with TORCH=cuda" if torch.version.cuda is None else "update the driver"
        raise Wrong(f"there is a GPU, but PyTorch {torch.__version__} cannot use it: {remedy}")
    total = float(torch.ones(64, 64, device="cuda").matmul(torch.ones(64, 64, device="cuda")).sum())
    if total != 64.0**3:
        raise Wrong(f"{torch.cuda.get_device_name()}: a matrix product is wrong ({total}); take the machine out")
    from stabn.training.arithmetic import check_bf16, cudnn_version, fitting_shapes

    device = torch.device("cuda")
    worst = max(check_bf16(device, fitting_shapes(device)).values())
    found = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, PyTorch {torch.__version__}"
    return f"{found}, {cudnn_version()}, conv3d in bf16 within {worst:.1%} of fp32"


def _mlflow_headers(uri: str) -> dict[str, str]:
    """Return how MLflow's client says who asks: by its variables, or by user and password in the address."""
    name, password, token = (os.environ.get(f"MLFLOW_TRACKING_{what}") for what in ("USERNAME", "PASSWORD", "TOKEN"))
    if name and password:
        name, password = urllib.parse.quote(name, safe=""), urllib.parse.quote(password, safe="")
        return basic_authorization(f"//{name}:{password}@")
    return {"Authorization": f"Bearer {token}"} if token else basic_authorization(uri)


def _get(url: str, setting: str, headers: Mapping[str, str] = {}, plain: bool = False) -> dict[str, Any]:
    """Return the JSON document of an address.

    Raises:
        Wrong: no answer, a refusal, or something else than JSON.
    """
    if not url.startswith(("http://", "https://")):
        raise Wrong(f"{setting} = {url!r}: begin with http:// or https://")
    remedies = {
        401: f"give credentials: {CREDENTIALS[setting]}",
        403: "the token lacks the permission, or the server refuses this host name (MLFLOW_SERVER_ALLOWED_HOSTS)",
        404: f"{setting} has another path or is another server",
    }
    headers, url = headers or basic_authorization(url), without_user(url)  # urllib takes a password for a port
    try:
        request = urllib.request.Request(url, headers=dict(headers))
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            text = answer.read(1 << 20)
            _check_clock(url, answer.headers.get("Date"))
        if text.lstrip()[:1] == b"<":
            raise Wrong(f"{url}: answers with a web page, as a sign-in does; give a token or another address")
        return {} if plain else json.loads(text)  # type: ignore[no-any-return]
    except urllib.error.HTTPError as error:
        raise Wrong(f"{url}: answered {error.code}; {remedies.get(error.code, 'look at its log')}") from None
    except (OSError, ValueError) as error:
        reason = short(getattr(error, "reason", error))
        raise Wrong(f"{url}: {reason}; is {setting} right, does it run, does a network policy allow it?") from None


def _check_clock(url: str, date: str | None) -> None:
    """Compare this machine's clock with a server's; tokens and signatures are good for minutes."""
    try:
        seconds = time.time() - email.utils.parsedate_to_datetime(date or "").timestamp()
    except (TypeError, ValueError):
        return
    if abs(seconds) > MAX_CLOCK_SECONDS:
        way = "ahead of" if seconds > 0 else "behind"
        raise Wrong(f"{url}: this machine's clock is {abs(seconds) / 60:.0f} minutes {way} the server's; set it (NTP)")


def _mlflow_reason(uri: str, text: str) -> str:
    if "403" in text:
        host = urllib.parse.urlsplit(without_user(uri)).netloc
        return f"{short(text)}; add {host} to MLFLOW_SERVER_ALLOWED_HOSTS of the server"
    if "out-of-date database schema" in text:
        return f"its tables are of another version of MLflow; run `mlflow db upgrade {shlex.quote(uri)}`"
    return f"{short(text)}; look at the server's log, its database and its artifacts destination"
