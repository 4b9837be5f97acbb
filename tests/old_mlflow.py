"""A small tracking server as there are old ones and busy ones: tighter limits, sign-ins, or no answer at all."""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class OldMlflow:
    """What one run on it recorded, and how it behaves.

    Attributes:
        param_chars: longest value of a parameter.
        batch: most items of a batch, refused with 400; 0: any.
        body_bytes: largest body, refused with 413 by a proxy's page; 0: any.
        refused: metric that it never takes.
        page: status and Location of a sign-in that every request gets; None: none.
        silent: requests get no answer until this is set.
    """

    uri: str = ""
    folder: str = ""
    param_chars: int = 500
    batch: int = 0
    body_bytes: int = 0
    refused: str = ""
    page: tuple[int, str] | None = None
    silent: threading.Event | None = None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    requests: int = 0

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return status and document of a request."""
        info = {"run_id": "r1", "experiment_id": "1", "status": "RUNNING", "artifact_uri": self.folder}
        match path.rpartition("/2.0/mlflow/")[2]:
            case "experiments/get-by-name":
                return 200, {"experiment": {"experiment_id": "1", "name": "stabn", "lifecycle_stage": "active"}}
            case "runs/create" | "runs/get" | "runs/update":
                data = {"params": [{"key": key, "value": value} for key, value in self.params.items()]}
                return 200, {"run": {"info": info, "data": data}, "run_info": info}
            case "runs/log-batch":
                return self._log(body)
        return 200, {}

    def _log(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        params, metrics, tags = (body.get(name, []) for name in ("params", "metrics", "tags"))
        wrong = ""
        if self.batch and len(params) + len(metrics) + len(tags) > self.batch:
            wrong = f"more than {self.batch} items"
        elif long := [item["key"] for item in params if len(item["value"]) > self.param_chars]:
            wrong = f"Param value of {long[0]} had length greater than {self.param_chars}"
        elif self.refused in [item["key"] for item in metrics]:
            wrong = f"invalid metric {self.refused}"
        if wrong:
            return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": wrong}
        for kept, items in ((self.params, params), (self.metrics, metrics), (self.tags, tags)):
            kept.update({item["key"]: item["value"] for item in items})
        return 200, {}


class _Handler(http.server.BaseHTTPRequestHandler):
    server_state: OldMlflow
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        mlflow = self.server_state
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        mlflow.requests += 1
        if mlflow.silent is not None:
            mlflow.silent.wait(20)
            self.close_connection = True
            return
        if self.path == "/sign-in" or (mlflow.page and mlflow.page[0] == 200):
            return self.reply(200, b"<!doctype html><html><body>Sign in</body></html>", "text/html")
        if mlflow.page:
            return self.reply(mlflow.page[0], b"<html>Elsewhere</html>", "text/html", Location=mlflow.page[1])
        if mlflow.body_bytes and len(data) > mlflow.body_bytes:
            return self.reply(413, b"<html>413 Request Entity Too Large</html>", "text/html")
        status, document = mlflow.answer(self.path.partition("?")[0], json.loads(data) if data else {})
        self.reply(status, json.dumps(document).encode(), "application/json")

    do_GET = do_POST = do_PATCH = do_PUT = handle_any

    def reply(self, status: int, data: bytes, kind: str, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def old_mlflow(folder: Path) -> Iterator[OldMlflow]:
    """Run a server on a free port; artifacts go into a folder."""
    state = OldMlflow(folder=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_state": state}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    state.uri = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
