"""Component export-attention: an editing round of the selected videos."""

from components.component import Step, component
from components.images import TRAINER_IMAGE


def run(step: Step) -> tuple[str]:
    """Write the attention of every selected video, for every source frame, with pictures and previews."""
    from components.networks import network_uri
    from stabn.attention.export import export_round

    checkpoint = network_uri(step.checkpoint, "train")
    result = export_round(checkpoint, step.manifest.path, step.selection.path, step.storage_uri, step.config)
    return (result.uri,)


export_attention = component("export-attention", run, TRAINER_IMAGE)
