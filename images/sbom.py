"""Print what an environment is made of, as a CycloneDX document: each installed package, its version and licence.

Usage: python sbom.py NAME > sbom.json   with the interpreter of the environment; needs nothing but Python
"""

import json
import sys
from importlib import metadata
from typing import Any


def document(name: str) -> dict[str, Any]:
    """Return the CycloneDX 1.5 document of this interpreter's packages, sorted by name; the same each time."""
    found = {item.metadata["Name"].lower().replace("_", "-"): item for item in metadata.distributions()}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": name, "bom-ref": name}},
        "components": [_component(key, found[key]) for key in sorted(found)],
    }


def _component(name: str, item: metadata.Distribution) -> dict[str, Any]:
    address = f"pkg:pypi/{name}@{item.version.replace('+', '%2B')}"
    component: dict[str, Any] = {
        "type": "library", "name": name, "version": item.version, "purl": address, "bom-ref": address,
    }  # fmt: skip
    licence = item.metadata.get("License-Expression") or item.metadata.get("License") or ""
    if licence and len(licence) < 100 and "\n" not in licence:
        component["licenses"] = [{"license": {"name": licence}}]
    return component


if __name__ == "__main__":
    print(json.dumps(document(sys.argv[1]), indent=1))
