"""How many videos people should correct, how exactly, and which: accuracy against the number and the quality of edits.

    python benchmarks/how_many_edits.py                      # training with the edits from the first step on
    python benchmarks/how_many_edits.py --route finetune     # the paper's route

On the dataset, with the networks and on the held-out videos of `knowledge.py`, in whose folder what is there already is
used. The rows: 1 to 100% of the hard actions' training videos edited, drawn at random; borders of the segments that are
off by some frames; curves of which some are wrong; and the videos that the network before gets wrong against as many at
random.
"""

import record
from knowledge import BEFORE, EDITED, Bench, Results, Row, cells, parser, run

from stabn.data.edit_table import load_edit_table

SHARES, NOISES, WRONG = (0.01, 0.05, 0.1, 0.25, 0.5), (1.0, 2.0, 4.0), (0.1, 0.25, 0.5)
ROUTES = {"retrain": "trained with them", "finetune": "fine-tuned"}


def rows_of(route: str) -> tuple[Row, ...]:
    """Return the networks to make by one route."""
    start = ROUTES[route]

    def row(what: str, **settings: object) -> Row:
        return Row(f"{start}, {what}", route, EDITED, **settings)  # type: ignore[arg-type]

    return (
        Row(BEFORE),
        *(row(f"{share:.0%} of the edits", share=share) for share in SHARES),
        row(EDITED),
        *(row(f"borders off by {noise:g} frames", noise=noise) for noise in NOISES),
        *(row(f"{wrong:.0%} of the edits wrong", wrong=wrong) for wrong in WRONG),
        row("misclassified videos", misclassified=True),
        row("as many videos at random", misclassified=False),
    )


def table(bench: Bench, rows: tuple[Row, ...], seeds: list[int]) -> record.Table:
    """Return the accuracy of each row, and what it has over the network without edits."""
    results, lines = Results(bench, seeds), []
    videos = results.groups["edited actions"]
    for row in rows:
        edited = 0.0
        if row.curves:
            tables = [load_edit_table(bench.folder / f"seed-{seed}" / f"{row.name}.edits.parquet") for seed in seeds]
            edited = sum(len(item) for item in tables) / len(tables)
        accuracy = 100 * results.right(row.name)[:, videos].mean()
        lines.append((row.name, edited, accuracy, *cells(results.difference(row.name, BEFORE, videos))))
    columns = ("network", "videos edited", "top-1, edited actions", f"over {BEFORE}", "sd over seeds", "95% interval")
    title = f"%, {len(seeds)} seeds, {int(videos.sum())} held-out videos of the edited actions"
    return record.Table(title, columns, ("", ".0f", ".1f", "+.1f", ".1f", ""), lines)


def main() -> None:
    """Run the command line."""
    flags = parser(__doc__)
    flags.add_argument("--route", default="retrain", choices=list(ROUTES), help="default: %(default)s")
    args = flags.parse_args()
    rows = rows_of(args.route)
    bench, seeds = run(args, rows)
    record.report([table(bench, rows, seeds)], args.output)


if __name__ == "__main__":
    main()
