"""Where a stage runs: in the step itself, in one or several processes, or on the nodes of a TrainJob."""

import dataclasses

from stabn.config import ConfigError
from stabn.stages import NODES


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a stage runs.

    Attributes:
        num_nodes: pods; 1: the step itself, unless an accelerator is wanted.
        procs_per_node: processes of each node.
        accelerator: resource name such as nvidia.com/gpu, one for each process; empty: none, or what the machine has.
    """

    num_nodes: int = 1
    procs_per_node: int = 1
    accelerator: str = ""

    def __post_init__(self) -> None:
        for item in NODES:
            item.check(getattr(self, item.name))

    @property
    def is_here(self) -> bool:
        """Whether the stage runs in the step itself.

        Raises:
            ConfigError: several nodes are wanted and there is no cluster.
        """
        from components.cluster.api import cluster_is_reachable

        has_cluster = cluster_is_reachable()
        if self.num_nodes > 1 and not has_cluster:
            raise ConfigError(
                f"num_nodes = {self.num_nodes}: needs a Kubernetes cluster with Kubeflow Trainer; "
                "without one use num_nodes = 1 and procs_per_node"
            )
        return self.num_nodes == 1 and not (self.accelerator and has_cluster)


HERE = Placement()
