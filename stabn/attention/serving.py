"""A network as a model of MLflow: what its folder holds. The weights are named, not copied."""

import base64
import contextlib
import importlib.metadata
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from packaging.requirements import Requirement

import stabn
from stabn.attention.export import TOP

CODE = Path(__file__).with_name("mlflow_model.py")
ROLES = ("", "train")  # extras of this package that a served network needs
EXAMPLE_SIZE, EXAMPLE_FRAMES = 48, 8


def save_served_model(folder: str | os.PathLike[str], described: Any, checkpoint_uri: str, fingerprint: str) -> None:
    """Write the folder of a model: this package's code, the signature, an example, what it needs, and no weights.

    Args:
        folder: to write; must not exist.
        described: MLflow's Model, which knows its id and run.
        checkpoint_uri: where the weights are, and stay.
        fingerprint: theirs; what loads the model checks it.
    """
    import mlflow

    mlflow.pyfunc.save_model(
        os.fspath(folder),
        python_model=str(CODE),
        mlflow_model=described,
        code_paths=[os.fspath(Path(stabn.__file__).parent)],
        model_config={"checkpoint": checkpoint_uri, "fingerprint": fingerprint},
        signature=_signature(),
        input_example=example(),
        pip_requirements=requirements(),
    )


def example() -> pd.DataFrame:
    """Return an input that a served network takes: the frames of one small video, a bright square that moves."""
    frames = np.full((EXAMPLE_FRAMES, EXAMPLE_SIZE, EXAMPLE_SIZE, 3), 40, np.uint8)
    for number, frame in enumerate(frames):
        left = number * (EXAMPLE_SIZE - 12) // (EXAMPLE_FRAMES - 1)
        frame[18:30, left : left + 12] = 220
    images = [base64.b64encode(cv2.imencode(".jpg", frame)[1].tobytes()).decode() for frame in frames]
    return pd.DataFrame({"frames": [images]})


def requirements() -> list[str]:
    """Return what this package needs to recognise videos, in the versions that are installed here."""
    found = []
    for text in importlib.metadata.requires("stabn") or []:
        item = Requirement(text)
        if item.marker is None or any(item.marker.evaluate({"extra": role}) for role in ROLES):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found.append(f"{item.name}=={importlib.metadata.version(item.name).partition('+')[0]}")
    return sorted(set(found))


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array

    numbers = Array(DataType.double)
    inputs: list[Any] = [
        ColSpec(DataType.string, "video", required=False),
        ColSpec(AnyType(), "frames", required=False),
    ]
    outputs: list[Any] = [
        ColSpec(Array(DataType.string), "classes"),
        ColSpec(numbers, "scores"),
        ColSpec(numbers, "temporal_attention"),
        ColSpec(Array(Array(numbers)), "spatial_attention"),
    ]
    return ModelSignature(Schema(inputs), Schema(outputs), ParamSchema([ParamSpec("top", DataType.long, TOP)]))
