"""`stabn demo --by-hand`: waiting for a newcomer's three videos, and what is learnt from them."""

import json
import threading
import time
from pathlib import Path

import pytest
from round_factory import LENGTHS
from test_editor_states_browser import correct

from pipelines import by_hand
from pipelines.demo import FINETUNE_TASKS, SETTINGS
from stabn.attention.automatic import collect_edits
from stabn.attention.rounds import Round
from stabn.forms import parse_form


def test_it_goes_on_after_a_persons_three_videos(
    editor_round: Round, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_hand, "POLL_SECONDS", 0.1)
    segments = tmp_path / "segments.json"
    segments.write_text(json.dumps({video_id: [2, 6] for video_id in LENGTHS}))
    collect_edits(editor_round.uri, "segments", str(segments), 1.0, 1.0)
    assert by_hand.by_hand_videos(editor_round) == 0, "those that were made automatically do not count"
    waiting = threading.Thread(target=by_hand.correct_by_hand, args=(editor_round.uri,))
    waiting.start()
    said = ""
    for number, (video_id, status) in enumerate((("10", "edited"), ("11", "edited"), ("12", "skipped"))):
        while f"{number} of 3 videos are corrected" not in said:
            assert waiting.is_alive(), said
            time.sleep(0.05)
            said += capsys.readouterr().out
        correct(editor_round, video_id, "me", status=status, skip_reason="unsure" if status == "skipped" else None)
    waiting.join(30)
    said += capsys.readouterr().out
    assert not waiting.is_alive() and "open http://127.0.0.1:" in said and said.endswith("learning from them\n\n")


def test_the_second_run_is_one_that_the_pipeline_takes() -> None:
    given = {name: SETTINGS[name] for name in ("preset", "route", "model_name")}
    places = {"data_round_uri": "s3://data/rounds/0", "data_storage_uri": "s3://data", "truth_uri": "segments.json"}
    assert parse_form("finetune", {**places, **given, "overrides": ""})["route"] == "retrain"
    assert len(FINETUNE_TASKS) == 13
