"""Croissant metadata: what its specification requires is there, and leads to the tables' own content."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from stabn.cli import main
from stabn.data.croissant import CroissantError, export_dataset
from stabn.storage import open_storage
from tests.tiny_run import CLASSES, EDITED, write_dataset, write_edits

NAMED = {"name": "Pushing boxes", "license": "CC-BY-4.0"}
# The context that mlcroissant 1.1.1 expects; it warns of any other.
CONTEXT_KEYS = (
    "@language @vocab citeAs column conformsTo cr data dataType dct equivalentProperty examples extract field "
    "fileObject fileProperty fileSet format includes isLiveDataset jsonPath key md5 parentField path rai "
    "recordSet references regex repeated replace samplingRate sc separator source subField transform"
)


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    return write_dataset(tmp_path)


def test_the_metadata_have_what_croissant_requires(manifest: str, tmp_path: Path) -> None:
    """Specification 1.0: required properties of dataset, files, record sets and fields; ids that exist; checksums."""
    edits, output = write_edits(tmp_path / "edits.parquet", EDITED), tmp_path / "out"
    words = ["--manifest", manifest, "--edits", edits, "--output", str(output), "--url", "https://example.org/boxes"]
    words += ["--cite", "@misc{boxes}"]
    main(["croissant", *words, *(word for name, text in NAMED.items() for word in (f"--{name}", text))])
    document = json.loads((output / "croissant.json").read_text())
    assert document["@type"] == "sc:Dataset" and document["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert {"@context", "name", "description", "license", "url", "datePublished", "version"} <= document.keys()
    assert " ".join(sorted(document["@context"], key=lambda key: (key[0] != "@", key))) == CONTEXT_KEYS
    assert document["citeAs"] == "@misc{boxes}"
    assert document["@context"]["cr"] == "http://mlcommons.org/croissant/"
    assert document["@context"]["@vocab"] == "https://schema.org/"
    assert "9 train, 6 validation" in document["description"] and "corrections" in document["description"]
    files = {file["@id"]: file for file in document["distribution"]}
    assert files.keys() == {"manifest.parquet", "edits.parquet"}
    for name, file in files.items():
        assert file["@type"] == "cr:FileObject" and file["encodingFormat"] == "application/x-parquet"
        data = (output / file["contentUrl"]).read_bytes()
        assert file["name"] == name and file["sha256"] == hashlib.sha256(data).hexdigest()
    fields = {field["@id"]: field for records in document["recordSet"] for field in records["field"]}
    for records in document["recordSet"]:
        assert records["@type"] == "cr:RecordSet" and records["key"]["@id"] in fields
        for field in records["field"]:
            assert field["@type"] == "cr:Field" and field["@id"] == f"{records['@id']}/{field['name']}"
            assert field["dataType"] in ("sc:Text", "sc:Integer", "sc:Float")
            if "source" in field:
                check_column(field, pq.read_schema(output / field["source"]["fileObject"]["@id"]))
            if "references" in field:
                assert field["references"]["field"]["@id"] in fields
    classes = next(records for records in document["recordSet"] if records["@id"] == "classes")
    assert [row["classes/name"] for row in classes["data"]] == list(CLASSES)


def check_column(field: dict[str, Any], schema: Any) -> None:
    kind = schema.field(field["source"]["extract"]["column"]).type
    is_list = str(kind).startswith("list")
    assert field.get("repeated", False) == is_list
    value = np.dtype((kind.value_type if is_list else kind).to_pandas_dtype())
    assert field["dataType"] == {"O": "sc:Text", "i": "sc:Integer", "f": "sc:Float"}[value.kind]


def test_what_cannot_be_published_is_named(manifest: str, tmp_path: Path) -> None:
    for missing in NAMED:
        with pytest.raises(CroissantError, match=f"{missing} ' ': give one"):
            export_dataset(manifest, "", str(tmp_path / "out"), **{**NAMED, missing: " "})
    edits = write_edits(tmp_path / "edits.parquet", {"77": [1.0]})
    with pytest.raises(CroissantError, match=r"edits\.parquet: video '77' is not in .*give those of one round"):
        export_dataset(manifest, edits, str(tmp_path / "out"), **NAMED)
    assert not (tmp_path / "out").exists()


def test_a_later_export_without_corrections_leaves_none(manifest: str, storage_uri: str, tmp_path: Path) -> None:
    edits, store = write_edits(tmp_path / "edits.parquet", EDITED), open_storage(storage_uri)
    for given, count in ((edits, 2), ("", 1)):
        export_dataset(manifest, given, storage_uri, **NAMED)
        assert len(json.loads(store.read("croissant.json"))["distribution"]) == count
        assert len(list(store.list())) == count + 1


def test_mlcroissant_reads_it_without_a_word(manifest: str, tmp_path: Path) -> None:
    """Where the library is installed; it is none of ours."""
    mlcroissant = pytest.importorskip("mlcroissant")
    edits = write_edits(tmp_path / "edits.parquet", EDITED)
    told = {**NAMED, "url": "https://example.org/boxes", "cite": "@misc{boxes}"}
    dataset = mlcroissant.Dataset(export_dataset(manifest, edits, str(tmp_path / "out"), **told))
    issues = dataset.metadata.ctx.issues
    assert not issues.errors and not issues.warnings
    counts = {name: len(list(dataset.records(name))) for name in ("videos", "classes", "edits")}
    assert counts == {"videos": 15, "classes": len(CLASSES), "edits": len(EDITED)}
