"""Where storage and MLflow are, as a step finds it: files of a ConfigMap and a secret, read into the environment.

Files, because what a step has in its environment stands in the workflow once for each step (Argo keeps less than 1 MB).
Kubernetes refuses a pod in which KFP's own MLflow plugin has set one of the same variables by value. KFP's launcher,
which runs in the same container, takes AWS_… for the keys of KFP's store, with `fromEnv` in `kfp-launcher`.
"""

import os
import re
from collections.abc import Iterable, MutableMapping
from pathlib import Path

STORAGE_DIR, SECRET_DIR = Path("/etc/stabn/storage"), Path("/etc/stabn/s3")
VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")
KEY, ENDPOINT = "AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL"
# What would go before a key, or before an address, or belongs to another one.
OF_OTHER_KEYS = ("AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_PROFILE")
OF_OTHER_PLACES = ("AWS_ENDPOINT_URL_S3",)


def read_mounted(
    folders: Iterable[Path] = (STORAGE_DIR, SECRET_DIR), environment: MutableMapping[str, str] = os.environ
) -> None:
    """Set a variable for each file.

    One that is set already stays, as KFP's plugin sets MLFLOW_… for this run; but not AWS_…: what the environment has
    is for KFP's store, what the files have is for ours.
    """
    values = {}
    for folder in folders:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if VARIABLE.fullmatch(path.name) and path.is_file() and (text := path.read_text().strip()):
                values.setdefault(path.name, text)
    for name in (*OF_OTHER_KEYS * (KEY in values), *OF_OTHER_PLACES * (ENDPOINT in values)):
        environment.pop(name, None)
    for name, text in values.items():
        if name.startswith("AWS_"):
            environment[name] = text
        else:
            environment.setdefault(name, text)
