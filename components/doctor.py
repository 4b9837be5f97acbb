"""`stabn doctor`: try every connection that a run needs, the way it needs it, and say what to fix.

Each check is a function that returns what it saw. It raises `Skipped` when there is nothing to check, and StabnError,
whose message has the remedy, when something is wrong. A check never stops the others.
"""

import contextlib
import dataclasses
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stabn.errors import StabnError

GROUP, VERSION = "trainer.kubeflow.org", "v1alpha1"
# Exactly what a pipeline's step does, as in the role stabn-pipeline of k8s/base/rbac.yaml: (group, resource, verbs).
PERMISSIONS = (
    (GROUP, "trainjobs", ("get", "list", "watch", "create", "delete")),
    (GROUP, "trainingruntimes", ("get", "create", "patch", "delete")),
    ("", "pods", ("get", "list", "watch")),
    ("", "pods/log", ("get",)),
    ("", "events", ("list", "watch")),
)
TIMEOUT_SECONDS = 10
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
MLFLOW_EXPERIMENT = "stabn-doctor"
NO_CLUSTER = "neither in a cluster nor KUBECONFIG set"
# While checking, one attempt tells enough; the stages themselves are patient.
IMPATIENT = {
    "AWS_MAX_ATTEMPTS": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(TIMEOUT_SECONDS),
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
}


class Skipped(Exception):
    """There is nothing to check; the message says why."""


class Wrong(StabnError):
    """A check failed; the message says what to do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
    """What is to be checked; an empty text is not.

    Attributes:
        storage_uri: folder or s3:// prefix of the runs.
        tracking_uri: MLflow's.
        kfp_host: address of the KFP API.
        namespace: where TrainJobs run; empty: the step's own, or that of the kubeconfig's context.
        runtime: TrainingRuntime of the jobs.
        accelerator: resource that the nodes shall have, such as nvidia.com/gpu.
    """

    storage_uri: str = ""
    tracking_uri: str = ""
    kfp_host: str = ""
    namespace: str = ""
    runtime: str = "stabn-torch"
    accelerator: str = "nvidia.com/gpu"

    @classmethod
    def from_environment(cls) -> "Places":
        """Return what the variables of a step or of the ConfigMaps stabn-storage and stabn-trainjob name."""
        get = os.environ.get
        return cls(
            storage_uri=get("STABN_STORAGE_URI", ""),
            tracking_uri=get("MLFLOW_TRACKING_URI", ""),
            kfp_host=get("KF_PIPELINES_ENDPOINT", ""),
            namespace=get("STABN_TRAINJOB_NAMESPACE", ""),
            runtime=get("STABN_TRAINJOB_RUNTIME", "") or "stabn-torch",
        )


def examine(places: Places, say: Callable[[str], None] = print) -> bool:
    """Run every check, a line for each: ok, failed or skipped; return whether none failed."""
    checks: dict[str, Callable[[Places], str]] = {
        "storage": check_storage,
        "mlflow": check_mlflow,
        "kfp": check_kfp,
        "kubernetes": check_kubernetes,
        "trainer": check_trainer,
        "permissions": check_permissions,
        "gpu here": check_gpu_here,
        "gpu nodes": check_gpu_nodes,
    }
    failed = []
    with _environment(IMPATIENT):
        for name, check in checks.items():
            try:
                status, text = "ok", check(places)
            except Skipped as reason:
                status, text = "skipped", str(reason)
            except StabnError as error:
                status, text = "failed", str(error)
            except Exception as error:  # whatever a library raises belongs into the line of its check
                status, text = "failed", f"{type(error).__name__}: {error}"
            failed += [name] if status == "failed" else []
            say(f"{status:8} {name:12} {' '.join(text.split())}")
    return not failed


def check_storage(places: Places) -> str:
    """Write, read in part, refuse to overwrite, list and delete an object."""
    from stabn.storage import ObjectExists, open_storage

    if not places.storage_uri:
        raise Skipped("no STABN_STORAGE_URI or --storage")
    started = time.monotonic()
    storage, key = open_storage(places.storage_uri), f"doctor/{uuid.uuid4().hex}"
    storage.write(key, b"stabn doctor", if_absent=True)
    try:
        if storage.read_range(key, 6, 6) != b"doctor":
            raise Wrong(f"{storage.locate(key)}: a ranged GET returned other bytes; use a store that supports Range")
        try:
            storage.write(key, b"again", if_absent=True)
            raise Wrong(f"{storage.uri}: the store ignores If-None-Match; the editor needs a store that honours it")
        except ObjectExists:
            pass
        if key not in list(storage.list("doctor/")):
            raise Wrong(f"{storage.uri}: an object just written is not listed; allow these keys to list the bucket")
    finally:
        storage.delete(key)
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
        _get(f"{uri.rstrip('/')}/health", "MLFLOW_TRACKING_URI", plain=True)
    elif uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise Wrong(f"{uri}: no such database; make it with `mlflow db upgrade {uri}`")
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
    found = _get(f"{base}/pipelines?page_size=1", "KF_PIPELINES_ENDPOINT", token)
    version = health.get("tag_name") or "of unknown version"
    return f"{places.kfp_host}: KFP {version}, {found.get('total_size', 0)} pipelines"


def check_kubernetes(places: Places) -> str:
    """Reach the API server."""
    with _kubernetes(places) as (client, namespace):
        from kubernetes.client import VersionApi

        return f"{client.configuration.host}: {VersionApi(client).get_code().git_version}, namespace {namespace}"


def check_trainer(places: Places) -> str:
    """Find Kubeflow Trainer, new enough, and the runtime that the jobs build on."""
    with _kubernetes(places) as (client, namespace):
        kinds = _read(client, f"/apis/{GROUP}/{VERSION}")
        if kinds is None or "trainjobs" not in {item["name"] for item in kinds["resources"]}:
            raise Wrong(f"no {GROUP}/{VERSION} TrainJob here: install Kubeflow Trainer (docs/install.md, step 3)")
        schema = _read(client, f"/openapi/v3/apis/{GROUP}/{VERSION}")
        if schema is not None and "runtimePatches" not in json.dumps(schema):
            raise Wrong(f"{GROUP}/{VERSION} has no runtimePatches: upgrade Kubeflow Trainer to 2.2 or later")
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/trainingruntimes/{places.runtime}"
        runtime = _read(client, path)
        if runtime is None:
            raise Wrong(f"no TrainingRuntime {places.runtime} in namespace {namespace}: kubectl apply -k an overlay")
        jobs = {item["name"]: item for item in runtime["spec"]["template"]["spec"]["replicatedJobs"]}
        pod = jobs["node"]["template"]["spec"]["template"]["spec"] if "node" in jobs else {"containers": []}
        if "node" not in {item["name"] for item in pod["containers"]} or "torch" not in runtime["spec"]["mlPolicy"]:
            raise Wrong(
                f"TrainingRuntime {places.runtime}: needs the policy torch and a replicated job `node` with a "
                "container `node`; apply k8s/base again"
            )
        return f"{GROUP}/{VERSION} with TrainingRuntime {places.runtime} in namespace {namespace}"


def check_permissions(places: Places) -> str:
    """Ask whether each call that a step makes would be allowed."""
    with _kubernetes(places) as (client, namespace):
        from kubernetes import client as kube

        api, missing, count = kube.AuthorizationV1Api(client), [], 0
        for group, resource, verbs in PERMISSIONS:
            name, _, part = resource.partition("/")
            for verb in verbs:
                wanted = kube.V1ResourceAttributes(
                    namespace=namespace, verb=verb, group=group, resource=name, subresource=part or None
                )
                review = kube.V1SelfSubjectAccessReview(
                    spec=kube.V1SelfSubjectAccessReviewSpec(resource_attributes=wanted)
                )
                answer = api.create_self_subject_access_review(review, _request_timeout=TIMEOUT_SECONDS)
                missing += [] if answer.status.allowed else [f"{verb} {resource}"]
                count += 1
        if missing:
            raise Wrong(
                f"may not {', '.join(missing)} in namespace {namespace}: bind the role stabn-pipeline "
                "(k8s/base/rbac.yaml) to this service account"
            )
        return f"all {count} that a step needs in namespace {namespace}"


def check_gpu_here(places: Places) -> str:
    """Compute on the GPU of this machine, if it has one."""
    has_driver = any(Path("/dev").glob("nvidia[0-9]*"))
    try:
        import torch
    except ImportError:
        raise Skipped("PyTorch is not installed here; the trainer image has it") from None
    if not torch.cuda.is_available():
        if not has_driver:
            raise Skipped("no GPU on this machine; training runs on the CPU")
        remedy = "build the trainer image with TORCH=cuda" if torch.version.cuda is None else "update the driver"
        raise Wrong(f"there is a GPU, but PyTorch {torch.__version__} cannot use it: {remedy}")
    total = float(torch.ones(64, 64, device="cuda").matmul(torch.ones(64, 64, device="cuda")).sum())
    if total != 64.0**3:
        raise Wrong(f"{torch.cuda.get_device_name()}: a matrix product is wrong ({total}); take the machine out")
    return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, PyTorch {torch.__version__}"


def check_gpu_nodes(places: Places) -> str:
    """Count the accelerators of the cluster's nodes."""
    with _kubernetes(places) as (client, _):
        from kubernetes.client.exceptions import ApiException

        try:
            nodes = _read(client, "/api/v1/nodes")
        except ApiException as error:
            if error.status != 403:
                raise
            raise Skipped("may not list nodes, which a step need not; ask with an administrator's kubeconfig") from None
        counts = [int(n["status"].get("allocatable", {}).get(places.accelerator, 0)) for n in (nodes or {})["items"]]
        if not any(counts):
            raise Skipped(
                f"no node offers {places.accelerator}: for GPUs install the device plugin; else train on the CPU"
            )
        return f"{sum(counts)} {places.accelerator} on {sum(map(bool, counts))} of {len(counts)} nodes"


@contextlib.contextmanager
def _kubernetes(places: Places) -> Iterator[tuple[Any, str]]:
    """Yield an API client and the namespace; what goes wrong meanwhile becomes one line with a remedy.

    Raises:
        Skipped: there is no cluster to speak to.
    """
    in_cluster, path = bool(os.environ.get("KUBERNETES_SERVICE_HOST")), os.environ.get("KUBECONFIG", "")
    if not in_cluster and not path:
        raise Skipped(NO_CLUSTER)
    try:
        from kubernetes import client as kube
        from kubernetes import config
        from kubernetes.client.exceptions import ApiException
    except ImportError:
        raise Wrong("the package kubernetes is not installed: pip install 'stabn[pipelines]'") from None
    from urllib3.exceptions import HTTPError

    settings, own = kube.Configuration(), "default"
    try:
        if in_cluster:
            config.load_incluster_config(settings)
            own = NAMESPACE_FILE.read_text().strip()
        else:
            config.load_kube_config(path, client_configuration=settings)
            own = config.list_kube_config_contexts(path)[1]["context"].get("namespace") or own
    except (config.ConfigException, OSError) as error:
        raise Wrong(f"{path or 'service account'}: {error}; give a kubeconfig with a current context") from None
    settings.retries = 0
    try:
        with kube.ApiClient(settings) as client:
            yield client, places.namespace or own
    except ApiException as error:
        remedy = {401: "renew the token or log in again", 403: "bind the role stabn-pipeline of k8s/base/rbac.yaml"}
        said = json.loads(error.body)["message"] if str(error.body).startswith("{") else error.reason
        raise Wrong(
            f"{settings.host}: {error.status} {said}; {remedy.get(error.status, 'look at the API server')}"
        ) from None
    except (HTTPError, OSError) as error:
        raise Wrong(f"{settings.host}: {_short(error)}; is the address right, and does a firewall allow it?") from None


def _read(client: Any, path: str) -> dict[str, Any] | None:
    """Return what the API has under a path; None: nothing."""
    from kubernetes.client.exceptions import ApiException

    try:
        return client.call_api(  # type: ignore[no-any-return]
            path,
            "GET",
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],
            response_type="object",
            _return_http_data_only=True,
            _request_timeout=TIMEOUT_SECONDS,
        )
    except ApiException as error:
        if error.status == 404:
            return None
        raise


def _get(url: str, setting: str, token: str = "", plain: bool = False) -> dict[str, Any]:
    """Return the JSON document of an address.

    Raises:
        Wrong: no answer, a refusal, or something else than JSON.
    """
    if not url.startswith(("http://", "https://")):
        raise Wrong(f"{setting} = {url!r}: begin with http:// or https://")
    remedies = {
        401: "give a token: KF_PIPELINES_SA_TOKEN_PATH or STABN_KFP_TOKEN",
        403: "the token lacks the permission, or the server refuses this host name (MLFLOW_SERVER_ALLOWED_HOSTS)",
        404: f"{setting} has another path or is another server",
    }
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS) as answer:
            text = answer.read(1 << 20)
        return {} if plain else json.loads(text)  # type: ignore[no-any-return]
    except urllib.error.HTTPError as error:
        raise Wrong(f"{url}: answered {error.code}; {remedies.get(error.code, 'look at its log')}") from None
    except (OSError, ValueError) as error:
        reason = _short(getattr(error, "reason", error))
        raise Wrong(f"{url}: {reason}; is {setting} right, does it run, does a network policy allow it?") from None


def _mlflow_reason(uri: str, text: str) -> str:
    if "403" in text:
        host = urllib.parse.urlsplit(uri).netloc
        return f"{_short(text)}; add {host} to MLFLOW_SERVER_ALLOWED_HOSTS of the server"
    if "out-of-date database schema" in text:
        return f"its tables are of another version of MLflow; run `mlflow db upgrade {uri}`"
    return f"{_short(text)}; look at the server's log, its database and its artifacts destination"


def _short(error: object) -> str:
    return " ".join(str(error).split())[:300]


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
