"""Videos for the benchmarks: in length, size and bytes per frame like those of Something-Something v2."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

CRF = 22  # about 2 kB a frame at 427 x 240, as in Something-Something v2 (20 GB of videos, 10 million frames)


@contextlib.contextmanager
def ssv2_like(count: int) -> Iterator[tuple[Path, list[Path]]]:
    """Render some videos, about 2 kB a frame as in SSv2, and copy them under new names until there are `count`."""
    from stabn.data.mini import VARIANTS, make_mini_dataset, smallest  # here, because worker processes import this file
    from stabn.data.video import decode
    from stabn.data.video_encoding import encode

    with tempfile.TemporaryDirectory(prefix="stabn-benchmark-") as name:
        folder = Path(name)
        dataset = make_mini_dataset(folder / "mini", smallest(VARIANTS["knowledge"]), variant="knowledge")
        made = sorted(dataset.videos_dir.glob("*.webm"))
        (folder / "videos").mkdir()
        videos = [folder / "videos" / f"{number}.webm" for number in range(count)]
        for number, path in enumerate(videos):
            if number < len(made):
                encode(path, decode(made[number]), 12, crf=CRF)
            else:
                shutil.copyfile(videos[number % len(made)], path)
        yield folder, videos
