"""Components of stage extract-frames: the work is shared out to parts, done, and merged into one manifest."""

from kfp import dsl

from components.images import DATA_IMAGE


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
def look_at_dataset(videos_uri: str, labels_uri: str, dataset_version: str) -> str:
    """Name the content of a dataset; never taken from KFP's cache, so that the stages after it may be.

    Args:
        videos_uri: Folder or s3:// prefix with <id>.webm, or with the dataset's archive.
        labels_uri: Folder or s3:// prefix with the four Something-Something v2 label files.
        dataset_version: Anything that tells datasets apart that look alike; usually empty.

    Returns:
        Fingerprint of the videos and the labels.
    """
    from stabn.data.sources import dataset_fingerprint

    return dataset_fingerprint(videos_uri, labels_uri, dataset_version)


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
def plan_parts(num_parts: int) -> list[str]:
    """Name the parts that the extraction is shared out to: 1/n to n/n.

    Args:
        num_parts: How many parts, each a pod of its own.
    """
    from stabn.data.frames import part_names

    return part_names(num_parts)


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
def extract_frames(
    videos_uri: str, labels_uri: str, storage_uri: str, preset: str, overrides: str, dataset_version: str, part: str
) -> str:
    """Decode the videos of one part and store the frames of each as one object.

    Args:
        videos_uri: Folder or s3:// prefix with <id>.webm, or with the dataset's archive.
        labels_uri: Folder or s3:// prefix with the four Something-Something v2 label files.
        storage_uri: Folder or s3:// prefix that gets the frames.
        preset: Named settings.
        overrides: Settings that differ from the preset, section.name=value.
        dataset_version: Names the content of the dataset, so that KFP's cache sees when it changes.
        part: Which part, i/n.

    Returns:
        URI of what came of the part.
    """
    from stabn.data.frames import Part, extract_part
    from stabn.presets import resolve

    return extract_part(videos_uri, labels_uri, storage_uri, Part.parse(part), resolve(preset, overrides).extract)


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
def merge_frames(
    videos_uri: str,
    labels_uri: str,
    storage_uri: str,
    preset: str,
    overrides: str,
    dataset_version: str,
    parts: list[str],
    manifest: dsl.Output[dsl.Dataset],
    rejects: dsl.Output[dsl.Dataset],
):
    """Make one manifest of all parts.

    Args:
        videos_uri: As for extract-frames.
        labels_uri: As for extract-frames.
        storage_uri: As for extract-frames.
        preset: Named settings.
        overrides: Settings that differ from the preset, section.name=value.
        dataset_version: Names the content of the dataset, so that KFP's cache sees when it changes.
        parts: What came of each part.
        manifest: One row per usable video.
        rejects: The videos that cannot be used, with the reason.
    """
    from pathlib import Path

    from stabn.data.frames import merge_frames
    from stabn.presets import resolve

    result = merge_frames(
        videos_uri,
        labels_uri,
        storage_uri,
        len(parts),
        Path(manifest.path),
        Path(rejects.path),
        resolve(preset, overrides).extract,
    )
    manifest.metadata.update(fingerprint=result.fingerprint, num_videos=len(result))
