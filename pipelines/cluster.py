"""What the tasks need that may run on several nodes: their parameters, and the cluster's settings."""

from collections.abc import Callable
from typing import Any

from kfp import kubernetes
from kfp.dsl import PipelineTask

from components.cluster.config import CONFIG_DIR, CONFIG_MAP


def on_nodes(component: Callable[..., PipelineTask], **arguments: Any) -> PipelineTask:
    """Add a task that runs in its own pod or as a TrainJob, to the pipeline being defined.

    Where and with what nodes run is in the ConfigMap `stabn-trainjob`, if there is one. It is read when the task
    starts, so that a change needs neither a new pipeline nor new results.

    Args:
        component: train, finetune or evaluate.
        arguments: the component's.
    """
    task = component(**arguments)
    return kubernetes.use_config_map_as_volume(task, CONFIG_MAP, str(CONFIG_DIR), optional=True)
