"""Where storage and MLflow are, as a step finds it: files of a ConfigMap and a secret, read into the environment.

Files, because what a step has in its environment stands in the workflow once for each step (Argo keeps less than 1 MB),
and because Kubernetes refuses a pod in which KFP's own MLflow plugin has set one of the same variables by value.
"""

import os
import re
from collections.abc import Iterable, MutableMapping
from pathlib import Path

STORAGE_DIR, SECRET_DIR = Path("/etc/stabn/storage"), Path("/etc/stabn/s3")
VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")


def read_mounted(
    folders: Iterable[Path] = (STORAGE_DIR, SECRET_DIR), environment: MutableMapping[str, str] = os.environ
) -> None:
    """Set a variable for each file, unless it is set: what was injected or given by hand goes before."""
    for folder in folders:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if VARIABLE.fullmatch(path.name) and path.is_file() and (text := path.read_text().strip()):
                environment.setdefault(path.name, text)
