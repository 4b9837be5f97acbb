"""Prove inside an image, while it is built, that it can do its work: as the user it runs as, without a network.

Usage: python smoke.py data | trainer-cpu | trainer-cuda | editor | services
"""

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

COMPILERS = ("cc", "gcc", "g++", "c++", "clang", "make", "ld", "nvcc", "rustc", "go")
COMPONENTS = ("extract_frames", "train", "evaluate", "select_classes", "export_attention", "edits", "finetune")


def check(is_right: object, message: str) -> None:
    """End the build with a message unless something holds."""
    if not is_right:
        sys.exit(f"smoke: {message}")


def everywhere() -> None:
    """What holds in each image: no compiler, no root, a package that can be used by any user."""
    found = [name for name in COMPILERS if shutil.which(name)]
    check(not found, f"the image has {', '.join(found)}")
    check(os.getuid() != 0, "runs as root")
    check(os.access(os.environ["HOME"], os.W_OK), f"HOME={os.environ['HOME']} is not writable")
    check(not os.access(sys.prefix, os.W_OK), f"{sys.prefix} is writable")


def library() -> None:
    """The command line answers, and videos can be written and read."""
    import numpy as np

    from stabn.data.video import probe
    from stabn.data.video_encoding import encode

    subprocess.run(["stabn", "--help"], check=True, stdout=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "1.webm"
        encode(path, list(np.zeros((12, 64, 96, 3), np.uint8)), 12)
        check(path.stat().st_size, "no video was written")
        probe(path)


def components() -> None:
    """KFP's executor and every component can be imported; `python3` is ours, which the steps of KFP start."""
    for name in COMPONENTS:
        importlib.import_module(f"components.{name}")
    importlib.import_module("kfp.dsl.executor_main")
    importlib.import_module("kubernetes")
    check(Path(shutil.which("python3") or "").resolve() == Path(sys.executable).resolve(), "python3 is another Python")
    check(shutil.which("sh") and shutil.which("mktemp"), "sh and mktemp are missing")


def network(variant: str) -> None:
    """PyTorch of the wanted variant computes a forward and backward pass."""
    import torch

    check((torch.version.cuda is None) == (variant == "cpu"), f"PyTorch {torch.__version__} is not for {variant}")
    weight = torch.ones(2, 3, 3, 3, 3, requires_grad=True)
    torch.nn.functional.conv3d(torch.ones(1, 3, 4, 8, 8), weight).sum().backward()
    check(weight.grad is not None and float(weight.grad.sum()) > 0, "no gradient")
    check(torch.distributed.is_available() and shutil.which("torchrun"), "torchrun is missing")


def main(role: str) -> None:
    """Run the checks of a role."""
    everywhere()
    if role == "services":
        subprocess.run(["weed", "version"], check=True)
        subprocess.run(["mlflow", "--version"], check=True)
        importlib.import_module("psycopg2")
        return
    library()
    if role == "data":
        components()
        heavy = [name for name in ("torch", "nvidia", "triton") if importlib.util.find_spec(name)]
        check(not heavy, f"the data image has {', '.join(heavy)}")
    elif role.startswith("trainer-"):
        components()
        network(role.removeprefix("trainer-"))
    elif role == "editor":
        network("cpu")
        importlib.import_module("stabn.editor.app")
        subprocess.run(["stabn", "editor", "--help"], check=True, stdout=subprocess.DEVNULL)
    else:
        sys.exit(f"smoke: no role {role!r}")


if __name__ == "__main__":
    main(sys.argv[1])
    print(f"smoke: {sys.argv[1]} works")
