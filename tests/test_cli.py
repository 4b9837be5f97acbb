"""The command line: its help tells a newcomer what is read and written, and a user's error is one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stabn.cli import COMMANDS, build_parser, main
from stabn.config import SECTIONS

PROGRAM = Path(sys.executable).parent / "stabn"


def help_of(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def failure_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line with which a command refuses."""
    with pytest.raises(SystemExit) as stopped:
        main(words)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and not out
    assert err.count("\n") == 1 and "Traceback" not in err, err
    return err


def test_help_lists_every_command() -> None:
    done = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("    ") and line.strip()}
    assert set(COMMANDS) <= shown
    assert "COMMAND --help" in done.stdout


def test_help_is_quick_because_it_imports_nothing_heavy() -> None:
    code = (
        "import json, sys; from stabn.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print('MODULES' + json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(json.loads(done.stdout.split("MODULES")[1]))
    assert not modules & {"torch", "mlflow", "kfp", "pandas", "matplotlib", "av", "boto3", "kubernetes"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(name, capsys)
    doc = " ".join((COMMANDS[name].run.__doc__ or "").split())
    assert doc in text, "the whole docstring is shown"
    for section in COMMANDS[name].sections:
        assert f"--{section}" in text and "--preset" in text


@pytest.mark.parametrize(
    ("name", "read", "written"),
    [
        ("demo", "generated mini dataset", "--dir"),
        ("mini-dataset", "the same seed gives the same videos", "folder to write videos, labels"),
        ("extract-frames", "--videos", "--manifest PATH manifest to write"),
        ("train", "--manifest", "writes best.pt"),
        ("evaluate", "--checkpoint", "write the prediction table"),
        ("select-classes", "Reads two prediction tables", "writes the selection"),
        ("export-attention", "--selection", "Write an editing round"),
        ("edits", "--round", "write corrections from known action segments"),
        ("import-edits", "--round", "edits.parquet, manifest.parquet, checkpoint.pt"),
        ("editor", "--round", "writes the corrections, one document per video and revision"),
        ("editor-accounts", "--accounts", "argon2 hashes"),
        ("finetune", "--edits", "folder or s3:// prefix for best.pt and the states"),
        ("report", "--before-inverted", "folder for report.html and the figures"),
        ("promote", "--after", "--model-name"),
        ("explain", "a video file", "figure to write"),
        ("import-checkpoint", "a checkpoint that the authors released", "file to write"),
    ],
)
def test_help_tells_what_is_read_and_written(
    name: str, read: str, written: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of(name, capsys)
    assert read in text and written in text


def test_settings_become_flags_with_their_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("train", capsys)
    assert "--train.momentum X" in text and "--data.flip true|false" in text and "{st_abn,baseline}" in text
    assert "share of the short side" in text and "videos per step [0.01]" in text
    assert "--finetune.gamma" not in text
    text = help_of("finetune", capsys)
    assert "weight of the temporal attention loss (eq. 6)" in text and "--data.workers" in text
    assert "--data.num_frames" not in text, "fine-tuning takes the clips' settings from the checkpoint"


def test_flags_name_real_settings() -> None:
    for name, command in COMMANDS.items():
        for entry in command.sections:
            section, _, field = entry.partition(".")
            assert section in SECTIONS and (not field or hasattr(SECTIONS[section](), field)), (name, entry)


def test_flags_reach_the_stage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import stabn.training.stage as stage

    given = {}

    def train(*places: object) -> stage.TrainResult:
        given.update(zip(("manifest", "config", "output", "profile", "edits", "name", "truth"), places, strict=True))
        return stage.TrainResult("out/best.pt", "out/states/parts/a.pt", [], {}, "f" * 16)

    monkeypatch.setattr(stage, "train", train)
    words = [
        "train",
        "--manifest",
        "m",
        "--output",
        "out",
        "--preset",
        "mini",
        "--train.epochs",
        "3",
        "--data.num_frames",
        "16",
    ]
    main(words)
    config = given["config"]
    assert (given["manifest"], given["output"], config.preset) == ("m", "out", "mini")
    assert (config.train.epochs, config.data.num_frames, config.model.num_frames) == (3, 16, 16)
    assert config.train.optimizer == "adamw", "the rest is the preset's"
    assert capsys.readouterr().out == "best checkpoint: out/best.pt\n"


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "--output", "p", "--name", "before"],
        ["evaluate", "--output", "p"],
        ["finetune", "--edits", "e", "--output", "o", "--name", "finetune-control"],
    ],
)
def test_the_name_of_a_run_is_not_the_name_of_the_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = failure_of([*words, "--checkpoint", "no/best.pt", "--manifest", "no/manifest"], capsys)
    assert line.startswith(f"stabn {words[0]}: ") and "no/" in line


def test_a_missing_file_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    command = [PROGRAM, "train", "--preset", "mini", "--manifest", "nowhere.parquet", "--output", "out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("stabn train: ") and "nowhere.parquet" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "--checkpoint", "{}/no.pt", "--manifest", "{}/no.parquet", "--output", "{}/p"],
        ["select-classes", "--train-predictions", "{}/no", "--validation-predictions", "{}/no", "--output", "{}/s"],
        [
            "export-attention",
            "--checkpoint",
            "{}/no",
            "--manifest",
            "{}/no",
            "--selection",
            "{}/no",
            "--storage",
            "{}/s",
        ],
        ["import-edits", "--round", "{}/no", "--output", "{}/imported"],
        ["editor", "--round", "{}/no"],
        ["editor-accounts", "list", "--accounts", "{}/no"],
        ["edits", "--round", "{}/no", "--source", "people", "--timeout-hours", "0"],
        ["finetune", "--checkpoint", "{}/no", "--manifest", "{}/no", "--edits", "{}/no", "--output", "{}/out"],
        ["promote", "--before", "{}/no", "--after", "{}/no", "--checkpoint", "{}/no"],
        ["explain", "{}/no.webm", "--checkpoint", "{}/no.pt"],
        ["import-checkpoint", "{}/no.pth", "--labels", "{}/no", "--output", "{}/c.pt"],
        ["extract-frames", "--videos", "{}/no", "--labels", "{}/no", "--storage", "{}/s"],
        ["local", "--dir", "{}/no", "--", "true"],
    ],
    ids=lambda words: words[0],
)
def test_what_is_missing_is_named(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    line = failure_of([word.format(tmp_path) for word in words], capsys)
    assert line.startswith(f"stabn {words[0]}: ") and f"{tmp_path}/no" in line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--preset", "huge"], "preset 'huge': choose one of mini, knowledge, ssv2_r50_32"),
        (["--train.epochs", "many"], "train.epochs = 'many': expected int"),
        (["--train.epochs", "0"], "train.epochs = 0: must be at least 1"),
        (["--train.optimizer", "adam"], "train.optimizer = 'adam': choose one of sgd, adamw"),
        (["--model.num_frames", "8"], "set data.num_frames; the model follows"),
    ],
)
def test_a_bad_setting_is_named(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in failure_of(["train", "--manifest", "m", "--output", "o", *flags], capsys)


@pytest.mark.parametrize(
    "words", [[], ["trian"], ["train"], ["train", "--manifest", "m", "--output", "o", "--epochs", "3"]]
)
def test_usage_errors_show_the_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        build_parser().parse_args(words)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("usage: stabn")


def test_local_needs_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert "name a command to run" in failure_of(["local"], capsys)


def test_interrupting_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import stabn.training.stage as stage

    def train(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "train", train)
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--manifest", "m", "--output", "o"])
    assert stopped.value.code == 130 and "run it again to go on" in capsys.readouterr().err
