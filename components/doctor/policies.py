"""The doctor's check of network policies: whether those of a whole Kubeflow let the editor speak to KFP's API."""

from collections.abc import Iterable, Mapping
from typing import Any

from components.doctor.cluster import kubernetes_api, read
from components.doctor.places import Places, Skipped, Wrong

EDITOR = {"app.kubernetes.io/name": "editor", "app.kubernetes.io/component": "editor"}
SERVER, PORT, PORT_NAME = {"app": "ml-pipeline"}, 8888, "http"
NAMESPACE_LABEL = "kubernetes.io/metadata.name"
FILE = "k8s/kubeflow/network-policy.yaml"


def check_policies(places: Places) -> str:
    """Read the policies beside KFP's API server, and whether they let the editor in."""
    own = places.kfp_namespace
    with kubernetes_api(places) as (client, namespace):
        from kubernetes.client.exceptions import ApiException

        try:
            found = read(client, f"/apis/networking.k8s.io/v1/namespaces/{own}/networkpolicies") or {}
            labels = (read(client, f"/api/v1/namespaces/{namespace}") or {}).get("metadata", {}).get("labels", {})
        except ApiException as error:
            if error.status != 403:
                raise
            raise Skipped(
                f"may not read the network policies in {own}, which a step need not; ask with an administrator's "
                "kubeconfig"
            ) from None
    labels = {**labels, NAMESPACE_LABEL: namespace}
    policies = [item for item in found.get("items", []) if _guards(item["spec"])]
    if not policies:
        return f"none in {own} keeps anybody from KFP's API"
    if not any(_lets_in(item["spec"], labels, namespace == own) for item in policies):
        names = ", ".join(item["metadata"]["name"] for item in policies)
        raise Wrong(
            f"{names} in {own} keeps the editor in {namespace} from KFP's API, so that finishing a round can start no "
            f"run: kubectl apply -f {FILE}"
        )
    return f"the editor in {namespace} may speak to KFP's API in {own}"


def _guards(spec: Mapping[str, Any]) -> bool:
    """Return whether a policy says who may connect to the API server."""
    return "Ingress" in spec.get("policyTypes", ["Ingress"]) and _matches(spec.get("podSelector", {}), SERVER)


def _lets_in(spec: Mapping[str, Any], namespace_labels: Mapping[str, str], is_same: bool) -> bool:
    for rule in spec.get("ingress") or []:
        ports = [item.get("port") for item in rule.get("ports") or []]
        if ports and not {PORT, PORT_NAME, None} & set(ports):
            continue
        if not rule.get("from") or any(_is_editor(peer, namespace_labels, is_same) for peer in rule["from"]):
            return True
    return False


def _is_editor(peer: Mapping[str, Any], namespace_labels: Mapping[str, str], is_same: bool) -> bool:
    if "ipBlock" in peer:
        return False  # pods are not let in by address
    in_namespace = _matches(peer["namespaceSelector"], namespace_labels) if "namespaceSelector" in peer else is_same
    return in_namespace and _matches(peer.get("podSelector") or {}, EDITOR)


def _matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Return whether a label selector takes these labels."""
    return all(labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items()) and all(
        _holds(rule["operator"], labels.get(rule["key"]), rule.get("values") or ())
        for rule in selector.get("matchExpressions") or ()
    )


def _holds(operator: str, value: str | None, values: Iterable[str]) -> bool:
    return {
        "In": value in values,
        "NotIn": value not in values,
        "Exists": value is not None,
        "DoesNotExist": value is None,
    }[operator]
