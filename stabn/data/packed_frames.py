"""All frames of one video, compressed in memory and decoded when they are looked at: minutes of video fit."""

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np

from stabn.data.mjpeg import decode_jpeg


class PackedFrames:
    """What an array uint8 (num_source, H, W, 3) of RGB frames is for those who read it, in a hundredth of the memory.

    `frames[3]` is one frame, `frames[[3, 5]]` an array of some; `len`, `shape` and iteration are those of the array.
    """

    def __init__(self, jpegs: Sequence[bytes], name: str) -> None:
        self._jpegs, self._name = jpegs, name
        self.shape = (len(jpegs), *decode_jpeg(jpegs[0], name, 0).shape)

    def __len__(self) -> int:
        return len(self._jpegs)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: Sequence[int] | np.ndarray) -> np.ndarray: ...
    def __getitem__(self, index: Any) -> np.ndarray:
        if np.ndim(index) == 0:
            return decode_jpeg(self._jpegs[int(index)], self._name, int(index))
        return np.stack([self[int(i)] for i in index])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))


Frames = np.ndarray | PackedFrames
