"""Progress reads well on a terminal and in a log."""

import io
import os
import pty
import select

import pytest

from stabn import progress as progress_module
from stabn.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """Stand in for the monotonic clock: tests move it on."""
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_few_seconds(clock):
    stream = io.StringIO()
    with Progress(4800, "train  epoch 3/20", stream=stream, interval=5) as progress:
        for _ in range(300):
            clock[0] += 0.125
            progress.update(16, loss=1.2345)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "train  epoch 3/20  640/4,800 videos  128/s  0:32 left  loss 1.23"
    assert lines[-1] == "train  epoch 3/20  4,800/4,800 videos  128/s  0:38 taken  loss 1.23"
    assert len(lines) == 8 and "\r" not in stream.getvalue()


def test_items_pass_through_and_are_counted(clock):
    stream = io.StringIO()
    progress = Progress(3, "extract", unit="frames", stream=stream)
    assert list(progress.track("abc")) == ["a", "b", "c"]
    progress.close()
    assert stream.getvalue() == "extract  3/3 frames  0/s  0:00 taken\n"


def test_an_error_leaves_the_count_so_far(clock):
    stream = io.StringIO()
    with pytest.raises(ValueError), Progress(5000, "extract", stream=stream) as progress:
        clock[0] += 4000
        progress.update(2000, rejected=3)
        raise ValueError
    assert stream.getvalue().splitlines()[-1] == "extract  2,000/5,000 videos  0.5/s  1:06:40 taken  rejected 3"


def test_an_unknown_total_is_left_out(clock):
    progress = Progress(0, "list", unit="objects", stream=io.StringIO())
    clock[0] += 2
    progress.update(10)
    assert progress.line() == "list  10 objects  5/s"


def test_every_line_is_flushed_for_pipes(clock, monkeypatch):
    monkeypatch.setenv("STABN_PROGRESS_SECONDS", "1")
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream:
        progress = Progress(10, "train", stream=stream)
        clock[0] += 1
        progress.update()
        assert os.read(read, 1000) == b"train  1/10 videos  1/s  0:09 left\n"
    os.close(read)


def _shown(terminal):
    text = b""
    while select.select([terminal], [], [], 0.05)[0]:
        text += os.read(terminal, 4096)
    return text.decode()


def test_a_terminal_gets_one_rewritten_line_that_fits(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "7")
    main, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream:
        with Progress(40, "train", stream=stream) as progress:
            for _ in range(2):
                clock[0] += 1
                progress.update(10, note=1)
            shown = _shown(main)
            assert shown.count("\r") == 2 and "\n" not in shown
            assert shown.endswith("train  ██████████░░░░░░░░░░  20/40 videos  10/s  0:02 left  note 1")
            clock[0] += 1
            progress.update(20, **{f"number{i}": i for i in range(20)})
            assert len(_shown(main).removeprefix("\r\x1b[K")) == 79
        assert _shown(main).endswith("\r\n")
    os.close(main)
