"""Component extract-frames: videos to packed frames in object storage, and the manifest."""

from kfp import dsl

from components.images import DATA_IMAGE


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
def extract_frames(
    videos_uri: str,
    labels_uri: str,
    storage_uri: str,
    preset: str,
    overrides: str,
    dataset_version: str,
    manifest: dsl.Output[dsl.Dataset],
    rejects: dsl.Output[dsl.Dataset],
):
    """Decode every labelled video and store its frames as one object.

    Args:
        videos_uri: Folder or s3:// prefix with <id>.webm.
        labels_uri: Folder or s3:// prefix with the four Something-Something v2 label files.
        storage_uri: Folder or s3:// prefix that gets the frames.
        preset: Named settings.
        overrides: Settings that differ from the preset, section.name=value.
        dataset_version: Anything that changes when the videos do, so that KFP's cache sees it.
        manifest: One row per usable video.
        rejects: The videos that cannot be used, with the reason.
    """
    from pathlib import Path

    from stabn.data.frames import extract_frames
    from stabn.presets import resolve

    result = extract_frames(
        videos_uri, labels_uri, storage_uri, Path(manifest.path), Path(rejects.path), resolve(preset, overrides).extract
    )
    manifest.metadata.update(fingerprint=result.fingerprint, num_videos=len(result))
