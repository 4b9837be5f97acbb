"""The doctor's checks of the Kubernetes cluster: the API, Kubeflow Trainer, permissions, accelerators."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from components.doctor.places import TIMEOUT_SECONDS, Places, Skipped, Wrong, short

GROUP, VERSION = "trainer.kubeflow.org", "v1alpha1"
# Exactly what a pipeline's step does, as in the role stabn-pipeline of k8s/base/rbac.yaml: (group, resource, verbs).
PERMISSIONS = (
    (GROUP, "trainjobs", ("get", "list", "watch", "create", "delete")),
    (GROUP, "trainingruntimes", ("get", "create", "patch", "delete")),
    ("", "pods", ("get", "list", "watch")),
    ("", "pods/log", ("get",)),
    ("", "events", ("list", "watch")),
)
# What a TrainJob of ours sets, and Trainer before 2.3 refuses: the time in which a node may save.
GRACE_SECONDS = (
    "spec.runtimePatches.trainingRuntimeSpec.template.spec.replicatedJobs.template.spec.template.spec."
    "terminationGracePeriodSeconds"
)
ARGO_SETTINGS = "workflow-controller-configmap"
# Beside them, where the jobs build on a runtime of the whole cluster, which no role in a namespace can allow to read.
CLUSTER_RUNTIMES = (GROUP, "clustertrainingruntimes", "get")
SECURITY_LABEL = "pod-security.kubernetes.io/enforce"
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
NO_CLUSTER = "neither in a cluster nor KUBECONFIG set"


def check_kubernetes(places: Places) -> str:
    """Reach the API server."""
    with kubernetes_api(places) as (client, namespace):
        from kubernetes.client import VersionApi

        return f"{client.configuration.host}: {VersionApi(client).get_code().git_version}, namespace {namespace}"


def check_trainer(places: Places) -> str:
    """Find Kubeflow Trainer, new enough, and the runtime that the jobs build on."""
    with kubernetes_api(places) as (client, namespace):
        kinds = read(client, f"/apis/{GROUP}/{VERSION}")
        if kinds is None or "trainjobs" not in {item["name"] for item in kinds["resources"]}:
            raise Wrong(f"no {GROUP}/{VERSION} TrainJob here: install Kubeflow Trainer (docs/install.md, step 3)")
        schema = read(client, f"/openapi/v3/apis/{GROUP}/{VERSION}")
        if schema is not None and not _has_field(schema, "TrainJob", GRACE_SECONDS):
            raise Wrong(
                f"{GROUP}/{VERSION} TrainJob has no terminationGracePeriodSeconds in its runtimePatches: upgrade "
                "Kubeflow Trainer to 2.3 or later"
            )
        kind, is_own = places.runtime_kind, places.runtime_kind == "TrainingRuntime"
        where = f" in namespace {namespace}" if is_own else ""
        folder = f"namespaces/{namespace}/trainingruntimes" if is_own else "clustertrainingruntimes"
        runtime = read(client, f"/apis/{GROUP}/{VERSION}/{folder}/{places.runtime}")
        if runtime is None:
            remedy = "kubectl apply -k an overlay" if is_own else "make it, or set STABN_TRAINJOB_RUNTIME"
            raise Wrong(f"no {kind} {places.runtime}{where}: {remedy}")
        jobs = {item["name"]: item for item in runtime["spec"]["template"]["spec"]["replicatedJobs"]}
        pod = jobs["node"]["template"]["spec"]["template"]["spec"] if "node" in jobs else {"containers": []}
        if "node" not in {item["name"] for item in pod["containers"]} or "torch" not in runtime["spec"]["mlPolicy"]:
            raise Wrong(
                f"{kind} {places.runtime}: needs the policy torch and a replicated job `node` with a "
                "container `node`; apply k8s/base again"
            )
        return f"{GROUP}/{VERSION} with {kind} {places.runtime}{where}"


def check_permissions(places: Places) -> str:
    """Ask whether each call that a step makes would be allowed."""
    with kubernetes_api(places) as (client, namespace):
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
        if places.runtime_kind == "ClusterTrainingRuntime":
            group, resource, verb = CLUSTER_RUNTIMES
            everywhere = kube.V1ResourceAttributes(verb=verb, group=group, resource=resource)
            review = kube.V1SelfSubjectAccessReview(
                spec=kube.V1SelfSubjectAccessReviewSpec(resource_attributes=everywhere)
            )
            answer = api.create_self_subject_access_review(review, _request_timeout=TIMEOUT_SECONDS)
            if not answer.status.allowed:
                raise Wrong(
                    f"may not {verb} {resource}, which STABN_TRAINJOB_RUNTIME_KIND asks for: create and bind the "
                    "cluster role stabn-runtimes (docs/cluster-training.md)"
                )
            count += 1
        if missing:
            raise Wrong(
                f"may not {', '.join(missing)} in namespace {namespace}: bind the role stabn-pipeline "
                "(k8s/base/rbac.yaml) to this service account"
            )
        return f"all {count} that a step needs in namespace {namespace}"


def check_retries(places: Places) -> str:
    """Read from Argo's settings whether a step that is killed or evicted is started again, and on what terms.

    A step tries again itself what it can catch; out of memory, evictions and lost machines it cannot.
    """
    where = f"namespaces/{places.kfp_namespace}"
    with kubernetes_api(places) as (client, _):
        from kubernetes.client.exceptions import ApiException

        try:
            found = read(client, f"/api/v1/{where}/configmaps/{ARGO_SETTINGS}")
            namespace = read(client, f"/api/v1/{where}") or {}
        except ApiException as error:
            if error.status != 403:
                raise
            raise Skipped(
                f"may not read {ARGO_SETTINGS} in {places.kfp_namespace}, which a step need not; ask with an "
                "administrator's kubeconfig"
            ) from None
    if found is None:
        raise Skipped(f"no {ARGO_SETTINGS} in namespace {places.kfp_namespace}: KFP is elsewhere")
    policy = _retry_policy(found.get("data") or {})
    if policy == "OnError":
        raise Wrong(
            f"Argo's {ARGO_SETTINGS} in {places.kfp_namespace} has retryPolicy OnError: a step that runs out of memory "
            "or is evicted ends the run, whatever its retries are; set it to Always (docs/install.md, step 2)"
        )
    level = namespace.get("metadata", {}).get("labels", {}).get(SECURITY_LABEL, "no standard")
    return f"retryPolicy {policy or 'OnFailure'}; the namespace enforces {level}, and the steps fulfil restricted"


def _retry_policy(settings: Mapping[str, str]) -> str:
    """Return the retry policy that Argo gives to every template; empty: its own default."""
    import yaml

    for text in (settings.get("workflowDefaults"), settings.get("config")):
        document = yaml.safe_load(text) if text else None
        if isinstance(document, dict):
            defaults = document.get("workflowDefaults", document)
            strategy = (defaults.get("spec") or {}).get("templateDefaults", {}).get("retryStrategy", {})
            if strategy:
                return str(strategy.get("retryPolicy", ""))
    return ""


def check_gpu_nodes(places: Places) -> str:
    """Count the accelerators of the cluster's nodes."""
    with kubernetes_api(places) as (client, _):
        from kubernetes.client.exceptions import ApiException

        try:
            nodes = read(client, "/api/v1/nodes")
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
def kubernetes_api(places: Places) -> Iterator[tuple[Any, str]]:
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
    except (ValueError, TypeError):  # the client makes of an answer what it can
        raise Wrong(
            f"{settings.host}: the answer is not the API's, perhaps a sign-in's web page; check the address"
        ) from None
    except (HTTPError, OSError) as error:
        raise Wrong(f"{settings.host}: {short(error)}; is the address right, and does a firewall allow it?") from None


def _has_field(document: Mapping[str, Any], kind: str, path: str) -> bool:
    """Return whether a kind of an OpenAPI document has a field; the path steps into the items of lists."""
    schemas = document.get("components", {}).get("schemas", {})
    found: Any = next((schema for name, schema in schemas.items() if name.endswith(f".{kind}")), {})
    for name in path.split("."):
        found = found.get("items", found).get("properties", {}).get(name)
        if found is None:
            return False
    return True


def read(client: Any, path: str) -> dict[str, Any] | None:
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
