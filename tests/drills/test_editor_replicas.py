"""Two editors of one round, many people, and everything that goes wrong: nothing that somebody was told is untrue.

STABN_DRILL_REQUESTS says how many requests are sent at least (2,000), STABN_DRILL_SEED what goes wrong.
"""

import os
import time
from pathlib import Path

from editor_crowd import Crowd
from faulty_server import faulty_server
from round_factory import make_round

from stabn.local_services import LocalStore

REQUESTS = int(os.environ.get("STABN_DRILL_REQUESTS", "2000"))
SEED = int(os.environ.get("STABN_DRILL_SEED", "0"))
PEOPLE, VIDEOS = 74, 40


def test_what_people_were_told_is_true(s3: LocalStore, s3_uri: str, tmp_path: Path) -> None:
    item = make_round(tmp_path, s3_uri, {str(number): 8 + number % 5 for number in range(VIDEOS)})
    started = time.monotonic()
    with faulty_server(s3.endpoint) as faults:
        crowd = Crowd(item, tmp_path, faults, REQUESTS, PEOPLE, SEED)
        history = crowd.run()
    wrong = history.wrong()
    saves = sum(one.kind == "save" and one.status == 200 for one in history.done)
    silent = sum(one.status in (0, 503) for one in history.done)
    print(
        f"{crowd.asked} requests in {time.monotonic() - started:.0f} s: {saves} saves acknowledged, {silent} requests "
        f"without an answer or refused for now, {faults.happened} faults of the storage, {dict(crowd.happened)}; "
        f"{len(wrong)} wrong"
    )
    log = "".join(replica.log.read_text() for replica in crowd.replicas)
    assert not wrong, "\n".join([*wrong[:20], log[-5000:]])
    assert history.finished and saves > REQUESTS / 20
    assert "Traceback" not in log, log[:5000]
