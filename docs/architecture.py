"""Draw the rooms of the code and who imports whom: python docs/architecture.py writes docs/architecture.svg.

Rooms and layers are those of import-linter's contract in pyproject.toml, arrows are the imports. An arrow that a longer
way implies is left out, and so are those to the foundation, which every room may use.
"""

import html
import tomllib
from pathlib import Path
from typing import NamedTuple

import grimp

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "architecture.svg"
WIDTH, ROW, HEIGHT, BOX, TOP = 760, 92, 50, 210, 14  # pixels
FOUNDATION = "stabn.commands"  # the first of its layers
TITLES = {
    "stabn.cli": "the command line",
    "pipelines": "graphs, submit, demo",
    "components": "KFP steps, TrainJobs, doctor",
    "stabn.editor": "the page where people correct",
    "stabn.evaluation": "metrics, report, promotion",
    "stabn.attention": "rounds, edits, pictures",
    "stabn.training": "recipes, loop, states",
    "stabn.models": "ST-ABN and its baseline",
    "stabn.data": "from videos to clips",
}


class Box(NamedTuple):
    """A room in the picture: the middle of its upper edge and its width, in pixels."""

    x: float
    y: float
    width: float


def layers() -> list[list[str]]:
    """Return the rooms of each layer, from above."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return [layer.split(" | ") for layer in contracts[0]["layers"]]


def imports(rooms: list[str]) -> set[tuple[str, str]]:
    """Return the pairs of rooms of which the first imports the second, without those that a longer way implies."""
    graph = grimp.build_graph("stabn", "components", "pipelines")
    modules = {room: {room} | graph.find_descendants(room) for room in rooms}
    room_of = {module: room for room, inside in modules.items() for module in inside}
    pairs = {
        (room, room_of[imported])
        for room, inside in modules.items()
        for module in inside
        for imported in graph.find_modules_directly_imported_by(module)
        if room_of.get(imported, room) != room
    }
    reach: dict[str, set[str]] = {}
    for room in reversed(rooms):  # below first
        direct = {lower for upper, lower in pairs if upper == room}
        reach[room] = direct.union(*(reach[lower] for lower in direct))
    return {
        (upper, lower)
        for upper, lower in pairs
        if not any(lower in reach[other] for first, other in pairs if first == upper and other != lower)
    }


def draw() -> str:
    """Return the picture as SVG."""
    rows = layers()
    above = rows[: rows.index([FOUNDATION])]
    boxes = {
        room: Box(WIDTH * (2 * place + 1) / (2 * len(row)), TOP + ROW * number, BOX)
        for number, row in enumerate(above)
        for place, room in enumerate(row)
    }
    arrows = sorted(imports(list(boxes)))
    foundation = [" · ".join(row) for row in rows[len(above) :]]
    for number, text in enumerate(foundation):
        boxes[text] = Box(WIDTH / 2, TOP + ROW * len(above) + (HEIGHT - 20) * number, WIDTH - 2 * TOP)
    bottom = boxes[foundation[-1]].y + HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom}" font-family="sans-serif">',
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 10 5 0 10z" fill="#475569"/></marker></defs>',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for upper, lower in arrows:
        start, end = boxes[upper], boxes[lower]
        aside = (end.x > start.x) - (end.x < start.x)
        x, tip = start.x + 90 * aside, end.x - 40 * aside
        y, bend = start.y + HEIGHT, (end.y - start.y - HEIGHT) / 2
        parts.append(
            f'<path d="M{x:.0f} {y:.0f}C{x + bend * aside:.0f} {y + bend:.0f} {tip:.0f} {end.y - bend:.0f} '
            f'{tip:.0f} {end.y:.0f}" fill="none" stroke="#475569" stroke-width="1.5" marker-end="url(#tip)"/>'
        )
    for room, box in boxes.items():
        height, title = (HEIGHT, TITLES[room]) if room in TITLES else (HEIGHT - 24, "")
        parts.append(
            f'<rect x="{box.x - box.width / 2:.0f}" y="{box.y:.0f}" width="{box.width}" height="{height}" rx="7" '
            f'fill="#f1f5f9" stroke="#334155"/><text x="{box.x:.0f}" y="{box.y + (21 if title else 18):.0f}" '
            f'text-anchor="middle" font-size="14" font-weight="600" fill="#0f172a">{html.escape(room)}</text>'
        )
        if title:
            parts.append(
                f'<text x="{box.x:.0f}" y="{box.y + 39:.0f}" text-anchor="middle" font-size="12" fill="#475569">'
                f"{html.escape(title)}</text>"
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw())
    print(PICTURE)
