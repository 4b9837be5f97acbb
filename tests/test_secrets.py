"""No secret that is planted anywhere leaves a run: not printed, not logged, not stored, not in a traceback."""

import base64
import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from kfp_server import kfp_server
from test_doctor import run as doctor

from pipelines.__main__ import main as pipelines_main
from stabn.endpoint import basic_authorization, without_user
from stabn.errors import StabnError
from stabn.masking import hide_secrets, masked
from stabn.storage import open_storage
from stabn.tracking import stage_run

SECRET = "pl4nted"  # part of every one of them
PASSWORD = f"{SECRET}/pass@word"  # needs quoting in an address
SIGNED = f"https://data.example/v.webm?X-Amz-Credential={SECRET}1&X-Amz-Signature={SECRET}2&part=7"
VARIABLES = {
    "MLFLOW_TRACKING_PASSWORD": f"{SECRET}-tracking",
    "MLFLOW_TRACKING_TOKEN": f"{SECRET}-token",
    "AWS_ACCESS_KEY_ID": f"AKIA{SECRET}000",
    "AWS_SECRET_ACCESS_KEY": f"{SECRET}+/secret/key",
    "AWS_SESSION_TOKEN": f"{SECRET}=session=",
    "STABN_KFP_TOKEN": f"{SECRET}.kfp.token",
    "STABN_KFP_COOKIES": f"session={SECRET}",
    "AWS_ENDPOINT_URL": f"http://s3user:{SECRET}-s3@127.0.0.1:9",
    "HTTPS_PROXY": f"http://proxyuser:{SECRET}-proxy@127.0.0.1:9",
    "GITHUB_PAT": f"ghp_{SECRET}",
    "DB_PASS": f"{SECRET}-of-the-database",
    "OUR_APIKEY": f"key-{SECRET}",
    "WANDB_KEY": f"wb-{SECRET}",
    "STABN_WEIGHTS_MIRROR": f"http://mirror:{SECRET}-mirror@127.0.0.1:9",
}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    return {**os.environ, **VARIABLES}


@contextmanager
def guarded(uri: str) -> Iterator[tuple[str, list[str]]]:
    """Put a proxy that wants a user and password before a server; yield its address with both, and what it refused."""
    upstream, refused = urllib.parse.urlsplit(uri), []
    expected = f"Basic {base64.b64encode(f'ann:{PASSWORD}'.encode()).decode()}"

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") != expected:
                refused.append(self.path)
                self.send_error(401)
                return
            connection = http.client.HTTPConnection(upstream.hostname or "", upstream.port, timeout=30)
            connection.request(self.command, self.path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

        def log_message(self, *arguments: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://ann:{urllib.parse.quote(PASSWORD, safe='')}@127.0.0.1:{server.server_port}", refused
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"at http://ann:{SECRET}@h:1/x?a=b@c", "at http://***@h:1/x?a=b@c"),
        (f"postgresql+psycopg2://ann:{SECRET}@db/mlflow", "postgresql+psycopg2://***@db/mlflow"),
        (SIGNED, "https://data.example/v.webm?X-Amz-Credential=***&X-Amz-Signature=***&part=7"),
        (f"/x?access_token={SECRET}&amp;api_key={SECRET} no", "/x?access_token=***&amp;api_key=*** no"),
        (f"{{'Authorization': 'Bearer {SECRET}', 'b': 1}}", "{'Authorization': 'Bearer ***', 'b': 1}"),
        (f"mysql://ann:{SECRET}/x@db/mlflow", "mysql://***@db/mlflow"),
        (f"Authorization: Token {SECRET}", "Authorization: Token ***"),
        (f"Cookie: session={SECRET}; b={SECRET}", "Cookie: ***"),
        (f'{{"X-Api-Key": "{SECRET}", "password": "{SECRET}"}}', '{"X-Api-Key": "***", "password": "***"}'),
        (f"host=db password={SECRET} user=ann", "host=db password=*** user=ann"),
        ("http://h:80/a@b http://h/x@sha256:1, set password: or cookies: first; authorization is wrong", None),
        ("s3://bucket/key mail ann@example.org, token 3 of 5, //host/a", None),
    ],
)
def test_what_a_text_shows(text: str, shown: str | None) -> None:
    assert masked(text) == (text if shown is None else shown)


def test_the_values_of_variables_are_hidden_wherever_they_stand(planted: dict[str, str]) -> None:
    for name, value in VARIABLES.items():
        quoted = urllib.parse.quote(value, safe="")
        text = masked(f"{name}: <{value}> and {quoted!r}")
        assert SECRET not in text, text
    nonnumeric = masked(f"nonnumeric port: '{SECRET}-s3@127.0.0.1:9'")
    assert nonnumeric == "nonnumeric port: '***@127.0.0.1:9'", "libraries take addresses apart"
    assert SECRET not in str(StabnError(f"cannot open {VARIABLES['AWS_ENDPOINT_URL']}"))
    assert masked("the values of AWS_SECRET_ACCESS_KEY") == "the values of AWS_SECRET_ACCESS_KEY"


def test_errors_of_the_store_and_tracebacks_show_none(planted: dict[str, str]) -> None:
    with pytest.raises(StabnError) as caught:
        open_storage("s3://bucket/x").read("a")
    assert SECRET not in str(caught.value) and "AWS_ENDPOINT_URL" in str(caught.value)
    program = (
        "import logging, os, sys\nfrom stabn import cli\nfrom stabn.commands import Command\n"
        "def fail(args, config):\n"
        "    print('out', os.environ['HTTPS_PROXY'])\n"
        "    logging.getLogger('x').warning(os.environ['AWS_ENDPOINT_URL'])\n"
        "    try:\n        raise ValueError(os.environ['AWS_SECRET_ACCESS_KEY'])\n"
        "    except ValueError as error:\n        raise RuntimeError(os.environ['STABN_KFP_TOKEN']) from error\n"
        "cli.COMMANDS['sources'] = Command('sources', fail)\ncli.main(['sources'])\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], env=planted, capture_output=True, text=True)
    said = ran.stdout + ran.stderr
    assert ran.returncode == 1 and "Traceback" in said and "RuntimeError: ***" in said and "ValueError: ***" in said
    assert "http://***@127.0.0.1:9" in ran.stdout and "WARNING x: http://***@" in ran.stderr
    assert SECRET not in said


def test_addresses_give_their_user_to_the_request_and_not_to_links() -> None:
    url = f"https://ann:{urllib.parse.quote(PASSWORD, safe='')}@h:8/a?b=c"
    assert without_user(url) == "https://h:8/a?b=c" and without_user("sqlite:////a/b") == "sqlite:////a/b"
    sent = basic_authorization(url)["Authorization"].removeprefix("Basic ")
    assert base64.b64decode(sent).decode() == f"ann:{PASSWORD}" and basic_authorization("https://h") == {}


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Run MLflow's own server on the database of a folder; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"host": "127.0.0.1", "port": port, "workers": 1, "backend-store-uri": f"sqlite:///{folder}/mlflow.db"}
    options |= {"artifacts-destination": folder / "artifacts"}
    words = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    with open(folder / "server.log", "wb") as log:
        command = [sys.executable, "-m", "mlflow", "server", *words]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_whole_run_with_a_password_in_every_address(
    planted: dict[str, str],
    mlflow_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """MLflow's server behind a password: a stage, the doctor, a submission; then all that was written is searched."""
    for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "STABN_KFP_TOKEN", "STABN_KFP_COOKIES"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("kfp.Client._LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("STABN_RUN_ID", "run-1")
    with mlflow_server(tmp_path / "mlflow") as plain, guarded(plain) as (uri, refused), kfp_server() as kfp:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", kfp.endpoint.replace("//", f"//ann:{SECRET}-kfp@"))
        hide_secrets()
        inputs = {"manifest": "abc"}
        with (
            pytest.raises(RuntimeError),
            stage_run("train", settings={"source": SIGNED, "uri": uri}, inputs=inputs, parent_model=uri) as stage,
        ):
            stage.set_tags({"reason": f"from {VARIABLES['AWS_ENDPOINT_URL']}"})
            stage.log_text(f"see {SIGNED}", "note.txt")
            print(f"train: {stage.link}")
            raise RuntimeError(f"no answer from {uri}")
        words = [
            "finetune",
            "--param",
            "data_round_uri=s3://bucket/r",
            "--param",
            "data_storage_uri=s3://bucket",
            "--name",
            "night",
        ]
        pipelines_main(["submit", *words, "--commit", "0" * 40, "--summary", str(tmp_path / "summary.md")])
        _, lines = doctor(tracking_uri=uri, kfp_host=os.environ["KF_PIPELINES_ENDPOINT"])
        assert lines["mlflow"].startswith("ok") and lines["kfp"].startswith("ok"), lines
        assert not refused, "the password was sent with each request"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:{SECRET}-wrong@{uri.rpartition('@')[2]}")
        with pytest.raises(StabnError, match="MLFLOW_TRACKING_URI"), stage_run("late", settings={}, inputs={}):
            raise AssertionError("not reached")
        _, wrong = doctor(tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
        assert "answered 401" in wrong["mlflow"] and "MLFLOW_TRACKING_PASSWORD" in wrong["mlflow"]
        said = capfd.readouterr()
        everything = "".join([said.out, said.err, *lines.values(), *wrong.values()])
        assert "train: http://127.0.0.1" in everything and SECRET not in everything
    stored = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"mlflow.db", "note.txt", "summary.md"} <= {path.name for path in stored}
    assert [str(path) for path in stored if SECRET.encode() in path.read_bytes()] == []
