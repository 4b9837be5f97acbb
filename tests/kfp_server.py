"""A small HTTP server that speaks the v2beta1 paths of KFP's API that its client uses, with its rules.

A test says what each run comes to by a list of steps, one per time the run is asked for, and lets requests fail.
"""

import datetime
import json
import re
import threading
import urllib.parse
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

BASE = "/apis/v2beta1"
CRON = re.compile(r"(\S+ ){5}\S+")
Failure = int | str


class Refused(Exception):
    """The request is answered with a status and KFP's error document."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class KfpServer:
    """What the server holds, and how it behaves.

    Attributes:
        workflow: the Argo workflow of every run.
        steps: for each later request of a run, (state, {task: state}); the last one stays.
        failures: (method, part of the path, what): a status, `drop`: no answer, or `lose`: it is done, then no answer.
        token: the bearer token that is wanted; empty: none.
        cookie: the cookie that is wanted; empty: none.
    """

    def __init__(self) -> None:
        self.endpoint = ""
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.recurring: dict[str, dict[str, Any]] = {}
        self.steps: list[tuple[str, dict[str, str]]] = [("SUCCEEDED", {})]
        self.error = ""
        self.workflow: dict[str, Any] | None = None  # what the older API has of a run; None: it is not there
        self.failures: deque[tuple[str, str, Failure]] = deque()
        self.token = self.cookie = ""
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        self._asked: dict[str, int] = {}

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> dict[str, Any]:
        """Return the document for a request, or raise Refused."""
        match method, path.removeprefix(BASE).strip("/").split("/"):
            case "GET", ["healthz"]:
                return {"multi_user": False}
            case "GET", ["pipelines"]:
                owner = query.get("namespace", "")
                own = {key: item for key, item in self.pipelines.items() if item["namespace"] == owner}
                return _page("pipelines", own, query)
            case "POST", ["pipelines", "upload"]:
                return self._upload(query, body)
            case "POST", ["pipelines", "upload_version"]:
                if query.get("pipelineid") not in self.pipelines:
                    raise Refused(404, f"pipeline {query.get('pipelineid')} not found")
                return self._add_version(query["pipelineid"], query["name"], query.get("description", ""), body)
            case "GET", ["pipelines", pipeline, "versions"]:
                own = {key: item for key, item in self.versions.items() if item["pipeline_id"] == pipeline}
                return _page("pipeline_versions", own, query)
            case "GET", ["experiments"]:
                return _page("experiments", self.experiments, query)
            case "POST", ["experiments"]:
                return _add(self.experiments, "experiment_id", body)
            case "GET", ["runs"]:
                return _page("runs", _of(self.runs, query), query)
            case "POST", ["runs"]:
                self._check_job(body)
                return _add(self.runs, "run_id", {**body, "state": "PENDING"})
            case "GET", ["apis", "v1beta1", "runs", run] if self.workflow is not None:
                return {"run": {"id": run}, "pipeline_runtime": {"workflow_manifest": json.dumps(self.workflow)}}
            case "GET", ["runs", run]:
                return self._run(run)
            case "GET", ["recurringruns"]:
                return _page("recurringRuns", _of(self.recurring, query), query)
            case "POST", ["recurringruns"]:
                self._check_job(body)
                cron = body["trigger"].get("cron_schedule", {}).get("cron")
                if cron and not CRON.fullmatch(cron):
                    raise Refused(400, f"Schedule cron is not a supported format: {cron}")
                return _add(self.recurring, "recurring_run_id", body)
            case "DELETE", ["recurringruns", key]:
                del self.recurring[key]
                return {}
        raise Refused(404, f"{method} {path}: no such path")

    def _upload(self, query: dict[str, str], package: bytes) -> dict[str, Any]:
        name, owner = query["name"], query.get("namespace", "")
        if any(item["display_name"] == name and item["namespace"] == owner for item in self.pipelines.values()):
            raise Refused(409, f"The pipeline {name} already exist")
        made = _add(self.pipelines, "pipeline_id", {"display_name": name, "name": name, "namespace": owner})
        self._add_version(made["pipeline_id"], query["name"], "", package)
        return made

    def _add_version(self, pipeline: str, name: str, description: str, package: bytes) -> dict[str, Any]:
        if any(item["display_name"] == name and item["pipeline_id"] == pipeline for item in self.versions.values()):
            raise Refused(409, f"The pipeline version {name} already exist")
        spec, *platform = yaml.load_all(package, yaml.CSafeLoader)
        version = {"pipeline_id": pipeline, "display_name": name, "description": description}
        version["pipeline_spec"] = {"pipeline_spec": spec, "platform_spec": platform[0]} if platform else spec
        return _add(self.versions, "pipeline_version_id", version)

    def _check_job(self, body: dict[str, Any]) -> None:
        """Check the parameters against the version's form, as the server does."""
        reference = body["pipeline_version_reference"]
        version = self.versions.get(reference["pipeline_version_id"])
        if version is None or body["experiment_id"] not in self.experiments:
            raise Refused(404, f"{reference}: not found")
        form = version["pipeline_spec"]["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]
        kinds = {"STRING": str, "NUMBER_INTEGER": int, "NUMBER_DOUBLE": float | int, "BOOLEAN": bool}
        for name, value in body["runtime_config"].get("parameters", {}).items():
            if name not in form:
                raise Refused(400, f"parameter {name} is not in the pipeline")
            if not isinstance(value, kinds[form[name]["parameterType"]]):
                raise Refused(400, f"parameter {name} has the wrong type")

    def _run(self, run_id: str) -> dict[str, Any]:
        if run_id not in self.runs:
            raise Refused(404, f"Run {run_id} not found")
        turn = self._asked.get(run_id, 0)
        self._asked[run_id] = turn + 1
        state, tasks = self.steps[min(turn, len(self.steps) - 1)]
        self.runs[run_id]["state"] = state
        moment = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
        details = []
        for number, (name, task_state) in enumerate([("root", state), ("root-driver", "SUCCEEDED"), *tasks.items()]):
            detail = {"run_id": run_id, "task_id": f"{run_id}-{number}", "display_name": name, "state": task_state}
            detail |= {"start_time": moment.isoformat(), "end_time": (moment + 75 * SECOND).isoformat()}
            if task_state == "FAILED" and self.error:
                detail["error"] = {"code": 2, "message": self.error}
            details.append(detail)
        return {**self.runs[run_id], "run_details": {"task_details": details}}


SECOND = datetime.timedelta(seconds=1)


def _add(items: dict[str, dict[str, Any]], key: str, item: dict[str, Any]) -> dict[str, Any]:
    item = {**item, key: str(uuid.uuid4()), "created_at": "2026-01-01T00:00:00Z"}
    items[item[key]] = item
    return item


def _of(items: dict[str, dict[str, Any]], query: dict[str, str]) -> dict[str, dict[str, Any]]:
    wanted = query.get("experiment_id")
    return {key: item for key, item in items.items() if not wanted or item["experiment_id"] == wanted}


def _page(name: str, items: dict[str, dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
    """Return what fits the filter; like the real server, nothing at all instead of an empty list."""
    found = list(items.values())
    for predicate in json.loads(query.get("filter") or "{}").get("predicates", []):
        key, value = predicate["key"], predicate.get("stringValue") or predicate.get("string_value")
        if predicate["operation"] not in ("EQUALS", 1):
            raise Refused(400, f"operation {predicate['operation']}: not in this server")
        found = [item for item in found if item.get({"name": "display_name"}.get(key, key)) == value]
    return {name: found, "total_size": len(found)} if found else {}


class _Handler(BaseHTTPRequestHandler):
    kfp: KfpServer
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = {key: values[0] for key, values in urllib.parse.parse_qs(url.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        data = self.rfile.read(length)
        with self.kfp.lock:
            self.kfp.requests.append((self.command, url.path))
            failure: Failure | None = None
            for item in self.kfp.failures:
                if item[0] == self.command and item[1] in url.path:
                    failure = item[2]
                    self.kfp.failures.remove(item)
                    break
            try:
                if isinstance(failure, int):
                    raise Refused(failure, "as the test wants it")
                if failure != "drop":
                    self._authorize()
                    status, document = 200, self.kfp.answer(self.command, url.path, query, self._body(data))
            except Refused as error:
                status, document = error.status, {"code": error.status, "message": error.message, "details": []}
        if failure in ("drop", "lose"):
            self.close_connection = True
            return
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_DELETE = _handle

    def _authorize(self) -> None:
        if self.kfp.token and self.headers.get("Authorization") != f"Bearer {self.kfp.token}":
            raise Refused(401, "Unauthenticated")
        if self.kfp.cookie and self.headers.get("Cookie") != self.kfp.cookie:
            raise Refused(403, "Forbidden")

    def _body(self, data: bytes) -> Any:
        kind = self.headers.get("Content-Type", "")
        if kind.startswith("multipart/form-data"):
            message = BytesParser(policy=HTTP).parsebytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + data)
            return next(part.get_payload(decode=True) for part in message.iter_parts())
        return json.loads(data) if data else None

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def kfp_server() -> Iterator[KfpServer]:
    """Run a server on a free port of this machine."""
    kfp = KfpServer()
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"kfp": kfp}))
    kfp.endpoint = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield kfp
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
