"""Known segments of actions: by video, from which frame to which the action goes."""

from operator import index

from stabn.errors import StabnError
from stabn.identity import unique_object
from stabn.storage import read_uri
from stabn.text import parse_json


class SegmentsError(StabnError):
    """A file of action segments cannot be used."""


def load_segments(uri: str) -> dict[str, tuple[int, int]]:
    """Read known action segments: by video id the first frame, and the one after the last.

    Raises:
        SegmentsError: the file is not JSON of [first, last) segments.
    """
    try:
        known = parse_json(read_uri(uri), object_pairs_hook=unique_object)
        return {key: (index(first), index(last)) for key, (first, last) in known.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise SegmentsError(f'{uri}: expected {{"video id": [first, last], …}} ({error})') from None


def check_segment(uri: str, video_id: str, segment: tuple[int, int], num_frames: int) -> None:
    """Check that a segment lies in its video.

    Raises:
        SegmentsError: it does not; names file and video.
    """
    if not 0 <= segment[0] < segment[1] <= num_frames:
        raise SegmentsError(
            f"{uri}: segment {list(segment)} of video {video_id} does not lie in its {num_frames} frames; "
            "correct it or leave the video out"
        )
