"""The report: exact numbers in its tables, one file without outside resources, claims no stronger than the numbers."""

import dataclasses
import datetime
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from stabn.attention.selection import load_selection
from stabn.config import SelectConfig
from stabn.evaluation import charts
from stabn.evaluation.examples import VideoFigure, choose_examples
from stabn.evaluation.prediction_table import MetricsError, Predictions
from stabn.evaluation.report import ReportInputs, make_report, tables_text
from stabn.evaluation.sections import ReportError, most_confused, read_history
from stabn.evaluation.select_classes import select_classes
from stabn.evaluation.significance import Difference
from stabn.evaluation.tables import compare
from stabn.evaluation.verdict import CONTROL, EDITED, OF_EDITS, judge
from stabn.stages import FRAME_MODES
from stabn.tracking import count_look

HOSTILE = '<script>alert(1)</script> & "quoted"'
PER_CLASS = 40


def with_other_attention(table: Predictions, kept: float) -> Predictions:
    """Let a share of the right videos stay right under each other attention, and no wrong one become right."""
    stay = np.arange(len(table)) % 100 < 100 * kept
    best = np.where(table.correct & ~stay, (table.class_index + 1) % len(table.classes), table.predicted)
    return dataclasses.replace(table, under=dict.fromkeys(FRAME_MODES, best))


def make_table(accuracies, names, *, split="validation", attention="as_is", checkpoint="c") -> Predictions:
    """Make 40 videos a class, of which the first `accuracies[c]` are right; the true class is always in the top 5."""
    num_classes = len(names)
    true = np.repeat(np.arange(num_classes), PER_CLASS)
    right = np.tile(np.arange(PER_CLASS), num_classes) < np.repeat(
        np.round(np.array(accuracies) * PER_CLASS), PER_CLASS
    )
    guess = np.where(right, true, (true + 1) % num_classes)
    top5 = [list(dict.fromkeys([g, t, *range(num_classes)]))[:5] for g, t in zip(guess, true, strict=True)]
    return Predictions(
        video_ids=[f"{split}-{i}" for i in range(len(true))],
        class_index=true,
        top5=np.array(top5),
        scores=np.tile(np.array([0.5, 0.2, 0.1, 0.1, 0.05])[: min(5, num_classes)], (len(true), 1)),
        loss=np.ones(len(true)),
        metadata={
            "classes": list(names),
            "split": split,
            "attention": attention,
            "checkpoint_fingerprint": checkpoint,
            "manifest_fingerprint": "m",
        },
    )


NAMES = [HOSTILE, "Folding something", "Pushing something from left to right", "Tearing something", "Lifting something"]
BEFORE, AFTER, CONTROL_RUN = [0.1, 0.2, 0.9, 0.8, 0.7], [0.5, 0.45, 0.9, 0.75, 0.8], [0.15, 0.2, 0.9, 0.85, 0.7]


def write_inputs(folder: Path, names=NAMES, before=BEFORE, after=AFTER, control=CONTROL_RUN, **extra) -> ReportInputs:
    """Write everything a report needs; paths of the same names as the fields of ReportInputs."""
    tables = {
        "before": make_table(before, names, checkpoint="b"),
        "after": make_table(after, names, checkpoint="a"),
        "before_inverted": make_table(np.array(before) / 2, names, attention="spatial_inverted", checkpoint="b"),
        "after_inverted": make_table(np.array(after) / 4, names, attention="spatial_inverted", checkpoint="a"),
    }
    if control is not None:
        tables["control"] = make_table(control, names, checkpoint="g")
        inverted = make_table(np.array(control) / 2, names, attention="spatial_inverted", checkpoint="g")
        tables["control_inverted"] = inverted
    for name, table in tables.items():
        table.save(folder / f"{name}.parquet")
    make_table(before, names, split="train", checkpoint="b").save(folder / "train.parquet")
    select_classes(
        folder / "train.parquet", folder / "before.parquet", SelectConfig(threshold=0.3), folder / "selection.json"
    )
    paths = {name: folder / f"{name}.parquet" for name in tables}
    return ReportInputs(**paths, selection=folder / "selection.json", **extra)


def make_picture(video_id: str) -> VideoFigure:
    """Draw a small grey picture, in place of running two networks."""
    return VideoFigure(
        [("before", charts.png(np.full((4, 6, 3), 99, np.uint8)))], {"before": [0.1, 0.2], "after": [0.5, 1]}
    )


class Outline(HTMLParser):
    """Collects what a page loads, its scripts, and the cells of each table with an id."""

    def __init__(self, text: str):
        super().__init__()
        self.loads: list[str] = []
        self.scripts = 0
        self.tables: dict[str, list[list[str]]] = {}
        self._table = ""
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.scripts += tag == "script"
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "poster", "action")]
        if tag == "link" or (tag == "meta" and "http-equiv" in attributes):
            self.loads.append(tag)
        if tag == "table":
            self._table = attributes.get("id", "")
            self.tables[self._table] = []
        if tag == "tr" and self._table:
            self.tables[self._table].append([])
        if tag in ("td", "th") and self._table:
            self.tables[self._table][-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        self._cell = self._cell and tag not in ("td", "th")
        if tag == "table":
            self._table = ""

    def handle_data(self, data):
        if self._table and self._cell:
            self.tables[self._table][-1][-1] += data


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    for name in ("training", "finetuning"):
        rows = [
            {"epoch": e, "validation_loss": 2 / e, "validation_top1": 0.1 * e, "learning_rate": 0.01} for e in (1, 2, 3)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    inputs = write_inputs(
        folder, before_checkpoint=folder / "training.jsonl", after_checkpoint=folder / "finetuning.jsonl"
    )
    moment = datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC)
    settings = {"finetune": {"gamma": 10.0}}
    return make_report(inputs, folder / "out", figure_maker=make_picture, settings=settings, created_at=moment)


@pytest.fixture(scope="module")
def page(report):
    return report.html_path.read_text()


def test_table_2_has_the_exact_numbers_beside_the_papers(page):
    assert Outline(page).tables["table2"] == [
        ["", "2 modified actions", "3 others", "all"],
        ["before", "15.0", "80.0", "54.0"],
        ["after", "47.5", "81.7", "68.0"],
        ["control (γ = 0)", "17.5", "81.7", "56.0"],
        ["The paper: ST-ABN, 3D ResNet-50, 32 frames, Something-Something v.2; 8 modified actions, 166 others"],
        ["before", "20.5", "59.8", "58.6"],
        ["after", "26.3", "61.7", "60.7"],
    ]


def test_table_3_has_the_exact_numbers_beside_the_papers(page):
    inverted = [
        100 * np.round(np.array(a) / d * PER_CLASS).mean() / PER_CLASS
        for a, d in ((BEFORE, 2), (AFTER, 4), (CONTROL_RUN, 2))
    ]
    rows = Outline(page).tables["table3"]
    drops = [row[3] for row in rows[1:4]] + [row[1] for row in rows[5:8]]
    number = r"[+−]?[\d.]+"
    for cell in drops[:3]:  # 95% intervals, of top-1 and of top-5
        assert re.fullmatch(rf"{number} / 0.0{number} to {number}0.0 to 0.0", cell), cell
    for cell in drops[3:]:
        assert re.fullmatch(rf"{number} / 0.0{number} to {number} / 0.0 to 0.0", cell), cell
    assert [cell.partition(" /")[0] for cell in drops] == [
        *(f"{top1 - drop:.1f}" for top1, drop in zip((54, 68, 56), inverted)), "+24.0", "+1.0", "+23.0"
    ]  # fmt: skip
    assert [row[:3] for row in rows[:5]] + [row[:1] for row in rows[5:8]] + rows[8:] == [
        ["", "as is", "inverted"],
        ["before", "54.0 / 100.0", f"{inverted[0]:.1f} / 100.0"],
        ["after", "68.0 / 100.0", f"{inverted[1]:.1f} / 100.0"],
        ["control (γ = 0)", "56.0 / 100.0", f"{inverted[2]:.1f} / 100.0"],
        ["By how much more the drop is, in points"],
        ["after − before"],
        ["control − before"],
        ["after − control"],
        ["The paper: ST-ABN, 3D ResNet-50, 32 frames, Something-Something v.2"],
        ["before", "58.6 / 85.5", "27.1 / 52.7", "31.5 / 32.8"],
        ["after", "60.7 / 86.9", "20.1 / 43.4", "40.6 / 43.6"],
    ]


def test_table_1_names_this_run_and_all_rows_of_the_paper(page):
    rows = Outline(page).tables["table1"]
    assert rows[1][0].endswith("without the edits") and rows[1][3:] == ["54.0", "100.0"]
    assert ["ST-ABN", "3D ResNet-50", "32", "58.6", "85.5"] in rows
    assert ["TRN multiscale", "–", "–", "48.8", "–"] in rows
    assert ["3D ResNet-101 (baseline)", "–", "32x2", "65.3", "90.1"] in rows
    assert len(rows) == 1 + 3 + 1 + 23


def test_table_1_has_the_baseline_of_this_run_beside_st_abn(tmp_path):
    """The 3D ResNet on the same videos comes first; a network with attention, or another split, is no baseline."""
    inputs = write_inputs(tmp_path, baseline=tmp_path / "baseline.parquet")
    plain = make_table(CONTROL_RUN, NAMES, checkpoint="r")
    named = {**plain.metadata, "backbone": "3D ResNet-50", "frames": "32x2"}
    dataclasses.replace(plain, metadata=named).save(tmp_path / "baseline.parquet")
    result = make_report(inputs, tmp_path)
    page = result.html_path.read_text()
    assert Outline(page).tables["table1"][1] == ["3D ResNet-50 (baseline), this run", "–", "32x2", "56.0", "100.0"]
    assert re.search(
        r"minus the 3D ResNet of the same run: −2.0 points of top-1 \(95% interval over videos −[\d.]+ to ", page
    )
    assert result.metrics["baseline_top1"] == pytest.approx(0.56)
    attention = {"attention_top5": plain.top5, "attention_scores": plain.scores}
    dataclasses.replace(plain, **attention).save(tmp_path / "baseline.parquet")
    with pytest.raises(MetricsError, match="predictions baseline: of a network with attention"):
        make_report(inputs, tmp_path)
    make_table(CONTROL_RUN, NAMES, split="train").save(tmp_path / "baseline.parquet")
    with pytest.raises(MetricsError, match="predictions baseline: split 'train', the others are of 'validation'"):
        make_report(inputs, tmp_path)


def test_the_page_is_one_file_that_asks_nobody(page):
    outline = Outline(page)
    assert outline.loads and all(place.startswith("data:image/png;base64,") for place in outline.loads)
    assert not re.search(r"url\(|@import|https?://", page)
    assert outline.scripts == 0


@pytest.mark.parametrize("num_classes", [5, 30])
def test_a_hostile_class_name_stays_text(tmp_path, num_classes):
    names = [*NAMES, *(f"{HOSTILE} {i}" for i in range(num_classes - 5))]
    spread = [*BEFORE, *[0.6] * (num_classes - 5)]
    inputs = write_inputs(tmp_path, names, spread, [min(1, a + 0.1) for a in spread], spread)
    text = make_report(inputs, tmp_path, figure_maker=make_picture).html_path.read_text()
    assert "<script>alert" not in text and "</script> &" not in text
    assert html.escape(HOSTILE, quote=False) in text.replace("&#34;", '"')
    assert Outline(text).scripts == (num_classes > 20)


def test_the_terminal_shows_the_same_tables(report):
    verdict, _, tables = tables_text(report).partition("\n\n")
    assert verdict.splitlines()[0] == f"{report.verdict.title}." and report.verdict.sentences[0] in verdict
    lines = tables.splitlines()
    assert lines[0].split("  ")[0] == "Table 2: top-1, %" and lines[0].endswith("all")
    assert [line.split() for line in lines[1:5]] == [
        ["before", "15.0", "80.0", "54.0"],
        ["after", "47.5", "81.7", "68.0"],
        ["control", "(gamma", "=", "0)", "17.5", "81.7", "56.0"],
        ["paper,", "before", "20.5", "59.8", "58.6"],
    ]
    assert len({len(line) for line in lines[:6]}) == 1
    assert "54.0 / 100.0" in lines[8]


def test_metrics_and_figures_are_written_beside_the_page(report, page):
    document = json.loads((report.html_path.parent / "metrics.json").read_text())
    assert document["metrics"] == report.metrics and document["wins"] is True
    assert report.metrics["before_top1"] == pytest.approx(0.54)
    assert report.metrics["after_modified_top1"] == pytest.approx(0.475)
    assert report.metrics["gain"] == pytest.approx(0.14)
    assert report.metrics["edits_effect"] == pytest.approx(0.12)
    assert 0 < report.metrics["edits_effect_low"] < 0.12 < report.metrics["edits_effect_high"]
    assert all(type(value) is float for value in report.metrics.values())
    assert report.figures and all(path.read_bytes().startswith(b"\x89PNG") for path in report.figures)
    assert page.count('class="example"') == len(report.figures) == 4
    assert "Red is where it is high, which need not be what the answer depends on" in page


def test_the_page_says_when_and_from_what_it_was_made(page):
    assert "2026-01-02 03:04 UTC" in page and "finetune.gamma" in page
    for name in ("before", "after", "control"):
        assert f"network {name}" in page


def test_videos_won_and_lost_are_counted(page):
    assert re.search(r"won</span> 30 videos, 26 of modified actions", page)
    assert re.search(r"lost</span> 2 videos, 0 of modified actions", page)
    assert "First 25 of 30" in page


def test_a_report_without_control_and_pictures_says_what_it_cannot_tell(tmp_path):
    result = make_report(write_inputs(tmp_path, control=None), tmp_path)
    text = result.html_path.read_text()
    assert "There was no control run" in text and "whether by the edits is open" in text
    assert "control (γ = 0)" not in text and "Attention before and after" not in text and "Fine-tuning</h3>" not in text
    assert list(result.table2.index) == ["before", "after"] and result.figures == []


def test_the_page_says_how_often_these_videos_were_looked_at(tmp_path, mlflow_uri):
    """With the count of promotions in the registry and this network; without a registry's name it says nothing."""
    inputs = write_inputs(tmp_path)
    videos = Predictions.load(inputs.after).videos_fingerprint
    for network in ("x", "y", "a"):
        count_look("net", videos, network)
    result = make_report(inputs, tmp_path, model_name="net")
    assert "It is network number 3 to be measured on these 200 validation videos" in result.html_path.read_text()
    assert result.metrics["looks"] == 3, "this network, a, is one of them"
    assert "to be measured" not in make_report(inputs, tmp_path).html_path.read_text()


def test_a_report_is_made_though_the_registry_is_away(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    text = make_report(write_inputs(tmp_path), tmp_path, model_name="net").html_path.read_text()
    assert "to be measured" not in text and "looks at these videos are not counted" in capsys.readouterr().out


def test_equal_networks_are_not_called_better(tmp_path):
    result = make_report(write_inputs(tmp_path, after=BEFORE), tmp_path)
    assert "No difference from before beyond noise" in result.html_path.read_text()
    assert not result.wins and result.metrics["gain"] == 0


def effects_of(gain, edits):
    """Make the differences of a report from (mean, low, high)."""
    return {
        "All actions": {
            EDITED: Difference(*gain, 0),
            CONTROL: Difference(0, -0.1, 0.1, 1),
            OF_EDITS: Difference(*edits, 0),
        }
    }


@pytest.mark.parametrize(
    ("gain", "edits", "tone", "said"),
    [
        ((0.02, 0.01, 0.03), (0.02, 0.01, 0.03), "good", "more than noise"),
        ((0.02, 0.01, 0.03), (0.01, -0.01, 0.02), "neutral", "cannot be told apart"),
        ((0.02, 0.01, 0.03), (-0.02, -0.03, -0.01), "neutral", "the edits cost accuracy"),
        ((0.01, -0.01, 0.03), (0.02, 0.01, 0.03), "neutral", "more than noise"),
        ((-0.02, -0.03, -0.01), (0.02, 0.01, 0.03), "bad", "more than noise"),
    ],
)
def test_the_verdict_is_no_stronger_than_the_numbers(gain, edits, tone, said):
    verdict = judge(effects_of(gain, edits))
    assert verdict.tone == tone and said in " ".join(verdict.sentences)
    assert "another seed" in verdict.sentences[-1], "an interval over videos covers no other training"


def test_tables_of_other_networks_or_attention_are_refused(tmp_path):
    names = ["a", "b", "c"]
    table = lambda attention, checkpoint: make_table([0.5] * 3, names, attention=attention, checkpoint=checkpoint)  # noqa: E731
    before, after = table("as_is", "b"), table("as_is", "a")
    good, bad = table("spatial_inverted", "b"), table("spatial_inverted", "other")
    with pytest.raises(MetricsError, match="predictions after: as is from checkpoint a, inverted from other"):
        compare(before, after, None, good, bad, [0])
    with pytest.raises(MetricsError, match="predictions before, inverted: attention is 'as_is'"):
        compare(before, after, None, before, bad, [0])
    right = table("spatial_inverted", "a")
    with pytest.raises(MetricsError, match="predictions control: as is from checkpoint a, inverted from other"):
        compare(before, after, after, good, right, [0], bad)
    with pytest.raises(MetricsError, match="control, inverted: there are none of it as it is"):
        compare(before, after, None, good, right, [0], right)


def test_examples_are_of_the_modified_actions_and_of_their_kind(tmp_path):
    inputs = write_inputs(tmp_path)
    tables = [Predictions.load(p) for p in (inputs.before, inputs.after, inputs.before_inverted, inputs.after_inverted)]
    selected = load_selection(inputs.selection).class_indices
    comparison = compare(tables[0], tables[1], None, tables[2], tables[3], selected)
    examples = choose_examples(comparison, {"won": 3, "lost": 2, "still wrong": 1})
    assert [item["kind"] for item in examples] == ["won"] * 3 + ["still wrong"]
    for item in examples:
        assert item["true"] in NAMES[:2] and item["before"] != item["true"]
        assert (item["after"] == item["true"]) == (item["kind"] == "won")
    assert examples == choose_examples(comparison, {"won": 3, "lost": 2, "still wrong": 1})


def test_the_confusion_shown_of_many_classes_is_that_of_the_selected():
    matrix = np.diag([9] * 6)
    matrix[4, 1], matrix[1, 5], matrix[2, 3] = 7, 3, 50
    assert most_confused(matrix, [4], 3) == [4, 1, 5]
    assert most_confused(matrix, [4, 2], 3) == [4, 2, 3]
    table = charts.confusion_table(matrix, [f"class {i}" for i in range(6)], [1, 4], [4])
    counts = re.findall(r"<td[^>]*>(\d*)</td>", table)
    assert counts == ["9", "", "3", "7", "9", ""]


def test_a_line_chart_of_one_epoch_or_of_gaps_is_drawn():
    one = charts.line_chart("loss", [charts.Series("a", [1], [0.5], "after")])
    assert "circle" in one and "nan" not in one
    gaps = charts.line_chart("loss", [charts.Series("a", [1, 2, 3], [float("nan"), 0.5, 0.4], "after")])
    assert "nan" not in gaps and "a 0.4" in gaps
    assert charts.line_chart("loss", [charts.Series("a", [1], [float("nan")], "after")]) == ""


def test_a_history_that_is_none_is_named_with_its_line(tmp_path):
    (tmp_path / "history.jsonl").write_text('{"epoch": 1}\n{"loss": 2}\n')
    with pytest.raises(ReportError, match=r"history\.jsonl, line 2: not the metrics of an epoch"):
        read_history(tmp_path / "history.jsonl")


def test_the_page_says_which_frames_matter(tmp_path: Path) -> None:
    """A network that reads its attention frame by frame is worse under another; tables of before do not say."""
    inputs = write_inputs(tmp_path)
    make_report(inputs, tmp_path / "without")
    assert "Which frames matter" not in (tmp_path / "without" / "report.html").read_text()
    for name, kept in (("before", 1.0), ("after", 0.5)):
        table = with_other_attention(Predictions.load(tmp_path / f"{name}.parquet"), kept)
        table.save(tmp_path / f"{name}.parquet")
        assert Predictions.load(tmp_path / f"{name}.parquet").under.keys() == set(FRAME_MODES)
    make_report(inputs, tmp_path / "with")
    page = (tmp_path / "with" / "report.html").read_text()
    section = page.split("Which frames matter")[1].split("</table>")[0]
    cells = re.findall(r"<td>([^<]*)</td>", section)
    assert (
        len(cells) == 8 and cells[1] == "0.0 (0.0 to 0.0)" and re.fullmatch(r"−[\d.]+ \(−[\d.]+ to −[\d.]+\)", cells[5])
    )
