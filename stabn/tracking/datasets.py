"""Datasets as MLflow shows them: every stage's run names the manifest it used, so that runs group by dataset."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stabn.masking import masked

MANIFEST_INPUTS = ("dataset", "manifest")  # names of a stage's input fingerprints that are a manifest's
CONTEXT = "mlflow.data.context"  # the tag that MLflow's pages show beside a dataset


@dataclass(frozen=True)
class Dataset:
    """The dataset that a stage read.

    Attributes:
        digest: the manifest's fingerprint.
        source: where its frames are, a folder or s3:// URI; empty: the stage does not know.
        profile: how much it is, such as the number of videos by split.
        name: the same for all, so that name and digest are the same in every stage.
    """

    digest: str
    source: str = ""
    profile: Mapping[str, Any] = field(default_factory=dict)
    name: str = "manifest"

    def to_input(self, context: str) -> Any:
        """Return MLflow's DatasetInput."""
        from mlflow.entities import Dataset as Entity
        from mlflow.entities import DatasetInput, InputTag

        kind = "s3" if self.source.startswith("s3://") else "local"
        entity = Entity(
            self.name,
            self.digest,
            kind,
            json.dumps({"uri": masked(self.source)}),
            profile=json.dumps(dict(self.profile)) if self.profile else None,
        )
        return DatasetInput(entity, [InputTag(CONTEXT, context)])


def dataset_of(inputs: Mapping[str, str]) -> Dataset | None:
    """Return the dataset among a stage's input fingerprints, if one is."""
    digest = next((inputs[name] for name in MANIFEST_INPUTS if inputs.get(name)), "")
    return Dataset(digest) if digest else None
