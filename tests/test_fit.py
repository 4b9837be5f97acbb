"""Settings of the loop: skipping, averaging, schedules, measurements, compiling, cached features."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import EDITED, last_weights, newest_state, same, settings, without_times, write_dataset, write_edits

import stabn.training.recipes as stage
from stabn import presets
from stabn.config import ConfigError, FinetuneConfig, RunConfig, TrainConfig
from stabn.errors import StabnError
from stabn.models import STABN, build_model
from stabn.training import step as step_module
from stabn.training.checkpoint import read_checkpoint
from stabn.training.flops import forward_flops, training_flops
from stabn.training.launch import launch
from stabn.training.losses import Losses
from stabn.training.recipes import TrainingError
from stabn.training.schedule import Schedule, best_epoch, make_optimizer, plan_batches, rate_multiples, set_rate
from stabn.training.stage import finetune, train


def broken_step(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Let the loss of some steps, counted from 0, be nan."""
    real, calls = stage.training_loss, 0

    def loss(output: Any, target: torch.Tensor) -> Losses:
        nonlocal calls
        losses = real(output, target)
        factor = float("nan") if calls in numbers else 1.0
        calls += 1
        return losses._replace(total=losses.total * factor)

    monkeypatch.setattr(stage, "training_loss", loss)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_without_a_finite_gradient_changes_nothing(
    manifest_path: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    optimizer: str,
) -> None:
    """The only step of the second epoch is left out: network, momentum and BatchNorm stay those of the first."""
    config = settings(train__epochs=2, train__batch_size=9, train__max_skipped_steps=1, train__optimizer=optimizer)
    train(
        manifest_path,
        dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=1)),
        str(tmp_path / "one"),
    )
    with monkeypatch.context() as patch:
        broken_step(patch, 1)
        train(manifest_path, config, str(tmp_path / "two"))
    assert re.search(
        r"the loss is nan in epoch 2, videos [\d, ]+: step skipped, 1 of at most 1", capsys.readouterr().out
    )
    same(last_weights(tmp_path / "one"), last_weights(tmp_path / "two"))
    with monkeypatch.context() as patch:
        broken_step(patch, 0, 1)
        with pytest.raises(TrainingError, match=r"the loss is nan in epoch 2.*1 such steps were skipped before"):
            train(manifest_path, config, str(tmp_path / "three"))


def test_averaged_weights_are_what_is_validated_and_kept(manifest_path: str, tmp_path: Path) -> None:
    """With a decay of 0.5 the average after two steps is an eighth of the start, three eighths, a half."""
    decay = 0.5
    torch.manual_seed(0)
    config = settings(train__epochs=2, train__batch_size=9, train__ema_decay=decay)
    result = train(manifest_path, config, str(tmp_path / "out"))
    one = settings(train__epochs=1, train__batch_size=9)
    train(manifest_path, one, str(tmp_path / "one"))
    after = [last_weights(tmp_path / "one"), last_weights(tmp_path / "out")]
    state = newest_state(tmp_path / "out")
    assert state is not None and "average" in state.parts
    average = read_checkpoint(result.last_uri)["model"]
    name = "perception_branch.fc.weight"
    torch.manual_seed(0)
    start = build_model(dataclasses.replace(config.model, num_classes=3)).state_dict()[name]
    expected = decay**2 * start + decay * (1 - decay) * after[0][name] + (1 - decay) * after[1][name]
    torch.testing.assert_close(average[name], expected)
    assert not torch.equal(average[name], after[1][name])


def test_the_plan_follows_from_the_global_batch() -> None:
    config = TrainConfig(batch_size=64, micro_batch_size=8, learning_rate=0.01, reference_batch_size=64)
    assert [plan_batches(config, size).accumulation for size in (1, 2, 8, 16)] == [8, 4, 1, 1]
    assert plan_batches(config, 8).learning_rate == 0.01
    larger = dataclasses.replace(config, batch_size=128)
    assert plan_batches(larger, 16).learning_rate == pytest.approx(0.02)
    assert plan_batches(dataclasses.replace(larger, reference_batch_size=0), 16).learning_rate == 0.01
    assert "128 videos per step = 16 processes x 8, 8 at once" in str(plan_batches(larger, 16))
    with pytest.raises(ConfigError, match="batch_size = 64 for 65 processes"):
        plan_batches(config, 65)


def test_warm_up_rises_and_the_plateau_follows() -> None:
    schedule = Schedule(TrainConfig(warmup_epochs=2.0, plateau_patience=0), 0.1)
    assert [schedule.at(epoch) for epoch in (0.5, 1.0, 2.0, 5.0)] == pytest.approx([0.025, 0.05, 0.1, 0.1])
    assert 0 < schedule.at(0.0) < 0.01
    schedule.validated(1.0)
    schedule.validated(1.0)
    assert schedule.at(5.0) == pytest.approx(0.01)


def test_cosine_falls_to_zero_after_warm_up() -> None:
    schedule = Schedule(TrainConfig(schedule="cosine", warmup_epochs=2.0, epochs=10, plateau_patience=0), 0.1)
    assert [schedule.at(epoch) for epoch in (1.0, 2.0, 6.0, 10.0)] == pytest.approx([0.05, 0.1, 0.05, 0.0])
    for _ in range(3):
        schedule.validated(1.0)
    assert schedule.at(6.0) == pytest.approx(0.05), "a plateau changes nothing"


def test_the_attention_alone_has_a_course_of_the_rate_of_its_own_and_its_validations_do_not_count() -> None:
    for name in ("one_cycle", "cosine", "plateau"):
        config = TrainConfig(schedule=name, epochs=12, warmup_epochs=1.0, early_stop=1)
        first, second = (Schedule(dataclasses.replace(config, epochs=epochs), 0.1) for epochs in (4, 8))
        both = Schedule(config, 0.1, attention_epochs=4)
        for epoch in (0.0, 0.5, 3.0, 3.9):
            assert both.at(epoch) == pytest.approx(first.at(epoch))
        for epoch in (0.0, 0.5, 3.0, 7.9):
            assert both.at(4 + epoch) == pytest.approx(second.at(epoch))
        rows = [{"validation_top1": 0.3 - 0.1 * number, "validation_loss": 1.0} for number in range(3)]
        assert not both.ended(rows) and Schedule(config, 0.1).ended(rows)
        assert best_epoch(rows, "best", 1) == 2 and best_epoch(rows, "best", 3) == 0 and best_epoch(rows, "best") == 1


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_decay_leaves_norms_and_biases_alone(optimizer: str) -> None:
    parameters = [torch.nn.Parameter(torch.ones(3, 3)), torch.nn.Parameter(torch.ones(3))]
    for decay_norms, expected in ((True, [True, True]), (False, [True, False])):
        config = TrainConfig(optimizer=optimizer, weight_decay=0.5, decay_norms=decay_norms, learning_rate=0.1)
        copies = [torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters]
        made = make_optimizer(config, copies)
        for parameter in copies:
            parameter.grad = torch.zeros_like(parameter)
        made.step()
        assert [bool((parameter < 1).all()) for parameter in copies] == expected


@pytest.mark.parametrize("decay_norms", [True, False])
def test_each_part_learns_at_its_multiple_of_the_rate(decay_norms: bool) -> None:
    torch.manual_seed(0)
    model: Any = build_model(settings().model)
    config = TrainConfig(extractor_rate=0.1, attention_rate=3.0, learning_rate=0.5, decay_norms=decay_norms)
    multiples = rate_multiples(config, model)
    made = make_optimizer(config, list(model.parameters()), 0.5, multiples)
    for rate in (None, 0.2):
        if rate is not None:
            set_rate(made, rate)
        found = {parameter: group for group in made.param_groups for parameter in group["params"]}
        assert len(found) == len(list(model.parameters()))
        for part, multiple in (("feature_extractor", 0.1), ("attention_branch", 3.0), ("perception_branch", 1.0)):
            for parameter in getattr(model, part).parameters():
                assert found[parameter]["lr"] == pytest.approx((rate or 0.5) * multiple)
                decays = decay_norms or parameter.ndim > 1
                assert found[parameter]["weight_decay"] == (config.weight_decay if decays else 0.0)
    assert made.param_groups[0]["lr"] == 0.2, "what the log shows"
    assert not rate_multiples(TrainConfig(), model)
    assert len(make_optimizer(TrainConfig(), list(model.parameters())).param_groups) == 1


def test_an_extractor_with_rate_zero_stays_and_a_run_goes_on_with_its_rates(manifest_path: str, tmp_path: Path) -> None:
    """A whole run, and one of two parts, with all settings that are off by default."""
    changes = {"train__extractor_rate": 0.0, "train__attention_rate": 2.0, "train__class_balance": 0.5}
    changes |= {"train__label_smoothing": 0.1, "train__decay_norms": False, "train__batch_size": 9}
    config = settings(**changes, train__epochs=2)
    whole = train(manifest_path, config, str(tmp_path / "whole")).history
    train(manifest_path, settings(**changes, train__epochs=1), str(tmp_path / "parts"))
    assert without_times(train(manifest_path, config, str(tmp_path / "parts")).history) == without_times(whole)
    same(last_weights(tmp_path / "parts"), last_weights(tmp_path / "whole"))
    torch.manual_seed(0)
    start = build_model(dataclasses.replace(config.model, num_classes=3)).state_dict()
    end = last_weights(tmp_path / "whole")
    unchanged = {n for n, v in start.items() if v.ndim > 1 and torch.equal(v, end[n].reshape(v.shape))}
    assert unchanged == {n for n, v in start.items() if v.ndim > 1 and n.startswith("feature_extractor.")}


def test_early_stop_and_rarer_validation() -> None:
    schedule = Schedule(TrainConfig(early_stop=2, epochs=100), 0.1)
    rows = [{"validation_top1": top1, "validation_loss": 1.0} for top1 in (0.1, 0.3, 0.2, 0.2)]
    assert [schedule.ended(rows[:n]) for n in range(5)] == [False, False, False, False, True]


def test_validation_every_n_epochs_and_after_the_last(manifest_path: str, tmp_path: Path) -> None:
    result = train(manifest_path, settings(train__epochs=5, train__validate_every=2), str(tmp_path))
    assert [row["epoch"] for row in result.history if "validation_top1" in row] == [2, 4, 5]
    assert "validation_top1" in result.metrics


def test_the_log_shows_what_the_machine_does(
    manifest_path: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trace = tmp_path / "trace.json"
    config = settings(train__epochs=4, train__log_steps=2)
    train(manifest_path, config, str(tmp_path / "out"), str(trace))
    out = capsys.readouterr().out
    lines = re.findall(r"^train epoch \d/4 step \d/3: .*$", out, re.MULTILINE)
    assert len(lines) == 4, "step 2 of 3, of four epochs"
    for words in ("videos/s", "step", "waiting for data", "perception", "rate", "gradient", "GB", "matrix-product"):
        assert words in lines[-1]
    events = json.loads(trace.read_text())["traceEvents"]
    assert any("conv3d" in str(event.get("name")) for event in events), "a trace that Perfetto opens"


def test_compiling_happens_once_per_shape(
    manifest_path: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nine videos in steps of four: the last step, of one, must not compile anything."""
    import torch._dynamo

    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(step_module, "COMPILER", backend)
    plain = train(manifest_path, settings(train__epochs=1), str(tmp_path / "plain"))
    train(manifest_path, settings(train__epochs=1, train__compile=True), str(tmp_path / "one"))
    first = len(graphs)
    result = train(manifest_path, settings(train__epochs=1, train__compile=True, train__seed=0), str(tmp_path / "two"))
    assert first > 0 and without_times(result.history) == without_times(plain.history)
    per_run = len(graphs) - first
    torch._dynamo.reset()
    graphs.clear()
    train(manifest_path, settings(train__epochs=3, train__compile=True), str(tmp_path / "three"))
    assert len(graphs) <= max(first, per_run), "later epochs and their short steps compile nothing"


def test_compiling_and_activation_checkpointing_go_together(
    manifest_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._dynamo

    torch._dynamo.reset()
    monkeypatch.setattr(step_module, "COMPILER", "aot_eager")
    plain = train(manifest_path, settings(train__epochs=2), str(tmp_path / "plain"))
    both = settings(train__epochs=2, train__compile=True, train__activation_checkpointing=True)
    found = train(manifest_path, both, str(tmp_path / "both"))
    for expected, row in zip(plain.history, found.history, strict=True):
        for name in ("train_loss", "validation_loss"):  # the second of running statistics that were updated once a step
            assert row[name] == pytest.approx(expected[name], rel=1e-4), name


def test_an_error_in_a_loading_process_says_what_it_says_in_this_one(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path)
    damaged = tmp_path / "frames" / "3.mjpeg"
    damaged.write_bytes(bytes(damaged.stat().st_size))
    said = []
    for processes, workers in ((1, 0), (1, 1), (2, 1)):
        config = settings(train__epochs=1, train__processes=processes, train__restarts=0, data__workers=workers)
        with pytest.raises(StabnError) as failed:
            train(manifest, config, str(tmp_path / f"{processes}-{workers}"))
        said.append(str(failed.value))
    assert "3" in said[0] and "\n" not in said[0]
    assert said == said[:1] * 3


def tuning(**changes: Any) -> RunConfig:
    return settings(finetune__augment=False, finetune__epochs=2, **changes)


def test_cached_features_change_nothing_but_the_time(
    manifest_path: str,
    trained: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cache with room for one clip passes all features through bf16 too, so both learn the same."""
    calls = 0
    real = STABN.extract_features

    def extract(self: STABN, video: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += len(video) * self.training * (not video.is_meta)  # shapes alone are the estimate's
        return real(self, video)

    monkeypatch.setattr(STABN, "extract_features", extract)
    edits = write_edits(tmp_path / "edits.parquet", EDITED)
    counts = []
    for megabytes in (64, 1):
        calls = 0
        config = tuning(finetune__feature_cache_mb=megabytes, model__width=8)
        monkeypatch.setattr(
            stage.FeatureCache, "__init__", lambda self, mb: vars(self).update(_room=(mb - 1) << 20, _kept={})
        )
        finetune(trained, manifest_path, edits, config, str(tmp_path / str(megabytes)))
        counts.append(calls)
    assert counts == [9, 18], "once per video, or once per video and epoch"
    kept = last_weights(tmp_path / "64")
    for name, value in last_weights(tmp_path / "1").items():  # the extractor rounds otherwise in other mini-batches
        torch.testing.assert_close(value, kept[name], rtol=1e-2, atol=1e-3, msg=name)
    with pytest.raises(ConfigError, match="set augment = false"):
        FinetuneConfig(feature_cache_mb=1)


def test_synchronised_batchnorm_sees_all_videos(manifest_path: str, tmp_path: Path) -> None:
    config = settings(
        train__epochs=2, train__batch_size=9, train__learning_rate=1e-4, model__dropout=0.0, train__sync_batch_norm=True
    )
    whole = train(manifest_path, config, str(tmp_path / "one")).history
    several = dataclasses.replace(config.train, processes=2, restarts=0)
    launch(train, several, manifest_uri=manifest_path, config=config, output_uri=str(tmp_path / "two"))
    split = read_checkpoint(str(tmp_path / "two" / "best.pt"))["history"]
    for row, expected in zip(split, whole, strict=True):
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-3)
        assert row["validation_loss"] == pytest.approx(expected["validation_loss"], rel=1e-3)
    weights = last_weights(tmp_path / "one")
    for name, value in last_weights(tmp_path / "two").items():
        torch.testing.assert_close(value, weights[name], rtol=1e-2, atol=1e-4, msg=name)


def test_the_arithmetic_is_counted() -> None:
    """The design's figures for 32 x 224 x 224: 618 GFLOP for ST-ABN R50, 256 of them in the extractor."""
    config = presets.load("ssv2_r50_32")
    counts = forward_flops(config.model, config.data)
    assert counts["total"] / 1e9 == pytest.approx(618, rel=0.02)
    assert counts["feature_extractor"] / 1e9 == pytest.approx(256, rel=0.02)
    assert training_flops(config.model, config.data) == 3 * counts["total"]
    frozen = training_flops(config.model, config.data, frozen=True)
    assert frozen == 3 * counts["total"] - 2 * counts["feature_extractor"]
