"""A dataset as others can find and read it: Croissant metadata (JSON-LD) of a manifest and of people's corrections."""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from stabn.data.edit_table import EDIT_SCHEMA, load_edit_table
from stabn.data.manifest import SCHEMA, Manifest
from stabn.errors import StabnError
from stabn.storage import open_storage, owned, read_uri
from stabn.text import is_unicode

VERSION = "http://mlcommons.org/croissant/1.0"
METADATA_FILE, MANIFEST_FILE, EDITS_FILE = "croissant.json", "manifest.parquet", "edits.parquet"
CONTEXT: dict[str, Any] = {
    "@language": "en", "@vocab": "https://schema.org/", "citeAs": "cr:citeAs", "column": "cr:column",
    "conformsTo": "dct:conformsTo", "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/", "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"}, "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty", "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract", "field": "cr:field", "fileProperty": "cr:fileProperty", "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet", "format": "cr:format", "includes": "cr:includes", "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath", "key": "cr:key", "md5": "cr:md5", "parentField": "cr:parentField", "path": "cr:path",
    "recordSet": "cr:recordSet", "references": "cr:references", "regex": "cr:regex", "repeated": "cr:repeated",
    "replace": "cr:replace", "samplingRate": "cr:samplingRate", "sc": "https://schema.org/",
    "separator": "cr:separator", "source": "cr:source", "subField": "cr:subField", "transform": "cr:transform",
}  # fmt: skip
VIDEOS = {
    "video_id": "names the video in every table",
    "split": "train, validation, test or held_out",
    "class_index": "place of its action in the record set classes; -1: not known",
    "label": "the action with its objects named",
    "object_key": "its frames, JPEG after JPEG, below the place of the frames",
    "frame_sizes": "bytes of each frame",
    "num_frames": "how many there are",
    "width": "of a frame, in pixels",
    "height": "of a frame, in pixels",
    "source_sha256": "SHA-256 of the video file that the frames were made of",
}
EDITS = {
    "video_id": "names the video in every table",
    "edited_attention": "the corrected temporal attention, one number from 0 to 1 per frame; NaN: no opinion",
    "editor": "who made it",
    "revision": "how often it was saved",
    "status": "edited, skipped, second_opinion or draft",
}


class CroissantError(StabnError):
    """A dataset cannot be described as asked."""


def export_dataset(
    manifest_uri: str,
    edits_uri: str,
    output_uri: str,
    *,
    name: str,
    license: str,
    description: str = "",
    url: str = "",
    cite: str = "",
) -> str:
    """Write a manifest, corrections if there are any, and Croissant metadata of both into one folder, to be published.

    The frames are named, not copied: who publishes them has to have the right to.

    Args:
        manifest_uri: the dataset.
        edits_uri: edit table of import-edits; empty: none.
        output_uri: folder or s3:// prefix.
        name: of the dataset.
        license: address or SPDX name of the licence of what is published.
        description: a few sentences; empty: what the files tell.
        url: page of the dataset; empty: none yet.
        cite: how a paper cites it, such as BibTeX; empty: not told, of which validators warn.

    Returns:
        Where the metadata are.

    Raises:
        CroissantError: a name or a licence is missing, or the corrections are another dataset's.
        ManifestError, EditError: a file is none.
    """
    for what, text in (("name", name), ("license", license)):
        if not text.strip() or not is_unicode(text):
            raise CroissantError(f"{what} {text!r}: give one, who uses the dataset needs it")
    manifest, files = Manifest.load(manifest_uri), {MANIFEST_FILE: read_uri(manifest_uri)}
    if edits_uri:
        edits = load_edit_table(edits_uri)
        if unknown := sorted(set(edits) - set(manifest.table["video_id"].to_pylist())):
            raise CroissantError(f"{edits_uri}: video {unknown[0]!r} is not in {manifest_uri}; give those of one round")
        files[EDITS_FILE] = read_uri(edits_uri)
    storage = open_storage(output_uri)
    document = _document(manifest, files, name, license, description, url, cite)
    with owned(storage, "croissant", {"files": _digests(files), "name": name}):
        storage.delete(METADATA_FILE)  # it comes last, and until then nothing here is whole
        if not edits_uri:
            storage.delete(EDITS_FILE)
        for key, data in files.items():
            storage.write(key, data)
        storage.write(METADATA_FILE, json.dumps(document, indent=1, ensure_ascii=False).encode())
    return storage.locate(METADATA_FILE)


def _document(
    manifest: Manifest, files: Mapping[str, bytes], name: str, license: str, description: str, url: str, cite: str
) -> dict[str, Any]:
    splits = {split: len(manifest.indices(split)) for split in dict.fromkeys(manifest.table["split"].to_pylist())}
    told = ", ".join(f"{count:,} {split}" for split, count in splits.items())
    said = f"{len(manifest):,} videos ({told}) of {len(manifest.classes)} actions; frames at {manifest.storage_uri}"
    records = [_records("videos", MANIFEST_FILE, SCHEMA, VIDEOS), _classes(manifest)]
    if EDITS_FILE in files:
        said += "; with people's corrections of a network's temporal attention"
        records.append(_records("edits", EDITS_FILE, EDIT_SCHEMA, EDITS, references="videos/video_id"))
    version = hashlib.sha256("".join(_digests(files).values()).encode()).hexdigest()[:16]
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": VERSION,
        "name": name,
        "description": description or f"{said}.",
        "license": license,
        **({"url": url} if url else {}),
        **({"citeAs": cite} if cite else {}),
        "version": f"1.0.0+{version}",
        "datePublished": f"{datetime.now(UTC):%Y-%m-%d}",
        "keywords": ["video", "action recognition", "attention"],
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": key,
                "name": key,
                "contentUrl": key,
                "encodingFormat": "application/x-parquet",
                "contentSize": f"{len(files[key])} B",
                "sha256": digest,
            }
            for key, digest in _digests(files).items()
        ],
        "recordSet": records,
    }


def _digests(files: Mapping[str, bytes]) -> dict[str, str]:
    return {key: hashlib.sha256(data).hexdigest() for key, data in files.items()}


def _records(
    name: str, file: str, schema: pa.Schema, columns: Mapping[str, str], references: str = ""
) -> dict[str, Any]:
    """Return the record set of a table."""
    fields: list[dict[str, Any]] = []
    for column in schema:
        is_list = pt.is_list(column.type)
        kind = column.type.value_type if is_list else column.type
        field = _field(name, column.name, columns[column.name], _data_type(kind))
        field["source"] = {"fileObject": {"@id": file}, "extract": {"column": column.name}}
        if is_list:
            field["repeated"] = True
        if references and column.name == "video_id":
            field["references"] = {"field": {"@id": references}}
        fields.append(field)
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "key": {"@id": f"{name}/video_id"}, "field": fields}


def _classes(manifest: Manifest) -> dict[str, Any]:
    """Return the actions, which the document itself holds."""
    return {
        "@type": "cr:RecordSet",
        "@id": "classes",
        "name": "classes",
        "dataType": "sc:Enumeration",
        "key": {"@id": "classes/class_index"},
        "field": [
            _field("classes", "class_index", "as in videos", "sc:Integer"),
            _field("classes", "name", "what is done", "sc:Text"),
        ],
        "data": [{"classes/class_index": index, "classes/name": name} for index, name in enumerate(manifest.classes)],
    }


def _field(records: str, name: str, description: str, data_type: str) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"{records}/{name}",
        "name": name,
        "description": description,
        "dataType": data_type,
    }


def _data_type(kind: pa.DataType) -> str:
    if pt.is_integer(kind):
        return "sc:Integer"
    return "sc:Float" if pt.is_floating(kind) else "sc:Text"
