"""A small HTTP server that speaks the paths of the Kubernetes API that the steps use, with Trainer's admission rules.

A test says what happens to a job by a function that gets the server and the job, the controller; it runs in a thread of
its own when a job is created. `run_processes` is one that runs the pods' command as processes of this machine.
"""

import copy
import datetime
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import typing
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from kubeflow_trainer_api import models
from pydantic import BaseModel

NAMESPACE = "research"
RUNTIME = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "TrainingRuntime",
    "metadata": {"name": "stabn-torch", "labels": {"trainer.kubeflow.org/framework": "torch"}},
    "spec": {
        "mlPolicy": {"numNodes": 1, "torch": {}},
        "template": {
            "spec": {
                "replicatedJobs": [
                    {
                        "name": "node",
                        "template": {
                            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
                            "spec": {
                                "backoffLimit": 0,
                                "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "node"}]}},
                            },
                        },
                    }
                ]
            }
        },
    },
}
RESERVED = {"PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"}
Controller = Callable[["KubeServer", dict[str, Any]], None]


def unknown_fields(kind: Any, value: Any, where: str) -> list[str]:
    """Return the fields of a JSON value that a pydantic model does not have, as the API's strict checking does."""
    options = [kind, *typing.get_args(kind)]
    if typing.get_origin(kind) is typing.Annotated:
        return unknown_fields(typing.get_args(kind)[0], value, where)
    if isinstance(value, list):
        inner = next((typing.get_args(o)[0] for o in options if typing.get_origin(o) in (list, typing.List)), None)  # noqa: UP006
        return [found for i, item in enumerate(value) for found in unknown_fields(inner, item, f"{where}[{i}]")]
    model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
    if model is None or not isinstance(value, dict):
        return []
    fields = {item.alias or name: item.annotation for name, item in model.model_fields.items()}
    if "actual_instance" in fields:  # a union such as an amount or a port
        return []
    unknown = [f"{where}.{name}" for name in value if name not in fields]
    known = ((name, item) for name, item in value.items() if name in fields)
    return unknown + [found for name, item in known for found in unknown_fields(fields[name], item, f"{where}.{name}")]


def refusals(job: dict[str, Any], runtimes: dict[str, dict[str, Any]]) -> list[str]:
    """Return what the API server and Trainer's webhook object to in a TrainJob."""
    found = unknown_fields(models.TrainerV1alpha1TrainJob, job, "TrainJob")
    models.TrainerV1alpha1TrainJob.from_dict(copy.deepcopy(job))  # types; raises
    name, spec = job["metadata"]["name"], job["spec"]
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(f"{name}-node-0-99-abcde") > 63:
        found.append(f"metadata.name {name!r}")
    trainer = spec.get("trainer") or {}
    names = [item["name"] for item in trainer.get("env", [])]
    found += [f"reserved variable {item}" for item in names if item in RESERVED]
    found += ["variables twice"] * (len(set(names)) != len(names)) + ["too many variables"] * (len(names) > 128)
    found += ["numProcPerNode is not set"] * (not isinstance(trainer.get("numProcPerNode"), int))
    found += ["command too long"] * (len(trainer.get("command", [])) > 128)
    runtime = runtimes.get(spec["runtimeRef"]["name"])
    if runtime is None or spec["runtimeRef"].get("kind") != "TrainingRuntime":
        return [*found, "specified trainingRuntime must be created before the TrainJob is created"]
    containers = {
        item["name"]: {c["name"] for c in item["template"]["spec"]["template"]["spec"]["containers"]}
        for item in runtime["spec"]["template"]["spec"]["replicatedJobs"]
    }
    for patch in spec.get("runtimePatches", []):
        if not re.fullmatch(r"[a-z0-9.-]+/[\w.-]+", patch["manager"]) or patch.get("time"):
            found.append(f"manager {patch['manager']!r}")
        for item in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]:
            if item["name"] not in containers:
                found.append(f"no replicated job {item['name']}")
                continue
            pod = item["template"]["spec"]["template"]
            found += [f"pod metadata {key}" for key in pod.get("metadata", {}) if key not in ("labels", "annotations")]
            for container in pod["spec"].get("containers", []):
                if container["name"] not in containers[item["name"]]:
                    found.append(f"no container {container['name']}")
                if container.get("env"):
                    found.append("must not have envs for the node container")
    return found


class KubeServer:
    """The state of a cluster's one namespace, and what goes wrong in it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.runtimes: dict[str, dict[str, Any]] = {"stabn-torch": copy.deepcopy(RUNTIME)}
        self.webhook_lag = 0  # jobs for which Trainer's webhook has not seen the newest runtimes yet
        self.pods: dict[str, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.logs: dict[str, list[tuple[str, str]]] = {}
        self.previous: dict[str, list[str]] = {}
        self.history: list[tuple[int, str, dict[str, Any]]] = []
        self.forgotten = 0
        self.version = 1
        self.requests: list[str] = []
        self.created: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self.lost: set[str] = set()
        self.controllers: list[Controller] = []
        self.errors: list[BaseException] = []
        self.connections = 0
        self.stopped = False
        self._failures: list[list[Any]] = []
        self._generation = 0

    # What a test makes happen.

    def fail(self, pattern: str, status: int, times: int = 1, arrives: bool = False) -> None:
        """Answer the next requests that match `METHOD /path` with an error; with `arrives` after doing them."""
        self._failures.append([re.compile(pattern), status, times, arrives])

    def drop_streams(self) -> None:
        """Cut all watches and logs that are being followed."""
        with self.changed:
            self._generation += 1
            self.changed.notify_all()

    def forget(self) -> None:
        """Let every watch that begins at an older version be answered with 410 Gone."""
        self.forgotten = self.version

    def start_pods(self, job: dict[str, Any], phase: str = "Running") -> list[str]:
        """Make the pods of a job and return their names."""
        name, attempt = job["metadata"]["name"], len(self.created)
        names = [f"{name}-node-0-{i}-{attempt:05}" for i in range(job["spec"]["trainer"]["numNodes"])]
        for index, pod in enumerate(names):
            labels = {"jobset.sigs.k8s.io/jobset-name": name, "batch.kubernetes.io/job-completion-index": str(index)}
            metadata = {"name": pod, "uid": f"uid-{pod}", "labels": labels, "creationTimestamp": _now()}
            self.put_pod({"metadata": metadata, "spec": {"nodeName": f"worker-{index}"}, "status": {"phase": phase}})
            self.logs.setdefault(pod, [])
            if phase == "Running":
                self.run(pod)
        return names

    def put_pod(self, pod: dict[str, Any], kind: str = "MODIFIED") -> None:
        """Change a pod, as watches see it."""
        with self.changed:
            self.version += 1
            pod["metadata"]["resourceVersion"] = str(self.version)
            if kind == "DELETED":
                self.pods.pop(pod["metadata"]["name"], None)
            else:
                self.pods[pod["metadata"]["name"]] = pod
            self.history.append((self.version, kind, copy.deepcopy(pod)))
            self.changed.notify_all()

    def set_status(self, name: str, **status: Any) -> None:
        """Change a pod's status."""
        with self.lock:
            pod = copy.deepcopy(self.pods[name])
        pod["status"] |= status
        self.put_pod(pod)

    def run(self, name: str, restarts: int = 0, **last: Any) -> None:
        """Have a pod's container run."""
        container = {"name": "node", "state": {"running": {}}, "restartCount": restarts, "lastState": last}
        self.set_status(name, phase="Running", containerStatuses=[container], conditions=[])

    def end(self, name: str, exit_code: int, reason: str = "", **status: Any) -> None:
        """Have a pod's container end."""
        reason = reason or ("Error" if exit_code else "Completed")
        ended = {"terminated": {"exitCode": exit_code, "reason": reason, "finishedAt": _now()}}
        container = {"name": "node", "state": ended, "restartCount": 0}
        self.set_status(name, phase="Failed" if exit_code else "Succeeded", containerStatuses=[container], **status)

    def remove(self, name: str) -> None:
        """Delete a pod without a trace."""
        with self.lock:
            pod = copy.deepcopy(self.pods[name])
        self.put_pod(pod, "DELETED")

    def tell_to_go(self, name: str) -> None:
        """Have a pod deleted, which takes its time."""
        with self.lock:
            pod = copy.deepcopy(self.pods[name])
        pod["metadata"]["deletionTimestamp"] = _now()
        self.put_pod(pod)

    def kill_machine(self, name: str) -> None:
        """Let the machine of a pod die: the pod is told to go, and stays."""
        self.lost.add(name)
        self.tell_to_go(name)

    def write(self, name: str, *lines: str) -> None:
        """Add lines to a pod's log."""
        with self.changed:
            self.logs[name] += [(_now(), line) for line in lines]
            self.changed.notify_all()

    def event(self, about: str, reason: str, message: str, kind: str = "Pod", type: str = "Warning") -> None:
        """Record an event."""
        self.events.append(
            {
                "metadata": {"name": f"e{len(self.events)}"},
                "involvedObject": {"name": about, "kind": kind},
                "reason": reason,
                "message": message,
                "type": type,
                "lastTimestamp": _now(),
            }
        )

    def condition(
        self, job: dict[str, Any], type: str, reason: str = "", message: str = "", status: str = "True"
    ) -> None:
        """Set a condition of a job."""
        with self.changed:
            current = self.jobs[job["metadata"]["name"]]
            conditions = current.setdefault("status", {}).setdefault("conditions", [])
            conditions[:] = [item for item in conditions if item["type"] != type]
            conditions.append({"type": type, "status": status, "reason": reason, "message": message})

    def wait_for(self, what: Callable[[], Any], seconds: float = 20.0) -> None:
        """Wait until something is so."""
        until = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < until, "it did not happen in time"
            time.sleep(0.01)

    # What the API does.

    def create(self, plural: str, item: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        name = item["metadata"]["name"]
        store = self.jobs if plural == "trainjobs" else self.runtimes
        if name in store:
            return 409, {"message": f"{plural} {name!r} already exists"}
        if plural == "trainjobs":
            try:
                unseen = self.webhook_lag > 0
                self.webhook_lag -= unseen
                found = refusals(item, {"stabn-torch": RUNTIME} if unseen else self.runtimes)
            except ValueError as error:
                found = [str(error)]
        else:
            found = unknown_fields(models.TrainerV1alpha1TrainingRuntime, item, "TrainingRuntime")
        if found:
            return 400, {"message": f"strict decoding error or denied by webhook: {'; '.join(found)}"}
        item["metadata"] |= {"uid": f"uid-{name}-{len(self.created)}", "creationTimestamp": _now()}
        store[name] = item
        if plural == "trainjobs":
            self.created.append(copy.deepcopy(item))
            controller = self.controllers[min(len(self.created), len(self.controllers)) - 1]
            threading.Thread(target=self._control, args=(controller, item), daemon=True).start()
        return 201, item

    def _control(self, controller: Controller, job: dict[str, Any]) -> None:
        try:
            controller(self, job)
        except BaseException as error:  # shown by the fixture
            self.errors.append(error)

    def delete(self, plural: str, name: str) -> tuple[int, dict[str, Any]]:
        store = self.jobs if plural == "trainjobs" else self.runtimes
        if name not in store:
            return 404, {"message": f"{name} not found"}
        store[name]["metadata"]["deletionTimestamp"] = _now()
        threading.Timer(0.1, self._vanish, (store, name)).start()
        return 200, {"status": "Success"}

    def _vanish(self, store: dict[str, dict[str, Any]], name: str) -> None:
        if store is self.jobs:
            pods = [pod for pod in list(self.pods.values()) if pod["metadata"]["name"].startswith(f"{name}-node-")]
            if any(pod["metadata"]["name"] in self.lost for pod in pods):
                return  # nobody can say that its container has ended
            for pod in pods:
                self.remove(pod["metadata"]["name"])
        store.pop(name, None)
        self.deleted.append(name)

    def take_failure(self, request: str) -> tuple[int, bool] | None:
        with self.lock:
            for failure in self._failures:
                if failure[2] and failure[0].search(request):
                    failure[2] -= 1
                    return failure[1], failure[3]
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster: KubeServer

    def do_GET(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_PATCH(self) -> None:
        self._handle("PATCH")

    def do_DELETE(self) -> None:
        self._handle("DELETE")

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def _handle(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urllib.parse.urlsplit(self.path)
        query = {
            key: values[-1] if values[-1] not in ("True", "False") else values[-1].lower()
            for key, values in urllib.parse.parse_qs(url.query).items()
        }
        self.cluster.requests.append(f"{method} {self.path}")
        failure = self.cluster.take_failure(f"{method} {self.path}")
        if failure and not failure[1]:
            return self._answer(failure[0], {"message": "the server is having a bad day"})
        item = json.loads(body) if body else {}
        match = re.fullmatch(
            rf"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/(\w+)(?:/([\w-]+))?", url.path
        )
        if match:
            status, answer = self._custom(method, match[1], match[2], item, query)
            if failure:
                status, answer = failure[0], {"message": "the answer was lost"}
            return self._answer(status, answer)
        if match := re.fullmatch(rf"/api/v1/namespaces/{NAMESPACE}/pods/([\w-]+)/log", url.path):
            return self._log(match[1], query)
        if url.path == f"/api/v1/namespaces/{NAMESPACE}/pods":
            return self._pods(query)
        if url.path == f"/api/v1/namespaces/{NAMESPACE}/events":
            name = query["fieldSelector"].removeprefix("involvedObject.name=")
            found = [event for event in self.cluster.events if event["involvedObject"]["name"] == name]
            return self._answer(200, {"items": found})
        return self._answer(404, {"message": f"no such path: {url.path}"})

    def _custom(self, method: str, plural: str, name: str | None, item: dict[str, Any], query: dict[str, str]) -> Any:
        cluster = self.cluster
        store = {"trainjobs": cluster.jobs, "trainingruntimes": cluster.runtimes}[plural]
        with cluster.lock:
            if method == "POST":
                if query.get("fieldValidation") != "Strict":
                    return 400, {"message": "this test wants strict field validation"}
                return cluster.create(plural, item)
            if name is None:
                key, _, value = query["labelSelector"].partition("=")
                items = [item for item in store.values() if item["metadata"].get("labels", {}).get(key) == value]
                return 200, {"items": copy.deepcopy(items)}
            if name not in store:
                return 404, {"message": f'{plural} "{name}" not found'}
            if method == "DELETE":
                return cluster.delete(plural, name)
            if method == "PATCH":
                store[name]["metadata"] |= item["metadata"]
            return 200, copy.deepcopy(store[name])

    def _pods(self, query: dict[str, str]) -> None:
        cluster = self.cluster
        key, _, value = query["labelSelector"].partition("=")
        if query.get("watch") != "true":
            with cluster.lock:
                items = [pod for pod in cluster.pods.values() if pod["metadata"]["labels"][key] == value]
                answer = {"metadata": {"resourceVersion": str(cluster.version)}, "items": copy.deepcopy(items)}
            return self._answer(200, answer)
        at = int(query["resourceVersion"])
        generation = cluster._generation
        self._begin()
        if at < cluster.forgotten:
            self._chunk(json.dumps({"type": "ERROR", "object": {"kind": "Status", "code": 410}}) + "\n")
            return self._finish()
        while True:
            with cluster.changed:
                new = [entry for entry in cluster.history if entry[0] > at]
                if not new:
                    cluster.changed.wait(0.2)
            if cluster.stopped or cluster._generation != generation:
                return self._cut()
            for version, kind, pod in new:
                if pod["metadata"]["labels"][key] == value and not self._chunk(
                    json.dumps({"type": kind, "object": pod}) + "\n"
                ):
                    return None
                at = version

    def _log(self, name: str, query: dict[str, str]) -> None:
        cluster = self.cluster
        with cluster.lock:
            states = cluster.pods.get(name, {}).get("status", {}).get("containerStatuses")
        if name not in cluster.logs or (not states and "previous" not in query):
            return self._answer(400, {"message": f"container is waiting to start: {name}"})
        if query.get("previous") == "true":
            return self._text("\n".join(cluster.previous.get(name, [])) + "\n")
        oldest = ""
        if "sinceSeconds" in query:
            oldest = _now(-float(query["sinceSeconds"]))
        with cluster.lock:  # what is written from here on is sent as new
            entries = list(cluster.logs[name])
        lines = [entry for entry in entries if entry[0] >= oldest]
        if query.get("follow") != "true":
            lines = lines[-int(query.get("tailLines", "100000")) :]
            return self._text("".join(f"{text}\n" for _, text in lines))
        generation = cluster._generation
        self._begin()
        sent = len(entries) - len(lines)
        while True:
            with cluster.changed:
                new = cluster.logs[name][sent:]
                pod = cluster.pods.get(name)
                has_ended = pod is None or "terminated" in pod["status"]["containerStatuses"][0]["state"]
                if not new and not has_ended:
                    cluster.changed.wait(0.2)
            if cluster.stopped or cluster._generation != generation:
                return self._cut()
            for stamp, text in new:
                if not self._chunk(f"{stamp} {text}\n"):
                    return None
            sent += len(new)
            if has_ended and not new:
                return self._finish()

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(data)

    def _text(self, text: str) -> None:
        data = text.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _begin(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _chunk(self, text: str) -> bool:
        data = text.encode()
        try:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()
        except OSError:
            return False
        return True

    def _finish(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def _cut(self) -> None:
        """Break the connection off in the middle of an answer."""
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def kube_server(folder: Path) -> Iterator[tuple[KubeServer, Path]]:
    """Run a server, and write a kubeconfig that leads to it."""
    cluster = KubeServer()
    handler = type("Handler", (_Handler,), {"cluster": cluster})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    config = folder / "kubeconfig"
    config.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}],
                "current-context": "x",
            }
        )
    )
    try:
        yield cluster, config
    finally:
        cluster.stopped = True
        cluster.drop_streams()
        server.shutdown()
        server.server_close()


def run_processes(cluster: KubeServer, job: dict[str, Any], lose_after: str = "") -> None:
    """Be Trainer and the kubelet: run the command once per node, with what torchrun reads from the environment.

    Like a Job with the back-off limit 0, all nodes are ended when one has failed.

    Args:
        cluster: gets the pods and their logs.
        job: the TrainJob.
        lose_after: the machine of node 1 is lost when the log of node 0 has this in it.
    """
    trainer = job["spec"]["trainer"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = cluster.start_pods(job)
    processes = []
    for index, name in enumerate(names):
        environment = {key: os.environ[key] for key in ("PATH", "PYTHONPATH", "OMP_NUM_THREADS") if key in os.environ}
        for item in trainer["env"]:
            secret = item.get("valueFrom", {}).get("secretKeyRef")
            environment[item["name"]] = os.environ[secret["key"]] if secret else item["value"]
        environment |= {
            "HOME": "/tmp",
            "PET_NNODES": str(trainer["numNodes"]),
            "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
            "PET_NODE_RANK": str(index),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(port),
        }
        process = subprocess.Popen(
            trainer["command"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        threading.Thread(target=_copy, args=(cluster, name, process), daemon=True).start()
    while any(process.poll() is None for process in processes):
        time.sleep(0.05)
        if lose_after and any(lose_after in text for _, text in cluster.logs[names[0]]):
            lose_after = ""
            cluster.remove(names[1])
            os.killpg(processes[1].pid, signal.SIGKILL)
        if any(process.poll() for process in processes):
            for process in processes:
                process.terminate()
    codes = [process.wait() for process in processes]
    cluster.wait_for(
        lambda: all("terminated" in str(cluster.pods[name]["status"]) for name in names if name in cluster.pods)
    )
    cluster.condition(job, "Failed" if any(codes) else "Complete", "JobsDone", "")


def _copy(cluster: KubeServer, name: str, process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        cluster.write(name, line.rstrip("\n"))
    code = process.wait()
    if name in cluster.pods:
        cluster.end(name, code if code >= 0 else 128 - code)


def _now(offset: float = 0.0) -> str:
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=offset)
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
