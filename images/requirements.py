"""Print what a role needs, one requirement a line; pyproject.toml is the only source.

Usage: python requirements.py pyproject.toml EXTRA ...   where `base` is what the package itself depends on
"""

import sys
import tomllib


def requirements(path: str, extras: list[str]) -> list[str]:
    """Return the dependencies of these extras; `base`: of the package itself.

    Raises:
        SystemExit: pyproject.toml has no such extra.
    """
    with open(path, "rb") as file:
        project = tomllib.load(file)["project"]
    known = {"base": project["dependencies"], **project["optional-dependencies"]}
    if unknown := sorted(set(extras) - set(known)):
        sys.exit(f"{path}: no extra {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return [item for extra in extras for item in known[extra]]


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1], sys.argv[2:])))
