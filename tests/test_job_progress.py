"""How much of a training is done, as Kubeflow Trainer and MLflow are told it."""

import datetime
import json
import logging
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from kubeflow_trainer_api.models import TrainerV1alpha1TrainerStatus
from tiny_run import settings

from stabn.training import job_progress
from stabn.training.job_progress import JobProgress
from stabn.training.stage import train


class Trainer:
    """Kubeflow Trainer's status server: its address, what it was told, and what it answers with."""

    def __init__(self) -> None:
        self.url, self.status, self.told = "", 200, list[dict[str, Any]]()


def _certificate(folder: Path) -> Path:
    """Write a certificate that vouches for itself, as Trainer's does, and its key; return their file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
    made = made.add_extension(x509.BasicConstraints(True, None), True)
    path, pem = folder / "tls.pem", serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(pem) + secret)
    return path


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trainer]:
    """Run a status server over TLS, and set the variables that Trainer gives to pods."""
    found = Trainer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.told.append({"path": self.path, "by": self.headers["Authorization"], **body})
            self.send_response(found.status)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate = _certificate(tmp_path)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.url = f"https://localhost:{server.server_address[1]}/apis/status"
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setenv(job_progress.URL, found.url)
    monkeypatch.setenv(job_progress.CERTIFICATE, str(certificate))
    monkeypatch.setenv(job_progress.TOKEN, str(tmp_path / "token"))
    monkeypatch.setattr(job_progress, "EVERY_SECONDS", 0.0)
    yield found
    server.shutdown()
    server.server_close()


def test_a_training_tells_trainer_and_mlflow(
    trainer: Trainer, manifest_path: str, mlflow_uri: str, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    train(manifest_path, settings(train__epochs=2), str(tmp_path / "out"))
    assert {(item["path"], item["by"]) for item in trainer.told} == {("/apis/status", "Bearer secret")}
    statuses = [item["trainerStatus"] for item in trainer.told]
    for status in statuses:
        assert TrainerV1alpha1TrainerStatus.from_dict(status).to_dict().keys() == status.keys(), "Trainer's own fields"
    assert statuses[-1]["progressPercentage"] == 100 and statuses[-1]["estimatedRemainingSeconds"] == 0
    assert "validation_loss" in {metric["name"] for metric in statuses[-1]["metrics"]}
    client = MlflowClient(mlflow_uri)
    (run,) = client.search_runs([client.get_experiment_by_name("stabn").experiment_id])
    percents = [item.value for item in client.get_metric_history(run.info.run_id, "progress_percent")]
    assert percents == sorted(percents) and percents[-1] == 100 and len(percents) > 2
    assert run.data.metrics["seconds_left"] == 0


def test_the_time_left_is_that_of_this_try(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that goes on where it was does not count what was done before; updates are not sent too often."""
    now, told = [100.0], list[tuple[dict[str, float], int]]()
    monkeypatch.setattr(job_progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(job_progress, "EVERY_SECONDS", 30.0)
    progress = JobProgress(lambda numbers, percent: told.append((numbers, percent)))
    for second in range(61):
        now[0] = 100.0 + second
        progress.tell(0.5 + second / 600, {"loss": 2.0})
    assert [percent for _, percent in told] == [55, 60]
    assert [round(numbers["seconds_left"]) for numbers, _ in told] == [270, 240]


def test_a_trainer_that_refuses_or_is_away_is_said_once(trainer: Trainer, caplog: pytest.LogCaptureFixture) -> None:
    trainer.status = 422
    progress = JobProgress(lambda numbers, percent: None)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            progress.finish({"loss": 1.0})
    assert len(trainer.told) == 2
    assert caplog.text.count("Kubeflow Trainer is not told of the progress: HTTP Error 422") == 1


def test_one_that_does_not_answer_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv(job_progress.URL, f"http://127.0.0.1:{silent.getsockname()[1]}/")
        monkeypatch.setattr(job_progress, "EVERY_SECONDS", 0.0)
        monkeypatch.setattr(job_progress, "TIMEOUT_SECONDS", 1.0)
        progress = JobProgress(lambda numbers, percent: None)
        began = time.monotonic()
        for step in range(100):
            progress.tell(step / 100, {})
        assert time.monotonic() - began < 0.9
        assert sum(thread.name == "trainer status" for thread in threading.enumerate()) == 1
        progress.finish({})
