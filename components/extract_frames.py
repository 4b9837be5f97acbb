"""Components of stage extract-frames: the work is shared out to parts, done, and merged into one manifest."""

from pathlib import Path

from components.component import Step, component
from components.images import DATA_IMAGE


def run_look(step: Step) -> str:
    """Name the content of a dataset; never taken from KFP's cache, so that the stages after it may be."""
    from stabn.data.sources import dataset_fingerprint

    return dataset_fingerprint(step.videos_uri, step.labels_uri, step.dataset_version)


def run_plan(step: Step) -> list[str]:
    """Name the parts that the extraction is shared out to: 1/n to n/n."""
    from stabn.data.frames import part_names

    return part_names(step.num_parts)


def run_extract(step: Step) -> str:
    """Decode the videos of one part and store the frames of each as one object; returns where its records are."""
    from stabn.data.frames import Part, extract_part

    part = Part.parse(step.part)
    return extract_part(step.videos_uri, step.labels_uri, step.storage_uri, part, step.config.extract)


def run_merge(step: Step) -> None:
    """Make one manifest of all parts."""
    from stabn.data.frames import merge_frames

    result = merge_frames(
        step.videos_uri,
        step.labels_uri,
        step.storage_uri,
        len(step.parts),
        Path(step.manifest.path),
        Path(step.rejects.path),
        step.config.extract,
    )
    step.manifest.metadata.update(fingerprint=result.fingerprint, num_videos=len(result))


look_at_dataset = component("look-at-dataset", run_look, DATA_IMAGE)
plan_parts = component("plan-parts", run_plan, DATA_IMAGE)
extract_frames = component("extract-frames", run_extract, DATA_IMAGE)
merge_frames = component("merge-frames", run_merge, DATA_IMAGE)
