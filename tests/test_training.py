"""Training and fine-tuning on real frames: resumed equals uninterrupted, the frozen part stays, edits are learnt."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import (
    CLASSES,
    EDITED,
    checkpoints,
    last_weights,
    newest_state,
    same,
    settings,
    without_times,
    write_edits,
)

import stabn.training.recipes as stage
from components.component import run_step
from components.nodes import finetune as tune_somewhere
from components.nodes import train as train_into
from components.nodes import train as train_somewhere
from components.placement import Placement
from components.train_baseline import run as train_beside
from stabn.config import ConfigError, TrainConfig
from stabn.data.dataset import ClipDataset
from stabn.data.manifest import Manifest
from stabn.evaluation.predict import evaluate
from stabn.evaluation.prediction_table import Predictions
from stabn.models import STABN
from stabn.storage import open_storage
from stabn.tracking.client import tracking_client
from stabn.training import schedule
from stabn.training.checkpoint import (
    CheckpointError,
    load_model,
    parse_checkpoint,
    read_checkpoint,
    serialize,
    weights_fingerprint,
)
from stabn.training.device import batch_input
from stabn.training.divergence import is_finite
from stabn.training.recipes import TrainingError
from stabn.training.resuming import run_identity
from stabn.training.schedule import Schedule, one_cycle
from stabn.training.stage import TrainResult, finetune, train
from stabn.training.states import StateStore


class Interrupted(BaseException):
    """Stands for SIGKILL: nothing in the product may catch it."""


def interrupt_after(monkeypatch: pytest.MonkeyPatch, name: str, steps: int) -> None:
    """Let the loss function of the stages raise in the step after `steps` steps."""
    real: Callable[..., Any] = getattr(stage, name)
    calls = 0

    def loss(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > steps:
            raise Interrupted
        return real(*args, **options)

    monkeypatch.setattr(stage, name, loss)


def test_train_leaves_two_checkpoints_with_the_whole_history(manifest_path: str, tmp_path: Path) -> None:
    result = train(manifest_path, settings(train__learning_rate=0.05), str(tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"best.pt", "states"}
    assert len(list((tmp_path / "out" / "states").glob("*.json"))) == 2, "the newest two"
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    best, last = read_checkpoint(result.best_uri), read_checkpoint(result.last_uri)
    assert best["history"] == last["history"] == result.history and last["epoch"] == 3
    for row in result.history:
        assert {
            "learning_rate",
            "train_loss",
            "train_top1",
            "validation_loss",
            "validation_top1",
            "videos_per_second",
        } <= set(row)
        assert row["train_loss"] == pytest.approx(row["train_perception_loss"] + row["train_attention_loss"], rel=1e-5)
        assert row["train_temporal_loss"] == 0 and 0 <= row["validation_top1"] <= row["validation_top5"] == 1
    order = [(row["validation_top1"], -row["validation_loss"]) for row in result.history]
    assert best["epoch"] == 1 + order.index(max(order))
    assert result.metrics["validation_top1"] == max(row["validation_top1"] for row in result.history)
    assert best["classes"] == list(CLASSES) and best["model_config"]["num_classes"] == 3
    model, _ = load_model(result.best_uri)
    same(dict(model.state_dict()), best["model"])


@pytest.mark.parametrize(
    "changes",
    [
        {"train__plateau_patience": 0, "train__plateau_factor": 0.5, "train__learning_rate": 0.3},
        {"train__optimizer": "adamw", "train__schedule": "one_cycle", "data__num_clips": 2, "data__workers": 1},
        {"train__checkpoint_minutes": 1e-9},
    ],
    ids=["sgd-plateau", "adamw-one-cycle-two-clips", "checkpoint-each-step"],
)
@pytest.mark.parametrize("steps", [3, 4, 8], ids=["after-epoch-1", "inside-epoch-2", "inside-epoch-3"])
def test_interrupted_and_resumed_equals_uninterrupted(
    changes: dict[str, Any], steps: int, manifest_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(**changes)
    whole = train(manifest_path, config, str(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        interrupt_after(patch, "training_loss", steps)
        with pytest.raises(Interrupted):
            train(manifest_path, config, str(tmp_path / "resumed"))
    state = newest_state(tmp_path / "resumed")
    assert state is not None and state.content["epoch"] == steps // 3, "three steps are an epoch"
    torch.manual_seed(999)  # another process has another state
    resumed = train(manifest_path, config, str(tmp_path / "resumed"))
    assert without_times(resumed.history) == without_times(whole.history)
    same(checkpoints(tmp_path / "whole"), checkpoints(tmp_path / "resumed"))


def test_dropout_is_random_and_repeats_with_the_seed(manifest_path: str, tmp_path: Path) -> None:
    """Guard the test above: without dropout it would hold whatever happened to the random state."""
    results = [
        train(
            manifest_path, settings(train__epochs=1, model__dropout=dropout, train__seed=seed), str(tmp_path / str(n))
        )
        for n, (dropout, seed) in enumerate([(0.5, 0), (0.5, 0), (0.0, 0), (0.5, 1)])
    ]
    losses = [result.history[0]["train_loss"] for result in results]
    assert losses[0] == losses[1] and len(set(losses)) == 3


def test_a_complete_run_is_not_repeated(manifest_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, storage = settings(train__epochs=2), tmp_path / "storage"
    first = train_into(manifest_path, config, str(storage))
    files = {path: path.stat().st_mtime_ns for path in storage.rglob("*.pt")}
    interrupt_after(monkeypatch, "training_loss", 0)
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, cache_mb=8))
    second = train_into(manifest_path, moved, str(storage))
    assert second == first and {path: path.stat().st_mtime_ns for path in storage.rglob("*.pt")} == files
    with pytest.raises(Interrupted):  # other settings are another run, in another folder
        train_into(manifest_path, settings(train__epochs=3), str(storage))


def test_an_output_of_other_settings_is_refused(manifest_path: str, tmp_path: Path) -> None:
    train(manifest_path, settings(train__epochs=1), str(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with pytest.raises(
        CheckpointError, match=r"00001-000000000\.json: .*complete.*learning_rate = 0\.02 instead of 0\.01.*another out"
    ):
        train(manifest_path, settings(train__epochs=1, train__learning_rate=0.02), str(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"data\.color_jitter: 0\.1 there, 0\.2 here.*model\.width: 4 there, 6 here"
    ):
        train(manifest_path, settings(train__epochs=1, data__color_jitter=0.2, model__width=6), str(tmp_path))
    manifest = Manifest.load(manifest_path)
    fewer = tmp_path / "fewer.parquet"
    Manifest(manifest.table.slice(1), manifest.classes, manifest.storage_uri, {}).save(fewer)
    with pytest.raises(CheckpointError, match=f"manifest: '{manifest.fingerprint}' there"):
        train(str(fewer), settings(train__epochs=1), str(tmp_path))
    with pytest.raises(CheckpointError, match=r"seed: 0 there, 1 here \(it decides.*\); set it back or give"):
        train(manifest_path, settings(train__epochs=1, train__seed=1), str(tmp_path))
    assert {path: path.read_bytes() for path in before} == before


def test_a_finished_training_goes_on_to_more_epochs(manifest_path: str, tmp_path: Path) -> None:
    train(manifest_path, settings(train__epochs=1), str(tmp_path / "out"))
    longer = train(manifest_path, settings(train__epochs=2), str(tmp_path / "out")).history
    whole = train(manifest_path, settings(train__epochs=2), str(tmp_path / "whole")).history
    assert without_times(longer) == without_times(whole)
    falling = {"train__schedule": "one_cycle"}
    train(manifest_path, settings(train__epochs=1, **falling), str(tmp_path / "falling"))
    with pytest.raises(CheckpointError, match=r"epochs: 1 there, 2 here \(the rate .* only schedule = plateau"):
        train(manifest_path, settings(train__epochs=2, **falling), str(tmp_path / "falling"))


@pytest.mark.parametrize(
    ("rate", "what"), [(1e38, "the validation loss is nan"), (math.inf, "the weights are not finite any more")]
)
def test_a_network_that_is_lost_is_never_kept(
    manifest_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float, what: str
) -> None:
    """The rate is far too high from the end of the second epoch on; with a lower one the same output goes on."""
    real, output = Schedule.at, str(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(Schedule, "at", lambda self, epoch: real(self, epoch) if epoch < 1 + 2 / 3 else rate)
        with pytest.raises(TrainingError, match=rf"{what}; lower learning_rate \(it is 0\.01\).*goes on"):
            train(manifest_path, settings(train__clip_norm=0.0), output)
    state = newest_state(tmp_path / "out")
    assert state is not None and state.content["epoch"] == 1
    assert is_finite(last_weights(tmp_path / "out"))
    slower = settings(train__clip_norm=0.0, train__learning_rate=0.001)
    history = train(manifest_path, slower, output).history
    assert [round(row["learning_rate"], 6) for row in history] == [0.01, 0.001, 0.001]
    state = newest_state(tmp_path / "out")
    assert state is not None and state.content["changes"] == ["epoch 2: learning_rate = 0.001 instead of 0.01"]


def test_a_state_whose_weights_are_not_finite_is_passed_over(manifest_path: str, tmp_path: Path, capfd: Any) -> None:
    """Earlier versions saved such states."""
    train(manifest_path, settings(train__epochs=2), str(tmp_path))
    state = newest_state(tmp_path)
    assert state is not None
    network = parse_checkpoint(state.parts["network"], state.uri)
    network["model"] = {n: v * math.nan if v.is_floating_point() else v for n, v in network["model"].items()}
    network["fingerprint"] = weights_fingerprint(network["model"])
    store = StateStore(open_storage(str(tmp_path)), 2)
    store.write("00002-000000004", state.content | {"seen": 4}, state.parts | {"network": serialize(network)})
    train(manifest_path, settings(train__epochs=3), str(tmp_path))
    said = capfd.readouterr().out
    assert "00002-000000004.json: its weights are not finite; the state before it is used" in said
    assert "goes on after epoch 2" in said and "with epochs = 3 instead of 2" in said


def test_a_loss_that_is_not_finite_names_the_videos(manifest_path: str, tmp_path: Path) -> None:
    config = settings(train__learning_rate=1e25, train__clip_norm=0.0)
    with pytest.raises(
        TrainingError,
        match=r"train: the loss is (nan|inf) in epoch 1, videos .*; look at these videos, or low",
    ) as error:
        train(manifest_path, config, str(tmp_path))
    ids = str(error.value).split("videos ")[1].split(";")[0].split(", ")
    manifest = Manifest.load(manifest_path)
    assert 1 <= len(ids) <= 4 and all(manifest.video(manifest.index_of(name)).split == "train" for name in ids)


def test_four_videos_are_learnt_by_heart(manifest_path: str, tmp_path: Path) -> None:
    manifest = Manifest.load(manifest_path)
    rows = [*manifest.indices("train")[:4], *manifest.indices("validation")[:2]]
    Manifest(manifest.table.take(rows), manifest.classes, manifest.storage_uri, {}).save(tmp_path / "four.parquet")
    config = settings(
        train__epochs=30,
        train__optimizer="adamw",
        train__learning_rate=0.01,
        train__schedule="one_cycle",
        model__width=16,
        model__dropout=0.0,
    )
    history = train(str(tmp_path / "four.parquet"), config, str(tmp_path / "out")).history
    first, last = history[0]["train_loss"], np.mean([row["train_loss"] for row in history[-5:]])
    assert first > 1.5 and last < 0.4 * first
    assert np.mean([row["train_top1"] for row in history[-5:]]) >= 0.9


def test_one_cycle_rises_and_falls() -> None:
    config = TrainConfig(learning_rate=0.5, schedule="one_cycle")
    rates = [one_cycle(config.learning_rate, share) for share in np.linspace(0, 1, 101)]
    assert rates[20] == max(rates) == 0.5
    assert sorted(rates[:21]) == rates[:21] and sorted(rates[20:], reverse=True) == rates[20:]
    assert rates[10] == pytest.approx(0.25) and rates[60] == pytest.approx(0.25), "half cosines"
    assert 0 < rates[0] == rates[-1] <= 0.02 * 0.5, "never quite zero"


def test_one_cycle_is_what_the_optimiser_gets(manifest_path: str, tmp_path: Path) -> None:
    config = settings(train__schedule="one_cycle", train__epochs=5, train__learning_rate=0.03)
    history = train(manifest_path, config, str(tmp_path)).history
    expected = [one_cycle(config.train.learning_rate, (epoch + 2 / 3) / 5) for epoch in range(5)]
    assert [row["learning_rate"] for row in history] == pytest.approx(expected)


def test_a_plateau_lowers_the_rate_until_training_ends(manifest_path: str, tmp_path: Path) -> None:
    """With so small a rate and fixed BatchNorm statistics the validation loss stands still."""
    config = settings(
        train__learning_rate=1e-5,
        train__min_learning_rate=5e-8,
        train__plateau_patience=1,
        train__weight_decay=0.0,
        train__epochs=50,
        model__bn_momentum=0.0,
    )
    history = train(manifest_path, config, str(tmp_path)).history
    assert [row["learning_rate"] for row in history] == pytest.approx([1e-5] * 3 + [1e-6] * 2 + [1e-7] * 2)
    assert len(train(manifest_path, config, str(tmp_path)).history) == 7, "it ended; it does not go on"


@pytest.fixture(scope="module")
def tuned(manifest_path: str, trained: str, tmp_path_factory: pytest.TempPathFactory) -> dict[float, TrainResult]:
    """Return fine-tuning with gamma 10 and, the control run, with gamma 0."""
    folder = tmp_path_factory.mktemp("tuned")
    edits = write_edits(folder / "edits.parquet", EDITED)
    return {
        gamma: finetune(
            trained,
            manifest_path,
            edits,
            settings(finetune__gamma=gamma),
            str(folder / str(gamma)),
            f"finetune-{gamma}",
        )
        for gamma in (10.0, 0.0)
    }


def test_finetuning_leaves_the_feature_extractor_alone(trained: str, tuned: dict[float, TrainResult]) -> None:
    before = read_checkpoint(trained)["model"]
    for result in tuned.values():
        after = read_checkpoint(result.last_uri)["model"]
        frozen = {name for name in before if name.startswith("feature_extractor.")}
        assert any("running_mean" in name for name in frozen) and any("num_batches" in name for name in frozen)
        same({name: before[name] for name in frozen}, {name: after[name] for name in frozen})
        for branch in ("attention_branch.", "attention_mechanism.", "perception_branch."):
            weights = [name for name in before if name.startswith(branch) and name.endswith("weight")]
            assert weights and any(not torch.equal(before[name], after[name]) for name in weights), branch


def test_finetuning_moves_the_attention_towards_the_edits(tuned: dict[float, TrainResult]) -> None:
    learnt, control = ([row["train_temporal_loss"] for row in tuned[gamma].history] for gamma in (10.0, 0.0))
    assert learnt[-1] < 0.7 * learnt[0] and learnt[-1] < 0.7 * control[-1]
    row = tuned[10.0].history[-1]
    parts = row["train_perception_loss"] + row["train_attention_loss"] + 10 * row["train_temporal_loss"]
    assert row["train_loss"] == pytest.approx(parts, rel=1e-4)
    row = tuned[0.0].history[-1]
    assert row["train_loss"] == pytest.approx(row["train_perception_loss"] + row["train_attention_loss"], rel=1e-4)


def test_finetuning_resumed_equals_uninterrupted(
    manifest_path: str, trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edits = write_edits(tmp_path / "edits.parquet", EDITED)
    config = settings(finetune__epochs=3, finetune__unedited_share=0.5)
    whole = finetune(trained, manifest_path, edits, config, str(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        interrupt_after(patch, "finetuning_loss", 3)
        with pytest.raises(Interrupted):
            finetune(trained, manifest_path, edits, config, str(tmp_path / "resumed"))
    torch.manual_seed(999)
    finetune(trained, manifest_path, edits, config, str(tmp_path / "resumed"))
    assert [row["epoch"] for row in whole.history] == [1, 2, 3]
    same(checkpoints(tmp_path / "whole"), checkpoints(tmp_path / "resumed"))
    other = write_edits(tmp_path / "other.parquet", EDITED, "e" * 16)
    with pytest.raises(CheckpointError, match=r"edits: 'f{16}' there, 'e{16}' here"):
        finetune(trained, manifest_path, other, config, str(tmp_path / "whole"))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_every_epoch_sees_all_edited_and_a_share_of_the_others(
    share: float, manifest_path: str, trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    real = stage.finetuning_loss

    def loss(output: Any, target: Any, edited: torch.Tensor, gamma: float) -> Any:
        seen.append({"size": len(target), "edited": int((~edited.isnan()).any(1).sum())})
        return real(output, target, edited, gamma)

    monkeypatch.setattr(stage, "finetuning_loss", loss)
    edits = write_edits(tmp_path / "edits.parquet", EDITED)
    finetune(
        trained, manifest_path, edits, settings(finetune__epochs=1, finetune__unedited_share=share), str(tmp_path / "o")
    )
    assert sum(batch["edited"] for batch in seen) == 3
    assert sum(batch["size"] for batch in seen) == 3 + round(share * 6)


@pytest.mark.parametrize(
    ("curves", "said"),
    [
        ({"1": [1.0] * 7}, r"edit of video 1: 7 values for a video of 6 frames; .*export the round again"),
        ({"1": [1.0] * 6, "10": [1.0] * 10}, r"edit of video 10: it is in the validation split"),
        ({}, r"no edits to learn from: let people correct the round"),
        ({"404": [1.0] * 6}, r"video '404' is not in the manifest"),
    ],
)
def test_edits_that_do_not_fit_are_refused(
    curves: dict[str, list[float]], said: str, manifest_path: str, trained: str, tmp_path: Path
) -> None:
    with pytest.raises(stage.TrainingError if "404" not in curves else Exception, match=said):
        finetune(trained, manifest_path, write_edits(tmp_path / "e.parquet", curves), settings(), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_baseline_trains_but_has_no_attention(manifest_path: str, tmp_path: Path) -> None:
    config = settings(model__name="baseline", train__epochs=1)
    best = train(manifest_path, config, str(tmp_path / "baseline")).best_uri
    edits = write_edits(tmp_path / "edits.parquet", EDITED)
    with pytest.raises(CheckpointError, match="a baseline has no attention to fine-tune"):
        finetune(best, manifest_path, edits, config, str(tmp_path / "out"))
    with pytest.raises(CheckpointError, match="a baseline has no attention; use as_is"):
        evaluate(best, manifest_path, "validation", "spatial_inverted", tmp_path / "p.parquet", config)
    result = evaluate(best, manifest_path, "validation", "as_is", tmp_path / "p.parquet", config)
    assert result.predictions.attention_top5 is None and set(result.metrics) == {"top1", "top5", "loss"}


def test_evaluate_counts_every_video_once(manifest_path: str, trained: str, tmp_path: Path) -> None:
    manifest, (model, checkpoint) = Manifest.load(manifest_path), load_model(trained)
    for split, count in (("train", 9), ("validation", 6)):
        result = evaluate(trained, manifest_path, split, "as_is", tmp_path / f"{split}.parquet", settings())
        rows = manifest.indices(split)
        dataset = ClipDataset(manifest, rows, checkpoint.data_config, train=False)
        correct, losses = 0, []
        for position, item in enumerate(dataset[i] for i in range(len(dataset))):
            video = manifest.video(int(rows[position]))
            batch = {name: value[None] for name, value in item.items()}
            with torch.inference_mode():
                output = model(batch_input(batch, checkpoint.data_config, torch.device("cpu"))[0])
            probabilities = output.logits[0].softmax(0)
            correct += int(probabilities.argmax()) == video.class_index
            losses.append(-float(probabilities[video.class_index].log()))
            assert result.predictions.video_ids[position] == video.video_id
            assert result.predictions.class_index[position] == video.class_index
            assert result.predictions.scores[position] == pytest.approx(sorted(probabilities.tolist())[::-1], abs=1e-5)
        assert len(result.predictions) == len(set(result.predictions.video_ids)) == count
        assert result.metrics["top1"] == pytest.approx(correct / count) and result.metrics["top5"] == 1
        assert result.metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
        loaded = Predictions.load(tmp_path / f"{split}.parquet")
        assert loaded.metadata["checkpoint_fingerprint"] == checkpoint.fingerprint
        assert loaded.metadata["top1"] == result.metrics["top1"]


def test_inverted_attention_changes_the_scores_of_one_branch(manifest_path: str, trained: str, tmp_path: Path) -> None:
    tables = {
        attention: evaluate(
            trained, manifest_path, "validation", attention, tmp_path / attention, settings()
        ).predictions
        for attention in ("as_is", "spatial_inverted", "temporal_inverted")
    }
    own = tables.pop("as_is")
    for name, table in tables.items():
        assert table.video_ids == own.video_ids and table.attention == name
        assert not np.allclose(table.scores, own.scores, atol=1e-4), name
        assert table.attention_scores == pytest.approx(own.attention_scores), "the attention branch comes before"
    assert not np.allclose(*(table.scores for table in tables.values()), atol=1e-4)


def test_evaluation_does_not_depend_on_the_batch(manifest_path: str, trained: str, tmp_path: Path) -> None:
    one, six = (
        evaluate(
            trained, manifest_path, "validation", "as_is", tmp_path / f"{size}", settings(train__batch_size=size)
        ).predictions
        for size in (1, 6)
    )
    assert one.video_ids == six.video_ids and one.scores == pytest.approx(six.scores, abs=1e-5)


def test_a_dataset_with_other_classes_is_refused(manifest_path: str, trained: str, tmp_path: Path) -> None:
    manifest = Manifest.load(manifest_path)
    other = tmp_path / "other.parquet"
    Manifest(manifest.table, (*CLASSES[:2], "Folding something"), manifest.storage_uri, {}).save(other)
    said = r"other\.parquet: .*index 2: \['Folding something'\] against \['Holding something'\]"
    with pytest.raises(CheckpointError, match=said):
        evaluate(trained, str(other), "validation", "as_is", tmp_path / "p.parquet", settings())
    with pytest.raises(CheckpointError, match=said):
        finetune(trained, str(other), write_edits(tmp_path / "e", EDITED), settings(), str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="attention = 'inverted': choose one of as_is"):
        evaluate(trained, manifest_path, "validation", "inverted", tmp_path / "p.parquet", settings())
    assert not (tmp_path / "p.parquet").exists()


def test_a_checkpoint_does_not_say_how_to_load_on_another_machine(manifest_path: str, tmp_path: Path) -> None:
    config = settings(train__epochs=1, data__cache_dir=str(tmp_path / "there"), data__cache_gb=0.1)
    best = train(manifest_path, config, str(tmp_path / "out")).best_uri
    assert list((tmp_path / "there").glob("*/*"))
    (tmp_path / "there").rename(tmp_path / "moved")
    here = settings(data__cache_dir=str(tmp_path / "here"))
    evaluate(best, manifest_path, "validation", "as_is", tmp_path / "p.parquet", here)
    assert not (tmp_path / "there").exists() and len(list((tmp_path / "here").glob("*/*"))) == 6


def test_training_learns_from_edits_from_the_first_step(manifest_path: str, tmp_path: Path) -> None:
    """The route of retraining: eq. 5 and 6 on the edited videos of all batches; without gamma it is plain training."""
    edits = write_edits(tmp_path / "edits.parquet", EDITED)
    config = settings(train__epochs=2)
    plain = train(manifest_path, config, str(tmp_path / "plain"))
    off = train(manifest_path, settings(train__epochs=2, train__gamma=0.0), str(tmp_path / "off"), edits_path=edits)
    for row, expected in zip(off.history, plain.history, strict=True):
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-6) and row["train_temporal_loss"] > 0
    learnt = train(manifest_path, config, str(tmp_path / "learnt"), edits_path=edits, name="retrain")
    expected = learnt.history[0]
    total = expected["train_perception_loss"] + expected["train_attention_loss"] + 10 * expected["train_temporal_loss"]
    assert expected["train_loss"] == pytest.approx(total, rel=1e-5)
    assert read_checkpoint(learnt.best_uri)["stage"] == "retrain"
    other = write_edits(tmp_path / "other.parquet", EDITED, "e" * 16)
    with pytest.raises(CheckpointError, match=r"edits: 'f{16}' there, 'e{16}' here"):
        train(manifest_path, config, str(tmp_path / "learnt"), edits_path=other, name="retrain")
    with pytest.raises(stage.TrainingError, match="a baseline, which has no attention to correct"):
        train(manifest_path, settings(model__name="baseline"), str(tmp_path / "no"), edits_path=edits)


def test_forced_attention_takes_the_place_of_the_networks_own(manifest_path: str, tmp_path: Path) -> None:
    """With all videos edited and forced, CE says nothing to Mt: without gamma its layers stay as they began."""
    manifest = Manifest.load(manifest_path)
    videos = [manifest.video(int(row)) for row in manifest.indices("train")]
    curves = {video.video_id: [1.0] * video.num_frames for video in videos}
    edits = write_edits(tmp_path / "edits.parquet", curves)
    config = settings(train__epochs=1, train__gamma=0.0, train__teacher_forcing=1.0, train__weight_decay=0.0)
    result = train(manifest_path, config, str(tmp_path / "forced"), edits_path=edits)
    weights = read_checkpoint(result.best_uri)["model"]
    name = "attention_branch.temporal.2.weight"
    torch.manual_seed(config.train.seed)
    start = STABN(dataclasses.replace(config.model, num_classes=3)).state_dict()[name]
    assert torch.equal(weights[name], start)
    free = train(manifest_path, settings(train__epochs=1), str(tmp_path / "free"))
    assert not torch.equal(read_checkpoint(free.best_uri)["model"][name], start)


def test_the_attention_is_learnt_first_and_then_the_recognition(manifest_path: str, tmp_path: Path) -> None:
    """In the first epochs what follows the attention stays as it was; a run of two parts is the whole one."""
    edits = write_edits(tmp_path / "edits.parquet", EDITED)
    changes = {"train__attention_epochs": 2, "train__weight_decay": 0.0, "train__keep": "best"}
    early = train(manifest_path, settings(**changes, train__epochs=4), str(tmp_path / "early"), edits_path=edits)
    for row, alone in zip(early.history, (True, True, False, False), strict=True):
        both = 0 if alone else row["train_perception_loss"] + row["train_attention_loss"]
        assert row["train_loss"] == pytest.approx(both + 10 * row["train_temporal_loss"], rel=1e-5)
        assert row["train_perception_loss"] > 0, "it is measured all the same"
    assert read_checkpoint(early.best_uri)["epoch"] > 2, "no network that cannot recognise yet is chosen"

    parts = settings(**changes, train__epochs=4)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, "finetuning_loss", 6)
        with pytest.raises(Interrupted):
            train(manifest_path, parts, str(tmp_path / "parts"), edits_path=edits)
    torch.manual_seed(parts.train.seed)
    start = STABN(dataclasses.replace(parts.model, num_classes=3)).state_dict()
    weights = last_weights(tmp_path / "parts")
    changed = {name for name, value in weights.items() if value.ndim > 1 and not torch.equal(value, start[name])}
    assert not any(name.startswith(("perception_branch", "attention_mechanism")) for name in changed)
    assert {name.split(".")[0] for name in changed} == {"feature_extractor", "attention_branch"}
    resumed = train(manifest_path, parts, str(tmp_path / "parts"), edits_path=edits)
    assert without_times(resumed.history) == without_times(early.history)


def test_without_anything_to_learn_from_there_is_no_time_for_the_attention(manifest_path: str, tmp_path: Path) -> None:
    """So the network before and the control with gamma 0 are the same, and recognise from the first epoch on."""
    edits = write_edits(tmp_path / "edits.parquet", EDITED)
    usual = train(manifest_path, settings(train__epochs=2), str(tmp_path / "usual")).history
    config = settings(train__epochs=2, train__attention_epochs=1)
    assert without_times(train(manifest_path, config, str(tmp_path / "before")).history) == without_times(usual)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, gamma=0.0))
    control = train(manifest_path, config, str(tmp_path / "control"), edits_path=edits).history
    assert [row["train_loss"] for row in control] == pytest.approx([row["train_loss"] for row in usual])
    config = settings(train__epochs=3, train__attention_epochs=12)
    rows = train(manifest_path, config, str(tmp_path / "short"), edits_path=edits).history
    assert [row["train_loss"] > row["train_attention_loss"] for row in rows] == [False, True, True], "at most half"


def test_the_3d_resnet_is_trained_beside_st_abn_where_that_is_wanted(
    manifest_path: str, tmp_path: Path, mlflow_uri: str
) -> None:
    """The step leaves predictions of a network without attention, under a run of its own; without a yes, nothing."""
    given = {
        "manifest": SimpleNamespace(path=manifest_path),
        "split": "auto",
        "storage_uri": str(tmp_path / "storage"),
        "preset": "mini",
        "overrides": "train.epochs=1 train.device=cpu data.num_frames=4 data.crop_size=32 model.width=4",
        "num_nodes": 1,
        "procs_per_node": 1,
        "accelerator": "",
    }
    assert run_step("train-baseline", train_beside, {**given, "train_baseline": "no"}) == ""
    assert not (tmp_path / "storage").exists()
    uri = run_step("train-baseline", train_beside, {**given, "train_baseline": "yes"})
    table = Predictions.load(uri)
    assert table.metadata["model"] == "baseline" and table.attention_top5 is None and table.temporal is None
    assert table.split == "validation" and len(table) == 6
    assert (table.metadata["frames"], table.metadata["name"]) == ("4", "baseline")
    client = tracking_client()
    runs = client.search_runs([item.experiment_id for item in client.search_experiments()])
    assert {run.info.run_name for run in runs} == {"train-baseline", "evaluate/baseline/validation/as_is"}
    assert run_step("train-baseline", train_beside, {**given, "train_baseline": "yes"}) == uri, "nothing is repeated"


def test_retraining_is_another_route_of_the_same_stage(manifest_path: str, trained: str, tmp_path: Path) -> None:
    """A new network from the same weights; with gamma 0 it is the one before, which is not trained again."""
    edits = write_edits(tmp_path / "edits.parquet", EDITED)
    found = {}
    before = train_somewhere(manifest_path, settings(train__epochs=1), str(tmp_path / "storage")).best_uri
    for name, gamma in (("finetune", 10.0), ("finetune-control", 0.0)):
        config = settings(train__epochs=1, finetune__gamma=gamma)
        places = (trained, manifest_path, edits, config, str(tmp_path / "storage"), name)
        result = tune_somewhere(*places, Placement(), route="retrain")
        content = read_checkpoint(result.best_uri)
        assert content["stage"] == ("retrain" if gamma else "train") and content["stage"] in result.best_uri
        found[name] = result.best_uri
    assert found["finetune-control"] == before != found["finetune"]


def test_the_last_epoch_is_kept_where_nothing_may_be_chosen(
    manifest_path: str, trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "score", lambda row: -row["epoch"])  # the first epoch is the best
    for keep, epoch in (("best", 1), ("last", 3)):
        result = train(manifest_path, settings(train__keep=keep), str(tmp_path / keep))
        assert read_checkpoint(result.best_uri)["epoch"] == epoch
        assert result.metrics["validation_top1"] == result.history[epoch - 1]["validation_top1"]
    edits = write_edits(tmp_path / "edits.parquet", EDITED)
    tuned = finetune(trained, manifest_path, edits, settings(finetune__epochs=2), str(tmp_path / "tuned"))
    assert read_checkpoint(tuned.best_uri)["epoch"] == 2


def test_settings_that_came_later_do_not_part_a_run_from_its_states(manifest_path: str, tmp_path: Path) -> None:
    config = settings()
    identity = run_identity(config.train, config.data, config.model, manifest="m")
    assert not {"keep", "gamma", "teacher_forcing", "attention_epochs"} & set(identity)
    changed = dataclasses.replace(config.train, keep="last", gamma=5.0)
    assert {"keep": "last", "gamma": 5.0}.items() <= run_identity(changed, config.data, config.model).items()
    assert "gamma" in run_identity(config.finetune, config.data, config.model), "it was there from the beginning"
