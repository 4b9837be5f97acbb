"""All frames of one video, compressed in memory or a file and decoded when they are looked at: minutes of video fit."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

from stabn.data.mjpeg import decode_jpeg


class JpegFile(Sequence[bytes]):
    """JPEGs in a temporary file, for videos of any length; the file goes with the object."""

    def __init__(self, jpegs: Iterable[bytes]) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as it is read
        self._ends = [0]
        for jpeg in jpegs:
            self._ends.append(self._ends[-1] + self._file.write(jpeg))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        number = range(len(self))[index]
        self._file.seek(self._ends[number], os.SEEK_SET)
        return self._file.read(self._ends[number + 1] - self._ends[number])


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
