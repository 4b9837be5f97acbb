"""Component export-attention: an editing round of the selected videos."""

from typing import NamedTuple

from kfp import dsl

from components.images import TRAINER_IMAGE


@dsl.component(base_image=TRAINER_IMAGE, install_kfp_package=False)
def export_attention(
    checkpoint: dsl.Input[dsl.Model],
    manifest: dsl.Input[dsl.Dataset],
    selection: dsl.Input[dsl.Dataset],
    storage_uri: str,
    preset: str,
    overrides: str,
) -> NamedTuple("Outputs", [("round_uri", str)]):
    """Write the attention of every selected video, for every source frame, with pictures and previews.

    Args:
        checkpoint: The trained network.
        manifest: The videos.
        selection: The chosen videos of select-classes.
        storage_uri: Folder or s3:// prefix that gets the round.
        preset: Named settings.
        overrides: Settings that differ from the preset, section.name=value.

    Returns:
        round_uri: Where the round is; all that fine-tuning needs.
    """
    from stabn.attention.export import export_round
    from stabn.presets import resolve

    result = export_round(checkpoint.path, manifest.path, selection.path, storage_uri, resolve(preset, overrides))
    return (result.uri,)
