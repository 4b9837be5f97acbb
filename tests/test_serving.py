"""A registered version as MLflow loads it: classes and both attentions of videos and frames, without any pickle."""

import base64
import os
import runpy
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import mlflow
import numpy as np
import pandas as pd
import pytest
from test_promote import network, replaced

from stabn.attention.explain import frames_of_file
from stabn.attention.export import attend
from stabn.attention.serving import CODE
from stabn.cli import main
from stabn.config import PromoteConfig
from stabn.errors import StabnError
from stabn.evaluation.prediction_table import Predictions
from stabn.evaluation.promote import promote
from stabn.tracking import TrackingError, find_champion, find_checkpoint, register_if_better
from stabn.training.checkpoint import load_model

CHAMPION = "models:/st-abn@champion"


@pytest.fixture
def champion(mlflow_uri: str, trained: str, tmp_path: Path) -> str:
    """Promote the tiny network, and return where its weights are."""
    before, after = network(tmp_path, "a", 0.5), network(tmp_path, "b", 0.9)
    table = Predictions.load(after)
    replaced(table, metadata={**table.metadata, "checkpoint_fingerprint": load_model(trained)[1].fingerprint}).save(
        after
    )
    assert promote(before, after, trained, "st-abn", PromoteConfig()).promoted
    return trained


def test_the_champion_recognises_videos_and_frames(champion: str, small_dataset: Path) -> None:
    video = str(small_dataset / "videos" / "1.webm")
    model, checkpoint = load_model(champion)
    frames = frames_of_file(video, checkpoint.data_config)
    expected = attend(model, frames, checkpoint.data_config)
    served = mlflow.pyfunc.load_model(CHAMPION)
    found = served.predict({"video": [video, video]}, params={"top": 2}).iloc[1]
    assert list(found["classes"]) == [name for _, name, _ in expected.top(checkpoint.classes, 2)]
    assert np.allclose(found["scores"], sorted(expected.probabilities)[:-3:-1])
    assert np.allclose(found["temporal_attention"], expected.temporal)
    assert np.allclose(found["spatial_attention"], expected.spatial / 255, atol=1e-3)
    images = [base64.b64encode(cv2.imencode(".png", frame[..., ::-1])[1]).decode() for frame in frames]
    for given in (images, np.stack(list(frames)), [base64.b64decode(image) for image in images]):
        again = served.predict(pd.DataFrame({"frames": [given]})).iloc[0]
        assert np.allclose(again["temporal_attention"], expected.temporal)
    assert len(served.predict(served.input_example)["classes"][0]) == 3


def test_mlflow_has_nothing_to_warn_of_when_a_champion_is_registered() -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = runpy.run_path(str(CODE))["AttentionModel"]
    assert not [str(item.message) for item in said if "type hint" in str(item.message)]
    assert model().predict_type_hints.input is pd.DataFrame


def test_input_that_holds_no_video_is_named(champion: str) -> None:
    served = mlflow.pyfunc.load_model(CHAMPION)
    two_sizes = [np.zeros((8, 8, 3), int), np.zeros((8, 9, 3), int)]
    for column, value, said in [
        ("video", "nowhere.webm", "row 0: 'nowhere.webm': no such file here"),
        ("video", "", "row 0: give `video`"),
        ("frames", [], "row 0: give `video`"),
        ("frames", ["AAAA"], "row 0, frame 0: 3 bytes that are no JPEG or PNG"),
        ("frames", ["not base64!"], "row 0, frame 0: not base64"),
        ("frames", [[[0.5]]], "row 0, frame 0: float64"),
        ("frames", two_sizes, r"row 0: frames of \(8, 8\) and \(8, 9\)"),
    ]:
        with pytest.raises(StabnError, match=said):
            served.predict(pd.DataFrame({column: [value]}))


def test_the_model_holds_code_and_no_weights_and_no_pickle(champion: str, mlflow_uri: str, tmp_path: Path) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(CHAMPION, dst_path=str(tmp_path / "model")))
    names = [path.name for path in folder.rglob("*") if path.is_file()]
    assert not [name for name in names if name.endswith((".pkl", ".pt", ".pth", ".bin", ".pyc"))]
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 5e6
    assert (
        "torch==" in (folder / "requirements.txt").read_text()
        and "stabn" not in (folder / "requirements.txt").read_text()
    )
    # A process that has not imported this package runs the code that the model brings.
    code = f"import mlflow; m = mlflow.pyfunc.load_model({CHAMPION!r}); import stabn; print(stabn.__file__)"
    environment = {**os.environ, "PYTHONPATH": ""}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert "/code/stabn/" in said.stdout


def test_numbers_name_the_model_and_the_dataset(champion: str, mlflow_uri: str) -> None:
    client = mlflow.MlflowClient()
    version = client.get_model_version_by_alias("st-abn", "champion")
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    assert model.status == "READY" and model.source_run_id == version.run_id
    metrics = {metric.key: metric for metric in model.metrics}
    assert metrics["top1"].value == pytest.approx(0.9)
    assert metrics["top1"].dataset_digest == "manifest" and metrics["top1"].run_id == version.run_id
    (used,) = client.get_run(version.run_id).inputs.dataset_inputs
    assert used.dataset.digest == "manifest" and used.dataset.name == metrics["top1"].dataset_name


def test_registered_models_name_their_checkpoints(champion: str, mlflow_uri: str) -> None:
    client = mlflow.MlflowClient()
    version = client.get_model_version_by_alias("st-abn", "champion")
    for uri in (CHAMPION, f"models:/st-abn/{version.version}", version.source, champion):
        assert find_checkpoint(uri) == champion
    assert load_model(CHAMPION)[1].fingerprint == load_model(champion)[1].fingerprint
    found = find_champion("st-abn")
    assert found and found.source == champion
    client.create_registered_model("foreign")
    client.create_model_version("foreign", "runs:/0123/model")
    for uri, said in {
        "models:/none@champion": "MLflow has none",
        "models:/st-abn/99": "MLflow has none",
        "models:/m-0123": "MLflow has none",
        "models:/st-abn": "write models:/NAME@champion",
        "models:/../x@champion": "use letters|write models:",
        "models:/foreign/1": "does not say where its checkpoint is",
    }.items():
        with pytest.raises(TrackingError, match=said):
            find_checkpoint(uri)


def test_a_version_of_before_still_is_a_champion(mlflow_uri: str, trained: str) -> None:
    client = mlflow.MlflowClient()
    client.create_registered_model("st-abn")
    client.create_model_version("st-abn", trained)
    client.set_registered_model_alias("st-abn", "champion", "1")
    assert find_checkpoint(CHAMPION) == trained


def test_commands_take_a_registered_model(
    champion: str,
    small_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figure = tmp_path / "seen.png"
    main(["explain", str(small_dataset / "videos" / "2.webm"), "--checkpoint", CHAMPION, "--output", str(figure)])
    said = capsys.readouterr()
    assert figure.stat().st_size > 1000 and f"{CHAMPION}: {champion}" in said.err
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(SystemExit) as ended:
        main(["explain", "2.webm", "--checkpoint", CHAMPION])
    assert ended.value.code == 2 and "MLFLOW_TRACKING_URI is not set" in capsys.readouterr().err


def test_other_weights_in_the_place_of_the_champions_are_refused(champion: str, tmp_path: Path) -> None:
    import torch

    content = torch.load(champion, weights_only=True)
    moved = tmp_path / "moved.pt"
    shutil.copyfile(champion, moved)
    served = mlflow.pyfunc.load_model(CHAMPION, model_config={"checkpoint": str(moved)})
    assert served.predict(served.input_example)["scores"][0]
    from stabn.training.checkpoint import serialize, weights_fingerprint

    name = next(iter(content["model"]))
    content["model"][name] = content["model"][name] + 1
    content["fingerprint"] = weights_fingerprint(content["model"])
    moved.write_bytes(serialize(content))
    with pytest.raises(StabnError, match="holds the network"):
        mlflow.pyfunc.load_model(CHAMPION, model_config={"checkpoint": str(moved)})


def test_a_server_without_models_keeps_the_checkpoints_place(
    mlflow_uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.exceptions import MlflowException

    def refused(*args: object, **options: object) -> None:
        raise MlflowException("no such path", error_code=404)

    def unused(*args: object) -> None:
        raise AssertionError

    monkeypatch.setattr(mlflow.MlflowClient, "create_logged_model", refused)
    made = register_if_better("net", "s3://m/a.pt", {}, {"top1": 0.5}, True, "first", save=unused)
    assert made == ("1", True) and "mlflow.pyfunc cannot load it" in caplog.text
    assert mlflow.MlflowClient().get_model_version("net", "1").source == "s3://m/a.pt"
    assert find_checkpoint("models:/net@champion") == "s3://m/a.pt"
