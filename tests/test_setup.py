"""`make setup`: which build of PyTorch a machine gets, and what it is told."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYTHON = """#!/bin/sh
case "$2" in
venv) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
pip) echo "$@" >> pip.log ;;
*) exec {python} "$@" ;;
esac
"""


@pytest.fixture
def index() -> Iterator[str]:
    """An index of packages that answers."""

    class Index(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/cpu"
    server.shutdown()


def setup(folder: Path, *variables: str, driver: bool = False) -> tuple[str, str]:
    """Run `make setup` with a Python that only notes what pip is asked for; return what was said, and that."""
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    tools = folder / "tools"
    tools.mkdir()
    scripts = {"python3.11": PYTHON.format(python=sys.executable), **({"nvidia-smi": "#!/bin/sh\n"} if driver else {})}
    for name, text in scripts.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    own = {"PATH": f"{tools}:{os.environ['PATH']}", "no_proxy": "127.0.0.1"}
    command = ["make", "setup", *variables]
    inherited = {name: value for name, value in os.environ.items() if name not in ("TORCH_INDEX", "MAKEFLAGS")}
    done = subprocess.run(command, cwd=folder, env=inherited | own, capture_output=True, text=True, check=True)
    torch = (folder / "pip.log").read_text().splitlines()[0]
    assert "torch==" in torch
    return done.stdout, torch


@pytest.mark.skipif(sys.platform != "linux" or bool(shutil.which("nvidia-smi")), reason="of Linux without NVIDIA")
def test_a_linux_machine_without_a_driver_takes_the_cpu_build(index: str, tmp_path: Path) -> None:
    said, torch = setup(tmp_path, f"CPU_INDEX={index}")
    assert torch.endswith(f"--extra-index-url {index}") and "1.8 GB" in said


@pytest.mark.skipif(sys.platform != "linux" or bool(shutil.which("nvidia-smi")), reason="of Linux without NVIDIA")
def test_where_the_cpu_index_does_not_answer_it_says_what_comes(tmp_path: Path) -> None:
    said, torch = setup(tmp_path, "CPU_INDEX=http://127.0.0.1:1/cpu")
    assert "extra-index-url" not in torch and "6.7 GB" in said and "TORCH_INDEX=URL" in said


def test_a_driver_or_a_named_index_decides(index: str, tmp_path: Path) -> None:
    for name, variables, driver in (("driver", [], True), ("named", ["TORCH_INDEX=https://x.test/cu"], False)):
        (folder := tmp_path / name).mkdir()
        _, torch = setup(folder, f"CPU_INDEX={index}", *variables, driver=driver)
        assert ("https://x.test/cu" in torch) is (name == "named") and index not in torch
