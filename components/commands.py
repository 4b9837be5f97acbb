"""The command that looks at a cluster from where it is run."""

import dataclasses
import sys
from argparse import Namespace

from stabn.commands import argument, command
from stabn.config import RunConfig


@command(
    "doctor",
    argument("--storage", metavar="URI", default="", help="folder or s3:// prefix; else STABN_STORAGE_URI"),
    argument("--kfp", metavar="URL", default="", help="KFP API; else KF_PIPELINES_ENDPOINT"),
    argument("--namespace", default="", help="of TrainJobs; else STABN_TRAINJOB_NAMESPACE, else this one"),
)
def doctor(args: Namespace, config: RunConfig) -> None:
    """Try every connection that a run needs and say what to fix: S3, MLflow, KFP, Kubernetes, Trainer, GPU.

    One line for each: ok, failed or skipped, with the reason and the remedy; exit code 1 if something failed. What to
    check comes from the variables that a run has (AWS_*, MLFLOW_TRACKING_URI, KUBECONFIG); what is not set is skipped.
    """
    from components.doctor import Places, examine

    given = {"storage_uri": args.storage, "kfp_host": args.kfp, "namespace": args.namespace}
    places = dataclasses.replace(Places.from_environment(), **{name: text for name, text in given.items() if text})
    if not examine(places, lambda line: print(line, flush=True)):
        sys.exit(1)
