"""What the editor's what-if costs against recognising a video anew: the network, the features once, and each edit.

    python benchmarks/whatif.py

Runs the network of a preset with random weights on one clip, all three in turn, and prints the medians as a Markdown
table. The second column is what the first what-if of a video waits for, the third every later one.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import record
import torch

from stabn.data.transforms import to_input
from stabn.editor.whatif import CachedClips
from stabn.models import STABN
from stabn.presets import load


def timed(function: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    """Measure and print the table."""
    parser = record.parser(__doc__)
    parser.add_argument("--presets", nargs="+", default=["ssv2_r50_32"], help="networks to measure")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; the medians are shown (default: 5)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    args = parser.parse_args()
    rows = []
    for name in args.presets:
        config = load(name)
        torch.manual_seed(0)
        model = STABN(config.model).eval().to(args.device)
        size, length = config.data.crop_size, config.data.num_frames
        frames = np.random.default_rng(0).integers(0, 255, (length + 8, size, size, 3), np.uint8)
        clip = torch.from_numpy(frames[None, :length])
        temporal = np.random.default_rng(1).random((1, length), np.float32)

        def whole(model: STABN = model, clip: torch.Tensor = clip, config=config, temporal=temporal) -> None:  # type: ignore[no-untyped-def]
            with torch.inference_mode():
                attention = torch.from_numpy(temporal).to(args.device)
                model(to_input(clip, config.data, args.device), temporal_attention=attention)

        cached = CachedClips(model, len(frames), frames.__getitem__, config.data, torch.float32)
        times: dict[str, list[float]] = {"whole": [], "once": [], "each": []}
        for step in range(args.rounds + 1):
            taken = {
                "whole": timed(whole),
                "once": timed(
                    lambda m=model, f=frames, c=config: CachedClips(m, len(f), f.__getitem__, c.data, torch.float32)
                ),  # type: ignore[misc]
                "each": timed(lambda c=cached, t=temporal: c.probabilities(t)),  # type: ignore[misc]
            }
            if step:  # the first is a warm-up
                for kind, seconds in taken.items():
                    times[kind].append(seconds)
        all_, once, each = (statistics.median(times[kind]) for kind in ("whole", "once", "each"))
        rows.append((f"{name}, {length} x {size}", all_, once, each, each / all_, cached.num_bytes / 2**20))
    table = record.Table(
        f"{torch.get_num_threads()} threads, {args.device}, median of {args.rounds}",
        ("network, frames x crop", "whole, s", "once per video, s", "each what-if, s", "of the whole", "MB per video"),
        ("", ".2f", ".2f", ".2f", ".2f", ".0f"),
        rows,
    )
    record.report([table], args.output)


if __name__ == "__main__":
    main()
