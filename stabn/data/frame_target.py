"""Where packed frames go, and whose they are: a video of another dataset may have the same name."""

import json
from typing import Any

from stabn.config import fingerprint
from stabn.data.mjpeg import unpack
from stabn.errors import StabnError
from stabn.storage import ObjectExists, Storage, check_promises
from stabn.text import parse_json

SOURCES = "sources/"  # <fingerprint>.json: whose frames are there


class ForeignFrames(StabnError):
    """The frames of a video are there already, made of another source's file of that name."""


class FrameTarget:
    """A storage that frames of one source are written to; says so in it. Can be pickled.

    Args:
        storage: gets the frames.
        source_uri: where the videos are.

    Raises:
        StorageError: the store cannot be relied on.
    """

    def __init__(self, storage: Storage, source_uri: str) -> None:
        self.storage, self.source_uri = storage, source_uri
        self._conditional = check_promises(storage)
        mine = f"{SOURCES}{fingerprint(source_uri)}.json"
        keys = list(storage.list(SOURCES))
        if mine not in keys:
            storage.write(mine, json.dumps({"videos": source_uri}).encode())
        self._others = [parse_json(storage.read(key))["videos"] for key in keys if key != mine]

    def store(self, key: str, packed: bytes, sha256: str, stored: bool) -> dict[str, Any]:
        """Write the packed frames of a video; replace those that are there only if no other source has any here.

        Args:
            key: the video's object.
            packed: its frames, see `mjpeg.pack`.
            sha256: of the video file.
            stored: whether an earlier run had left the object.

        Returns:
            What the video's record must say instead, where another process stored the same video meanwhile.

        Raises:
            ForeignFrames: another file's frames are there.
        """
        if stored and not self._others:  # the video has changed since
            self.storage.write(key, packed)
            return {}
        try:
            if not self._conditional and self.storage.exists(key):
                raise ObjectExists(key)
            self.storage.write(key, packed, if_absent=self._conditional)
            return {}
        except ObjectExists:
            there = unpack(self.storage.read(key))
        if there is None:
            self.storage.write(key, packed)
            return {}
        if there[0] != sha256:
            whose = f" (frames of {self._others[0]} are here)" if self._others else ""
            raise ForeignFrames(
                f"{self.storage.locate(key)}: made of another file than {self.source_uri} has under that name{whose}; "
                "give another storage"
            )
        return {"frame_sizes": there[1]}
