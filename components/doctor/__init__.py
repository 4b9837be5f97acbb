"""`stabn doctor`: try every connection that a run needs, the way it needs it, and say what to fix.

Each check is a function that returns what it saw. It raises `Skipped` when there is nothing to check, and StabnError,
whose message has the remedy, when something is wrong. A check never stops the others.
"""

from collections.abc import Callable

from components.doctor import cluster, policies, services
from components.doctor.places import TIMEOUT_SECONDS, Places, Skipped
from stabn.errors import StabnError
from stabn.masking import masked
from stabn.variables import variables

__all__ = ["Places", "examine"]

# While checking, one attempt tells enough; the stages themselves are patient.
IMPATIENT = {
    "AWS_MAX_ATTEMPTS": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(TIMEOUT_SECONDS),
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
}


def examine(places: Places, say: Callable[[str], None] = print) -> bool:
    """Run every check, a line for each: ok, failed or skipped; return whether none failed."""
    checks: dict[str, Callable[[Places], str]] = {
        "storage": services.check_storage,
        "mlflow": services.check_mlflow,
        "kfp": services.check_kfp,
        "kubernetes": cluster.check_kubernetes,
        "trainer": cluster.check_trainer,
        "permissions": cluster.check_permissions,
        "retries": cluster.check_retries,
        "policies": policies.check_policies,
        "gpu here": services.check_gpu_here,
        "gpu nodes": cluster.check_gpu_nodes,
    }
    failed = []
    with variables(IMPATIENT):
        for name, check in checks.items():
            try:
                status, text = "ok", check(places)
            except Skipped as reason:
                status, text = "skipped", str(reason)
            except StabnError as error:
                status, text = "failed", str(error)
            except Exception as error:  # whatever a library raises belongs into the line of its check
                status, text = "failed", f"{type(error).__name__}: {error}"
            failed += [name] if status == "failed" else []
            say(masked(f"{status:8} {name:12} {' '.join(text.split())}"))
    return not failed
