"""Objects in a folder or in S3, behind one interface: whole writes, ranged reads, errors that name the object."""

from stabn.storage.claims import Claim, ClaimLost, OutputTaken, differences
from stabn.storage.interface import (
    NotSupported,
    ObjectExists,
    ObjectInfo,
    ObjectNotFound,
    Storage,
    StorageError,
    check_id,
)
from stabn.storage.local import FolderStorage
from stabn.storage.opening import check_object_uri, fetch, open_storage, read_uri, uri_exists, write_uri
from stabn.storage.promises import check_promises, owned, sole_writer
