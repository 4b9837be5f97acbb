"""`stabn faithfulness`: on the tiny run, interrupted and resumed; its numbers, its page, its section of the report."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_report import write_inputs
from tiny_run import settings

from stabn.attention.perturbation import FILLS, KINDS
from stabn.attention.randomised import CASCADE
from stabn.cli import main
from stabn.config import ConfigError
from stabn.data.manifest import Manifest, ManifestError
from stabn.evaluation import faithfulness as stage
from stabn.evaluation.crossed import crossed_bootstrap
from stabn.evaluation.faithfulness import measure_faithfulness
from stabn.evaluation.faithfulness_numbers import (
    GAP,
    MAPS,
    OVER,
    FaithfulnessError,
    load_faithfulness,
    parse,
    plain_text,
    table,
    verdict,
)
from stabn.evaluation.predict import evaluate
from stabn.evaluation.report import make_report
from stabn.tracking.client import tracking_client
from stabn.training.checkpoint import CheckpointError


def document(gain: float = 0.0, num_videos: int = 30, checkpoint: str = "a") -> dict[str, Any]:
    """Return a file in which the attention's insertion is by `gain` above random's, and its deletion below."""
    rng = np.random.default_rng(0)
    shares = [0.0, 0.5, 1.0]

    def curves(name: str) -> dict[str, list[float]]:
        add = gain if name == "attention" else 0.0
        middle = 0.5 + 0.02 * rng.standard_normal(2)
        return {"deletion": [0.9, middle[0] - add, 0.1], "insertion": [0.1, middle[1] + add, 0.9]}

    videos = [
        {
            "video_id": f"v{number}",
            "curves": {
                kind: {fill: {name: curves(name) for name in MAPS} for fill in FILLS[kind]} | {"shares": shares}
                for kind in KINDS
            },
            "alike": {kind: {"grad_cam": 0.1, "motion": 0.2, "centre": -0.3} for kind in KINDS},
        }
        for number in range(num_videos)
    ]
    return {
        "format": 1,
        "split": "validation",
        "checkpoint_fingerprint": checkpoint,
        "videos": videos,
        "randomised": {part: {"Mt": [0.5, 0.7], "Ms": [1.0, 1.0], "Grad-CAM": [0.0, 0.2]} for part in CASCADE},
        "pictures": [],
    }


def test_areas_gaps_and_differences_are_those_of_the_curves() -> None:
    found = parse(document(gain=0.2), "f.json")
    areas = found.areas("temporal", "mean colour", "attention")
    middle = found.curves["temporal"]["mean colour"]["attention"][:, :, 1]
    np.testing.assert_allclose(areas, 0.25 * 0.9 + 0.25 * 0.1 + 0.5 * middle)
    shown = table(found, "temporal")
    assert list(shown) == ["Mt", "Grad-CAM", "motion energy", "centre", "uniform", "random"]
    assert list(table(found, "spatial")["Ms"])[:4] == [
        "deletion, mean colour", "deletion, blur", "insertion, mean colour", "insertion, blur",
    ]  # fmt: skip
    gaps = found.gaps("temporal", "attention") - found.gaps("temporal", "random")
    over = shown["random"][OVER]
    assert over.mean == pytest.approx(gaps.mean()) and over.mean == pytest.approx(0.2, abs=0.01)
    assert shown["random"][GAP].low < 0 < shown["random"][GAP].high < 0.01
    expected = crossed_bootstrap(gaps[None])
    assert over.low == pytest.approx(expected.low, abs=2e-3) and over.high == pytest.approx(expected.high, abs=2e-3)
    assert found.metrics()["temporal_over_random"] == pytest.approx(gaps.mean())
    assert found.metrics()["randomised_class_maps_Mt"] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("gain", "tone", "words"),
    [
        (0.2, "good", "Ms is faithful: the answer depends on the parts of a frame where it is high"),
        (-0.2, "bad", "Ms is faithful upside down: the answer depends on the parts of a frame where it is low"),
        (0.0, "neutral", "is not seen beyond noise"),
    ],
)
def test_the_verdict_says_no_more_than_the_interval(gain: float, tone: str, words: str) -> None:
    found = parse(document(gain), "f.json")
    shown = verdict(found, "spatial")
    assert shown[0] == tone and words in shown[1]
    assert ("more faithful than motion energy, centre and Grad-CAM" in shown[2]) == (gain > 0)
    assert ("it is less faithful than motion energy" in shown[2]) == (gain < 0)
    assert shown[1] in plain_text(found)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.pop("videos"), "no 'videos'"),
        (lambda d: d.update(format=9), "format 9, not 1"),
        (lambda d: d["videos"][3]["curves"]["spatial"]["blur"].pop("motion"), "no 'motion'"),
        (lambda d: d["videos"][3]["curves"]["spatial"]["blur"]["motion"].update(deletion=[0.1]), "shape|element"),
        (lambda d: d.update(videos=[]), "index"),
        (lambda d: d["randomised"]["class maps"].update(Ms="high"), "could not convert"),
    ],
)
def test_a_file_that_is_none_is_refused_by_name(change: Any, reason: str, tmp_path: Path) -> None:
    content = document()
    change(content)
    (tmp_path / "f.json").write_text(json.dumps(content))
    with pytest.raises(FaithfulnessError, match=rf"f\.json: not what `stabn faithfulness` writes \(.*({reason})"):
        load_faithfulness(tmp_path / "f.json")
    (tmp_path / "f.json").write_text("{")
    with pytest.raises(FaithfulnessError, match=r"f\.json: not JSON"):
        load_faithfulness(tmp_path / "f.json")


@pytest.fixture(scope="module")
def measured(manifest_path: str, trained: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that the command has written."""
    folder = tmp_path_factory.mktemp("faithfulness")
    words = ["--checkpoint", trained, "--manifest", manifest_path, "--videos", "3", "--steps", "2"]
    words += ["--preset", "mini", "--train.device", "cpu", "--train.precision", "fp32", "--train.batch_size", "4"]
    main(["faithfulness", *words, "--output", str(folder)])
    return folder


def test_the_command_measures_the_tiny_run(measured: Path, manifest_path: str, trained: str, tmp_path: Path) -> None:
    manifest = Manifest.load(manifest_path)
    found = load_faithfulness(measured / "faithfulness.json")
    names = {manifest.video_id(row) for row in manifest.indices("validation")}
    assert len(found.video_ids) == 3 and set(found.video_ids) < names and found.split == "validation"
    predictions = evaluate(
        trained, manifest_path, "validation", "as_is", tmp_path / "p.parquet", settings()
    ).predictions
    scores = dict(zip(predictions.video_ids, predictions.scores[:, 0], strict=True))
    for kind in KINDS:
        assert found.shares[kind].tolist() == [0, 0.5, 1]
        for fill in FILLS[kind]:
            for name in MAPS:
                curves = found.curves[kind][fill][name]
                assert curves.shape == (3, 2, 3) and ((curves >= 0) & (curves <= 1)).all()
                expected = [scores[video_id] for video_id in found.video_ids]  # nothing deleted, everything inserted
                np.testing.assert_allclose(curves[:, 0, 0], expected, atol=1e-4)
                np.testing.assert_allclose(curves[:, 1, -1], expected, atol=1e-4)
    assert len({tuple(found.curves["temporal"]["mean colour"][name].ravel()) for name in MAPS}) > 3
    first = {name: found.randomised["perception branch"][name] for name in ("Mt", "Ms", "Grad-CAM")}
    assert (first["Mt"] > 0.999).all() and (first["Ms"] > 0.999).all() and first["Grad-CAM"].mean() < 0.9
    assert found.randomised["stem"]["Ms"].mean() < 0.9
    page = (measured / "faithfulness.html").read_text()
    assert page.count('class="numbers-table') == 3 and page.count("data:image/png") == 3
    assert "Red is where it is high, which need not be what the answer depends on" in page
    with Image.open(measured / "figures" / f"{found.video_ids[0]}.png") as picture:
        assert picture.width >= 600


def test_what_is_done_is_not_done_again_and_the_result_is_the_same(
    measured: Path, manifest_path: str, trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places, options = (trained, manifest_path, "validation", str(tmp_path / "out")), {"num_videos": 3, "max_steps": 2}
    measure, done = stage._measure, []

    def interrupted(*args: Any) -> dict[str, Any]:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(args)
        return measure(*args)

    monkeypatch.setattr(stage, "_measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure_faithfulness(*places, settings(), **options)
    assert not (tmp_path / "out" / "faithfulness.json").exists()
    done.clear()
    measure_faithfulness(*places, settings(), **options)
    assert len(done) == 1
    contents = [json.loads((folder / "faithfulness.json").read_text()) for folder in (tmp_path / "out", measured)]
    assert contents[0]["videos"] == contents[1]["videos"] and contents[0]["randomised"] == contents[1]["randomised"]
    done.clear()
    (tmp_path / "out" / "parts" / f"{contents[0]['videos'][0]['video_id']}.json").write_text("{")  # of a full disk
    measure_faithfulness(*places, settings(), **options)
    assert len(done) == 1
    done.clear()
    with pytest.raises(KeyboardInterrupt):  # other options: what is there does not count
        measure_faithfulness(*places, settings(), **options | {"seed": 1})
    assert len(done) == 2


def test_mlflow_has_the_numbers_the_page_and_the_file(
    manifest_path: str, trained: str, tmp_path: Path, mlflow_uri: str
) -> None:
    found = measure_faithfulness(
        trained, manifest_path, "validation", str(tmp_path), settings(), num_videos=2, max_steps=1
    )
    client = tracking_client()
    (experiment,) = [item for item in client.search_experiments() if client.search_runs([item.experiment_id])]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "faithfulness/validation" and run.data.params["videos"] == "2"
    for name, value in found.metrics().items():
        assert run.data.metrics[name] == pytest.approx(value), name
    kept = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"faithfulness.json", "faithfulness.html", "faithfulness.txt"} <= kept


def test_bad_input_is_refused(manifest_path: str, trained: str, tmp_path: Path) -> None:
    bad = (({"num_videos": -1}, "videos = -1"), ({"max_steps": 0}, "steps = 0"), ({"seed": -2}, "seed = -2"))
    for options, words in bad:
        with pytest.raises(ConfigError, match=words):
            measure_faithfulness(trained, manifest_path, "validation", str(tmp_path), settings(), **options)
    with pytest.raises(ManifestError, match="split 'test' has no videos"):
        measure_faithfulness(trained, manifest_path, "test", str(tmp_path), settings())


def test_a_network_without_attention_is_refused(manifest_path: str, tmp_path: Path) -> None:
    from stabn.training.stage import train

    config = settings(train__epochs=1, model__name="resnet3d")
    baseline = train(manifest_path, config, str(tmp_path / "net")).best_uri
    with pytest.raises(CheckpointError, match="to measure"):
        measure_faithfulness(baseline, manifest_path, "validation", str(tmp_path / "out"), settings())


def test_the_report_has_a_section_of_each_network_and_tells_faithful_from_agreeing(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    for name, checkpoint in (("before", "b"), ("after", "a")):
        content = document(0.2 if name == "after" else 0.0, checkpoint=checkpoint)
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    both = f"{tmp_path / 'after.json'},{tmp_path / 'before.json'}"
    result = make_report(dataclasses.replace(inputs, faithfulness=both), tmp_path / "report")
    page = result.html_path.read_text()
    section = page.split('<section id="faithfulness">')[1].split("</section>")[0]
    assert section.index("</span>Before") < section.index("</span>After")
    assert section.count("Mt is faithful: the answer depends on the frames where it is high") == 1
    assert section.count("is not seen beyond noise") == 2
    assert "attention that people agree with need not be faithful" in " ".join(section.split())
    without = make_report(inputs, tmp_path / "without").html_path.read_text()
    assert 'id="faithfulness"' not in without
    (tmp_path / "other.json").write_text(json.dumps(document(checkpoint="elsewhere")))
    with pytest.raises(FaithfulnessError, match=r"other\.json: of network elsewhere, which this report does not comp"):
        make_report(dataclasses.replace(inputs, faithfulness=tmp_path / "other.json"), tmp_path / "bad")
