"""Networks between steps: what KFP keeps is where they are, and that is looked at before it is used."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components.component import run_step
from components.edits import run_import
from components.evaluate import run as run_evaluate
from components.networks import NetworkLost, leave_network, network_uri
from stabn.attention.edit_document import Edit
from stabn.attention.edits import save_edit
from stabn.attention.rounds import Round, model_attention
from stabn.stages import STAGES
from stabn.storage import open_storage


def artifact(path: Path) -> Any:
    """Return an artifact as KFP gives it to a step."""
    return SimpleNamespace(
        path=str(path), metadata={}, log_metric=lambda *_: None, log_confusion_matrix=lambda *_: None
    )


@pytest.fixture
def imported(editor_round: Round, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what the step import-edits leaves of a corrected round."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    video = editor_round.videos[0]
    curve = (1.0,) * video.num_frames
    own = tuple(model_attention(editor_round, video.video_id))
    edit = Edit(video_id=video.video_id, round_id=editor_round.round_id, edited_attention=curve, model_attention=own,
                num_frames=video.num_frames, editor="ann", revision=1, status="edited",
                edited_at="2026-01-02T03:04:05+00:00")  # fmt: skip
    save_edit(editor_round, edit)
    left = {item.name: artifact(tmp_path / item.name) for item in STAGES["import-edits"].writes}
    run_step("import-edits", run_import, {"round_uri": editor_round.uri, "edits_fingerprint": "", **left})
    return left


def test_an_imported_network_stays_in_the_round(imported: dict[str, Any], editor_round: Round) -> None:
    """And its address, with its content's, is in what KFP's page shows of the artifact and what its cache goes by."""
    network = imported["checkpoint"]
    said = {"uri": editor_round.network_uri, "fingerprint": editor_round.checkpoint_fingerprint}
    assert network.metadata == said == json.loads(Path(network.path).read_text())
    assert Path(network.path).stat().st_size < 1000 < len(open_storage(editor_round.uri).read("checkpoint.pt"))
    assert network_uri(network, "export") == editor_round.network_uri


def test_later_steps_read_it_where_it_is(imported: dict[str, Any], tmp_path: Path, s3_uri: str) -> None:
    given = {"checkpoint": imported["checkpoint"], "manifest": imported["manifest"], "preset": "mini"}
    given |= {"overrides": "train.device=cpu", "storage_uri": s3_uri}
    written = {item.name: artifact(tmp_path / f"out-{item.name}") for item in STAGES["evaluate"].writes}
    values = {item.name: item.default for item in STAGES["evaluate"].takes}
    run_step("evaluate", run_evaluate, {**values, **given, **written, "split": "train"})
    assert (tmp_path / "out-predictions").stat().st_size


def test_a_network_that_is_gone_is_named_with_the_remedy(
    tmp_path: Path, s3_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """KFP's cache does not know: it goes by the artifact, which is still there."""
    gone = artifact(tmp_path / "network")
    leave_network(gone, f"{s3_uri}/none.pt", "f" * 16)
    said = r"none\.pt: the network is not there any more; have it made again, on a KFP server with `--no-cache train`"
    with pytest.raises(NetworkLost, match=said):
        network_uri(gone, "train")
    values = {item.name: item.default for item in STAGES["evaluate"].takes} | {"storage_uri": s3_uri, "split": "train"}
    written = {item.name: artifact(tmp_path / item.name) for item in STAGES["evaluate"].writes}
    with pytest.raises(SystemExit) as ended:
        run_step("evaluate", run_evaluate, {**values, **written, "checkpoint": gone, "manifest": gone, "name": "after"})
    assert ended.value.code == 2 and "--no-cache finetune" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"\x80\x02" * 9000, b"[]", b'{"url": "x"}', b""])
def test_another_file_in_its_place_is_refused(content: bytes, tmp_path: Path) -> None:
    """As a checkpoint of an image that still copied networks into KFP's store."""
    (tmp_path / "network").write_bytes(content)
    with pytest.raises(NetworkLost, match="it does not say where a network is; have it made again"):
        network_uri(artifact(tmp_path / "network"), "train")
