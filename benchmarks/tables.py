"""Put the recorded measurements into the docs: python benchmarks/tables.py; with --check say what is stale instead.

A table stands between the lines `<!-- table NAME.json N -->` and `<!-- end of table -->`: NAME.json is a record in
benchmarks/results, N the table in it, from 0.
"""

import argparse
import re
import sys
from pathlib import Path

from record import load

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "docs" / "performance.md", ROOT / "docs" / "experiments.md")
RESULTS = ROOT / "benchmarks" / "results"
PLACE = re.compile(r"(<!-- table ([\w.-]+\.json) (\d+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def renewed(text: str, results: Path = RESULTS) -> str:
    """Return a page with its tables as the records have them."""
    return PLACE.sub(lambda match: f"{match[1]}\n{load(results / match[2])[int(match[3])]}\n\n{match[4]}", text)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a page is not as the records have it")
    args = parser.parse_args()
    stale = [page for page in PAGES if renewed(page.read_text()) != page.read_text()]
    for page in stale:
        print(page)
        if not args.check:
            page.write_text(renewed(page.read_text()))
    sys.exit(1 if args.check and stale else 0)


if __name__ == "__main__":
    main()
