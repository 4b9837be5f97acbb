"""The few calls of the Kubernetes API that a step needs, tried again when the API is away."""

import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from kubernetes import client
from kubernetes import config as kube_config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException
from urllib3.exceptions import HTTPError

from stabn.errors import RetryableError, StabnError

T = TypeVar("T")

GROUP, VERSION = "trainer.kubeflow.org", "v1alpha1"
PASSING = (408, 429, 500, 502, 503, 504)
TIMEOUT = (10, 60)  # seconds to connect, and between two parts of an answer
WATCH_SECONDS = 240  # after which the server ends a watch of its own accord
QUIET_SECONDS = 300  # without a line, after which a log is asked for again
MAX_WAIT_SECONDS = 30.0
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
RETRY_STARTS_AT = 0.5  # seconds; doubled after each failure


class ClusterError(StabnError):
    """Kubernetes refuses what was asked of it."""


class ApiUnavailable(RetryableError):
    """The Kubernetes API does not answer; what runs goes on, and a step that is tried again finds it."""


def cluster_is_reachable() -> bool:
    """Tell whether this process is in a cluster or was told of one by KUBECONFIG."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST") or os.environ.get("KUBECONFIG"))


class KubeApi:
    """Kubernetes, seen from one namespace.

    Args:
        namespace: of all objects; empty: the step's own, or that of the kubeconfig's context.
        patience_seconds: how long the API may be away.

    Raises:
        ClusterError: neither a service account nor a kubeconfig can be used.
    """

    def __init__(self, namespace: str = "", patience_seconds: float = 600.0):
        settings, own = client.Configuration(), "default"
        try:
            if os.environ.get("KUBERNETES_SERVICE_HOST"):
                kube_config.load_incluster_config(settings)
                own = NAMESPACE_FILE.read_text().strip()
            else:
                path = os.environ.get("KUBECONFIG")  # the client reads it only once, when it is imported
                kube_config.load_kube_config(path, client_configuration=settings)
                own = kube_config.list_kube_config_contexts(path)[1]["context"].get("namespace") or own
        except (ConfigException, OSError) as error:
            raise ClusterError(f"no access to a Kubernetes cluster: {error}") from None
        self.namespace = namespace or own
        self.patience_seconds = patience_seconds
        api_client = client.ApiClient(settings)
        self._custom = client.CustomObjectsApi(api_client)
        self._core = client.CoreV1Api(api_client)

    def get(self, plural: str, name: str, namespaced: bool = True) -> dict[str, Any] | None:
        """Return a trainjob or runtime, None if there is none."""

        def read() -> dict[str, Any] | None:
            try:
                if not namespaced:
                    return self._custom.get_cluster_custom_object(
                        GROUP, VERSION, plural, name, _request_timeout=TIMEOUT
                    )
                where = (GROUP, VERSION, self.namespace, plural)
                return self._custom.get_namespaced_custom_object(*where, name, _request_timeout=TIMEOUT)
            except ApiException as error:
                if error.status == 404:
                    return None
                raise

        return self._try(f"get {plural}/{name}", read)

    def names(self, plural: str, selector: str) -> list[str]:
        """Return the names of the trainjobs or runtimes with these labels."""
        where = (GROUP, VERSION, self.namespace, plural)
        found = self._try(
            f"list {plural}",
            lambda: self._custom.list_namespaced_custom_object(
                *where, label_selector=selector, _request_timeout=TIMEOUT
            ),
        )
        return [item["metadata"]["name"] for item in found["items"]]

    def create(self, plural: str, manifest: dict[str, Any]) -> dict[str, Any]:
        """Create an object, with unknown fields refused; one of that name that is there already is returned.

        Raises:
            ClusterError: the API refuses the object; the message says why.
        """
        name = manifest["metadata"]["name"]

        def write() -> dict[str, Any]:
            try:
                return self._custom.create_namespaced_custom_object(  # type: ignore[no-any-return]
                    GROUP,
                    VERSION,
                    self.namespace,
                    plural,
                    manifest,
                    field_validation="Strict",
                    _request_timeout=TIMEOUT,
                )
            except ApiException as error:
                if error.status == 409:  # a request that seemed to fail did arrive
                    return self.get(plural, name) or manifest
                raise

        return self._try(f"create {plural}/{name}", write)

    def patch(self, plural: str, name: str, changes: dict[str, Any]) -> None:
        """Merge changes into an object."""
        where = (GROUP, VERSION, self.namespace, plural, name)
        self._try(
            f"patch {plural}/{name}",
            lambda: self._custom.patch_namespaced_custom_object(*where, changes, _request_timeout=TIMEOUT),
        )

    def delete(self, plural: str, name: str, patience_seconds: float | None = None) -> None:
        """Have an object and all that belongs to it deleted; it is no error if there is none."""

        def remove() -> None:
            try:
                where = (GROUP, VERSION, self.namespace, plural, name)
                options = client.V1DeleteOptions(propagation_policy="Foreground")
                self._custom.delete_namespaced_custom_object(*where, body=options, _request_timeout=TIMEOUT)
            except ApiException as error:
                if error.status != 404:
                    raise

        self._try(f"delete {plural}/{name}", remove, patience_seconds)

    def own_pod(self) -> dict[str, Any] | None:
        """Return the pod that this process is in; None outside a cluster, or when it may not be read."""
        if not os.environ.get("KUBERNETES_SERVICE_HOST"):
            return None
        name, own = os.environ.get("HOSTNAME", ""), NAMESPACE_FILE.read_text().strip()
        try:
            return self._try(
                f"get pods/{name}",
                lambda: _plain(
                    self._core.read_namespaced_pod(name, own, _preload_content=False, _request_timeout=TIMEOUT)
                ),
            )
        except ClusterError:
            return None

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the events about the objects of a name, the oldest first."""
        found = self._try(
            "list events",
            lambda: _plain(
                self._core.list_namespaced_event(
                    self.namespace,
                    field_selector=f"involvedObject.name={name}",
                    limit=100,
                    _preload_content=False,
                    _request_timeout=TIMEOUT,
                )
            ),
        )
        return sorted(
            found.get("items", []), key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or ""
        )

    def pods(self, selector: str) -> dict[str, Any]:
        """Return the list of the pods with these labels."""
        return self._try(
            "list pods",
            lambda: _plain(
                self._core.list_namespaced_pod(
                    self.namespace, label_selector=selector, _preload_content=False, _request_timeout=TIMEOUT
                )
            ),
        )

    def watch_pods(self, selector: str, stop: threading.Event) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Yield what happens to pods until `stop` is set: ("LIST", all there are), then ("MODIFIED", [pod]) and so on.

        A watch that ends, breaks or is told that it is too old begins again with a list.
        """
        while not stop.is_set():
            listed = self.pods(selector)
            yield "LIST", listed["items"]
            version = listed["metadata"]["resourceVersion"]
            try:
                answer = self._core.list_namespaced_pod(
                    self.namespace,
                    label_selector=selector,
                    watch=True,
                    resource_version=version,
                    timeout_seconds=WATCH_SECONDS,
                    _preload_content=False,
                    _request_timeout=(TIMEOUT[0], WATCH_SECONDS + 30),
                )
                for line in lines_of(answer):
                    event = json.loads(line)
                    if stop.is_set() or event["type"] == "ERROR":
                        break
                    yield event["type"], [event["object"]]
            except ApiException as error:
                if error.status not in (*PASSING, 410):
                    raise ClusterError(
                        f"Kubernetes, watch pods in namespace {self.namespace}: {_said(error)}"
                    ) from None
            except (HTTPError, OSError, ValueError):
                pass
            stop.wait(RETRY_STARTS_AT)

    def follow_log(self, pod: str, container: str, since_seconds: int | None) -> Iterator[str]:
        """Yield the lines of a container's log, each with its time, as they are written, until the log or the
        connection ends.

        Raises:
            ApiException, HTTPError: the log cannot be had now.
        """
        answer = self._core.read_namespaced_pod_log(
            pod,
            self.namespace,
            container=container,
            follow=True,
            timestamps=True,
            **({} if since_seconds is None else {"since_seconds": since_seconds}),
            _preload_content=False,
            _request_timeout=(TIMEOUT[0], QUIET_SECONDS),
        )
        yield from lines_of(answer)

    def log_tail(self, pod: str, container: str, num_lines: int, previous: bool = False) -> list[str]:
        """Return the last lines of a container's log, or of the one that crashed before; none if they are gone."""

        def read() -> list[str]:
            answer = self._core.read_namespaced_pod_log(
                pod,
                self.namespace,
                container=container,
                tail_lines=num_lines,
                previous=previous,
                _preload_content=False,
                _request_timeout=TIMEOUT,
            )
            return answer.data.decode(errors="replace").splitlines()  # type: ignore[no-any-return]

        try:
            return self._try(f"read the log of {pod}", read, 20.0)
        except (ClusterError, ApiUnavailable):
            return []

    def _try(self, what: str, call: Callable[[], T], patience_seconds: float | None = None) -> T:
        """Call until there is an answer.

        Raises:
            ClusterError: an answer that will be the same next time.
            ApiUnavailable: none for too long.
        """
        started, wait, said = time.monotonic(), RETRY_STARTS_AT, False
        patience = self.patience_seconds if patience_seconds is None else patience_seconds
        while True:
            try:
                return _checked(call())
            except ApiException as error:
                if error.status not in (*PASSING, 0, None):
                    raise ClusterError(f"Kubernetes, {what} in namespace {self.namespace}: {_said(error)}") from None
                reason = _said(error)
                asked = (error.headers or {}).get("Retry-After", "")
                wait = max(wait, min(float(asked), MAX_WAIT_SECONDS)) if asked.isdigit() else wait
            except (HTTPError, OSError) as error:
                reason = str(error).splitlines()[0][:300]
                if "CERTIFICATE_VERIFY_FAILED" in reason:  # the same certificate comes again
                    remedy = "check its authority and this machine's clock"
                    raise ClusterError(f"Kubernetes, {what}: {reason}; {remedy}") from None
            except ValueError:
                raise ClusterError(
                    f"Kubernetes, {what}: the answer is not the API's, perhaps a sign-in's web page; check the "
                    "address in the kubeconfig, and log in again"
                ) from None
            if time.monotonic() - started + wait > patience:
                raise ApiUnavailable(f"Kubernetes, {what}: no answer for {patience:.0f} seconds ({reason})")
            if not said and wait > 2:
                print(f"Kubernetes, {what}: {reason}; trying again", file=sys.stderr, flush=True)
                said = True
            time.sleep(wait * random.uniform(0.75, 1.25))
            wait = min(2 * wait, MAX_WAIT_SECONDS)


def lines_of(answer: Any) -> Iterator[str]:
    """Yield the lines of an answer as they come; the connection is given back at the end."""
    rest = b""
    try:
        for part in answer.stream(amt=None, decode_content=False):
            *whole, rest = (rest + part).split(b"\n")
            for line in whole:
                yield line.decode(errors="replace")
        if rest:
            yield rest.decode(errors="replace")
    finally:
        answer.close()
        answer.release_conn()


def _checked(answer: T) -> T:
    """Return an answer of the API; a text where an object should be raises ValueError."""
    if isinstance(answer, str):
        raise ValueError("not an object")
    return answer


def _plain(answer: Any) -> dict[str, Any]:
    return json.loads(answer.data)  # type: ignore[no-any-return]


def _said(error: ApiException) -> str:
    """Return status and message of an answer, with what to do about a missing permission."""
    try:
        message = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        message = f"{error.body or error.reason or 'no message'}"[:500]
    hint = ""
    if error.status == 403 and "cannot" in message:
        hint = "; give the step's service account this permission"
    elif error.status == 404 and "page not found" in message:
        hint = "; is Kubeflow Trainer 2.3 or later installed?"
    return " ".join(f"{error.status} {message}{hint}".split())
