"""`python -m train.report`: the file as a browser would read it, and the numbers and pictures in it."""

import base64
import copy
import csv
import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prune_env import data
from tests.helpers import trees
from train import evaluate, heldout, report
from train.analysis import figures, pictures
from train.analysis.records import Record
from train.execution import provenance
from train.execution.run import Run, play

RESULTS = Path(__file__).parents[2] / "results"
VOID = ("meta", "img", "br", "wbr")
SPECS = ("full", "ucb:keep=0.5", "random:keep=0.5")
TASKS = {"clean": {}, "noisy, 20 %": {"label_noise": 0.2}}
PLANTED = {"full": 0.80, "ucb:keep=0.5": 0.90, "random:keep=0.5": 0.70}  # a seed more is 0.01 more
HOSTILE = "mine:A:x='<b>&\"$a$\\</style><script>alert(1)</script>'"


class Page(HTMLParser):
    """A page as it is parsed: strict about what is opened and closed."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []  # of all tables, the texts of their cells
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if "style" not in self._open else ""
        if {"td", "th"} & {*self._open}:
            self.rows[-1][-1] += data

    def images(self, alt: str = "") -> list[np.ndarray]:
        """The images whose text begins so."""
        found = [attributes for tag, attributes in self.tags if tag == "img"]
        return [_decoded(each["src"]) for each in found if (each["alt"] or "").startswith(alt)]


def _decoded(source: str | None) -> np.ndarray:
    kind, _, content = (source or "").partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(BytesIO(base64.b64decode(content, validate=True))))


RENDER = figures._small_png


@pytest.fixture(autouse=True, scope="module")
def _pixels():
    """Figures are one pixel, each of another shade: rendering takes most of the time."""
    shades = itertools.count()

    def small(figure: object) -> bytes:
        png = BytesIO()
        Image.new("L", (1, 1), next(shades) % 256).save(png, "png")
        return png.getvalue()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "_small_png", small)
        yield


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """Real runs: two tasks, one of them at two budgets, two seeds, with planted test accuracies."""
    found = []
    for task, settings in TASKS.items():
        for budget in (2.0, 4.0) if task == "clean" else (4.0,):
            kwargs = {**settings, "train_size": 100, "budget": budget, "device": "cpu"}
            env = Run("prune_env/Digits-v0", kwargs, "full", 0).make_env()
            for agent in SPECS:
                for seed in (0, 1):
                    record = play(Run("prune_env/Digits-v0", kwargs, agent, seed, task), env)
                    record["provenance"] |= {**provenance.of_code(), "command": "prune-env sweep a.toml"}
                    record["results"]["test_accuracy"] = PLANTED[agent] + 0.01 * seed + (0.02 if budget == 4.0 else 0.0)
                    found.append(record)
    return found


def lines(records: Sequence[Record]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def write(folder: Path, some: Sequence[Record], *options: str) -> Page:
    """Write a results file, make the report on it, and read that."""
    folder.mkdir(exist_ok=True)
    (folder / "results.jsonl").write_bytes(lines(some))
    assert report.main([str(folder), *options]) == 0
    return Page((folder / "report.html").read_text())


def plan(folder: Path, keys: Sequence[str], file: str = "") -> None:
    """Write what was to be run, and the sweep file that said so."""
    (folder / "cells.json").write_text(json.dumps({"keys": keys, "file": file}))


def sheet(folder: Path, name: str) -> list[dict[str, str]]:
    with open(folder / name, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folder(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the report on all runs."""
    folder = tmp_path_factory.mktemp("out") / "mine"
    write(folder, records)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text())


def changed(record: Record, **to: object) -> Record:
    """A copy with other entries, and a key of its own."""
    other = copy.deepcopy(record) | to
    other["key"] = hashlib.sha256(json.dumps(other).encode()).hexdigest()
    return other


def test_the_page_stands_by_itself_and_has_its_figures_beside_it(page: Page, folder: Path):
    text = (folder / "report.html").read_text()
    assert text.startswith("<!DOCTYPE html>")
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    names = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert tag != "img" or (attributes["alt"] and (attributes["src"] or "").startswith("data:image/png;"))
        href = attributes.get("href")
        assert href is None or (href.startswith("#") and href[1:] in names)
    assert not re.search(r"@import|url\(", text)
    paths = list((folder / "figures").iterdir())
    kinds = ("accuracy", "differences", "kept", "sometimes")
    names = {f"{task}-{kind}-1.png" for kind in kinds for task in ("1-clean", "2-noisy-20")}
    names -= {"2-noisy-20-accuracy-1.png"}  # of one budget
    assert names | {"1-clean-differences-2.png", "glance-1.png"} == {path.name for path in paths}
    shown = page.images()
    for path in paths:
        assert any(np.array_equal(np.asarray(Image.open(path)), image) for image in shown)


def test_numbers_are_the_planted_ones(page: Page, folder: Path):
    # two seeds 1 point apart: the mean ± 12.706 * 0.5
    ucb = ["ucb:keep=0.5", "90.50 [84.15, 96.85]", "+10.00 [+10.00, +10.00]"]
    assert ucb in [row[:3] for row in page.rows]
    assert ["random:keep=0.5", "72.50 [66.15, 78.85]", "-10.00 [-10.00, -10.00]"] in [row[:3] for row in page.rows]
    # what to use: at 4 full training has no larger budget that would tell what is saved
    assert ["clean", "2", ucb[0], ucb[2], "at least +50", "told apart from all 2 others"] in page.rows
    assert ["4", ucb[0], ucb[2], "at least +0", "told apart from all 2 others"] in page.rows
    assert ["noisy, 20 %", "4", ucb[0], ucb[2], "", "told apart from all 2 others"] in page.rows
    # full at twice the budget is 2 points better; two seeds decide nothing
    assert ["ucb:keep=0.5", "2", "4", "undecided", "+8.00 [+8.00, +8.00]", ucb[-1]] in page.rows
    assert ["ucb:keep=0.5", "2", "at least 4", "at least +50"] in page.rows  # saved: full never gets there
    words = " ".join(page.text.split())
    assert "Of 6 comparisons, 3 have their whole interval above 0 and 3 below" in words
    sections = "verdicts of losslessness and compute saved. This needs runs of full"
    assert words.count("Not here:") == words.count(f"Not here: accuracy over budget, {sections}") == 1  # of noisy
    assert re.search(r"about 0\.[12] would on each side", page.text)  # 2.5 % of 6
    # beside the page
    row = next(row for row in sheet(folder, "agents.csv") if row["agent"] == "ucb:keep=0.5")
    assert (row["budget"], row["accuracy"], row["difference"]) == ("2", "90.5", "10")
    assert float(row["accuracy_low"]) == pytest.approx(84.147, abs=1e-3)
    assert {"difference_mean", "difference_low"} <= sheet(folder, "areas.csv")[0].keys() - {"difference"}
    row = next(row for row in sheet(folder, "areas.csv") if row["agent"] == "ucb:keep=0.5")
    assert (row["area"], row["difference_mean"], row["budgets"]) == ("91.5", "10", "2 4")
    row = next(row for row in sheet(folder, "improvements.csv") if row["agent"] == "random:keep=0.5")
    assert (row["probability"], row["cells"], row["difference_low"]) == ("0", "3", "-10")
    assert {row["what"] for row in sheet(folder, "classes.csv")} == {"relative visits", "test accuracy"}
    assert "90.50 [84.15, 96.85] +10.00 [+10.00, +10.00]" in (folder / "table.txt").read_text()


# over 2 s: matplotlib renders the figures
def test_strings_of_users_are_escaped(
    records: list[Record], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(figures, "_small_png", RENDER)
    monkeypatch.setattr(figures, "DPI", 40)
    hostile, odd = '<i onclick="x">&amp;', "learned:caf\udce9/a.zip"  # a byte that is not UTF-8
    names = {"ucb:keep=0.5": HOSTILE, "random:keep=0.5": odd}
    some = [
        changed(record, task=hostile, agent=names.get(record["agent"], record["agent"]))
        for record in records
        if record["task"] == "clean" and record["budget"] == 2.0
    ][:-1]  # one agent has one seed, and so no interval
    run = {"agent": HOSTILE, "task": hostile, "seed": 3, "settings": {"budget": 2.0}}
    failure = {"key": "a", "run": run, "error": "ValueError: <u>", "traceback": "File <string>\n<u>&lt;</pre>"}
    (tmp_path / "failures.jsonl").write_bytes(lines([failure]))
    plan(tmp_path, [*(record["key"] for record in some), "a"], "# </pre><script>\n")
    page = write(tmp_path, some)
    assert not {"script", "b", "i", "u"} & {tag for tag, _ in page.tags}
    assert {HOSTILE, r"learned:caf\xe9/a.zip"} <= {row[0] for row in page.rows}
    assert HOSTILE in {row["agent"] for row in sheet(tmp_path, "agents.csv")}
    assert f"{hostile}, {HOSTILE}, budget 2, seed 3: ValueError: <u>" in page.text
    assert "File <string>\n<u>&lt;</pre>" in page.text
    assert "# </pre><script>" in page.text

    evaluate.report(tmp_path, some)  # the terminal, the curves and the figure take them too
    assert len(list((tmp_path / "tensorboard").iterdir())) == 5
    for text in (capsys.readouterr().out, *((tmp_path / n).read_text() for n in ("curves.csv", "agents.csv"))):
        assert r"learned:caf\xe9" in text


def test_parts_of_a_sweep(records: list[Record], tmp_path: Path):
    clean = [r for r in records if r["task"] == "clean"]
    page = write(tmp_path, [r for r in clean if r["agent"] != "full"])
    assert "the agent full was not run" in page.text
    assert ["ucb:keep=0.5", "90.50 [84.15, 96.85]", ""] in [row[:3] for row in page.rows]

    page = write(tmp_path, [r for r in clean if r["agent"] == "full"])
    assert "No agent dropped anything." in page.text
    assert ["clean", "only full training was run"] in page.rows

    page = write(tmp_path, [r for r in clean if r["seed"] == 0 and r["budget"] == 2.0])
    assert "Nothing can be told apart from full training: no agent has two seeds" in page.text
    assert ["ucb:keep=0.5", "90.00", "+10.00"] in [row[:3] for row in page.rows]  # and no interval
    assert "Few seeds" in page.text
    assert "90.00 [–]" in (tmp_path / "table.txt").read_text()


def test_a_sweep_in_mid_way(records: list[Record], tmp_path: Path):
    """The last cells are missing, an agent has spent too little, a class has no samples."""
    some = copy.deepcopy([record for record in records if record["task"] == "clean" and record["budget"] == 2.0][:-1])
    for record in some[:2]:
        record["results"]["spent"]["total"] = 1.9
    for record in some:
        record["results"]["class_visits"][3] = record["results"]["test_class_accuracy"][3] = None
    page = write(tmp_path, some)
    assert ["full", "1.90 †"] in [[row[0], row[5]] for row in page.rows if len(row) == 9]
    assert ["random:keep=0.5", "1"] in [[row[0], row[-1]] for row in page.rows]  # seeds
    assert {row["3"] for row in sheet(tmp_path, "classes.csv")} == {""}
    told = " ".join((tmp_path / "table.txt").read_text().split())
    assert "full at budget 2 spent less than 98% of the budget" in told
    assert "Of 2 seeds, random:keep=0.5 at 2 has 1." in told


def test_many_agents(records: list[Record], tmp_path: Path):
    """Figures divide them among several images."""
    base = [record for record in records if record["task"] == "clean" and record["budget"] == 4.0]
    some = [record for record in base if record["agent"] == "full"]
    for number in range(14):
        for record in base[2:4]:
            other = changed(record, agent=f"ucb:keep=0.5,c={number}")
            other["results"]["test_accuracy"] = 0.8 + 0.002 * number + 0.01 * record["seed"]
            some.append(other)
    page = write(tmp_path, some)
    assert {f"ucb:keep=0.5,c={number}" for number in range(14)} <= {row[0] for row in page.rows}
    assert len(list((tmp_path / "figures").glob("1-clean-kept-*.png"))) == 2
    use = next(row for row in page.rows if row[:2] == ["clean", "4"])
    assert use[2:4] == ["ucb:keep=0.5,c=13", "+0.60 [+0.60, +0.60]"]


def test_thumbnails_are_the_samples(records: list[Record], tmp_path: Path):
    some = [record for record in records if record["task"] == "noisy, 20 %"]
    page = write(tmp_path, some)
    train, _ = data.load("digits", train_size=100, label_noise=0.2)
    run = next(record for record in some if record["agent"] == "ucb:keep=0.5" and record["seed"] == 0)
    examples = [example for group in run["results"]["sometimes"]["examples"].values() for example in group]
    shown = page.images("sample ")
    assert len(shown) == len(examples) > 0  # of random none are shown
    for picture, (index, share) in zip(shown, examples, strict=True):
        assert np.array_equal(picture, train.images[index, 0].numpy())
        wrong = ", wrong" if train.wrong[index] else ""
        assert f"{train.classes[train.labels[index]]}{wrong}: {share:.0%}" in page.text
    assert ("figure", {"class": "wrong"}) in page.tags
    assert page.text.count("Visits of wrong labels, relative to those of all samples") == 1
    assert "full 1.00" in " ".join(page.text.split())

    others = copy.deepcopy(some)
    for record in others:
        record["configuration"]["data"]["train"] = "0" * 64
    page = write(tmp_path, others)
    assert not page.images("sample ")
    assert "their digest is another" in page.text


def test_photographs_need_a_root(records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What may not be passed on is not shown because an environment variable happens to say where it is."""
    images = tmp_path / "images"
    trees.imagefolder(images, size=80)
    train, _ = data.load("imagefolder", root=images, image_size=80)
    record = changed(next(record for record in records if record["agent"] == "ucb:keep=0.5"))
    record["configuration"]["env"] = "prune_env/ImageFolder-v0"
    record["configuration"]["settings"] = {"image_size": 80, "budget": 2.0}
    record["configuration"]["data"]["train"] = train.digest
    record["results"]["sometimes"]["examples"] = {"always": [[0, 1.0]], "sometimes": [[3, 0.5]], "never": []}
    monkeypatch.setenv("PRUNE_ENV_DATA", str(images))
    page = write(tmp_path, [record])
    assert not page.images("sample ")
    assert "--root, the folder with the images, was not given" in page.text
    page = write(tmp_path, [record], "--root", str(images))
    assert [picture.shape for picture in page.images("sample ")] == [(64, 64, 3)] * 2  # large ones are made smaller
    page = write(tmp_path, [record], "--root", str(tmp_path / "elsewhere"))
    assert "the images were not found; --root says where they are" in page.text


def test_agents_with_switches_are_not_pictured():
    agents = ["ucb:keep=0.5+mixup=0.5", "ucb:keep=0.5,c=1e+1", "mine:A+anneal=0.1", "full", "middle:keep=0.5", "mine:B"]
    assert pictures.pictured(agents) == ["ucb:keep=0.5,c=1e+1", "middle:keep=0.5", "mine:B"]


def test_only_the_cells_of_the_last_plan_count(
    records: list[Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    some = [record for record in records if record["task"] == "clean" and record["budget"] == 2.0]
    newer = changed(next(r for r in some if (r["agent"], r["seed"]) == ("ucb:keep=0.5", 0)))
    newer["results"]["test_accuracy"] = 0.1
    (tmp_path / "superseded").mkdir()
    assert "6 runs of 3 agents on clean" in write(tmp_path / "superseded", [*some, newer]).text
    failures = [
        {"key": key, "run": {**newer, "settings": {"budget": 2.0}}, "error": key, "traceback": ""}
        for key in ("failed-now", "failed-then")
    ]
    (tmp_path / "failures.jsonl").write_bytes(lines(failures) + b'{"key": "torn\n[]\n')
    page = write(tmp_path, [*some, newer])  # without a plan the last counts
    assert any(row[0] == "ucb:keep=0.5" and row[1].startswith("50.50") for row in page.rows)
    assert "2 failed runs" in page.text
    assert "Lines of failures.jsonl that could not be read: 2." in page.text

    plan(tmp_path, [*(record["key"] for record in some), "failed-now", *map(str, range(1993))])
    page = write(tmp_path, [newer, *some, newer])
    assert ["ucb:keep=0.5", "90.50 [84.15, 96.85]"] in [row[:2] for row in page.rows]
    assert "6 of 2,000 planned runs of 3 agents on clean" in page.text
    assert "1 failed run" in page.text
    assert "failed-then" not in page.text

    plan(tmp_path, ["other"])
    assert "no results of the plan" in refusal(tmp_path, capsys)
    (tmp_path / "cells.json").write_bytes(b"{")
    assert "cells.json is damaged" in refusal(tmp_path, capsys)


def test_no_results_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "results.jsonl").write_text("")
    for folder in (tmp_path, tmp_path / "empty", tmp_path / "caf\udce9"):  # the last is not UTF-8
        assert "has no results" in refusal(folder, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    (tmp_path / "empty" / "results.jsonl").write_text("{}\n")
    assert f"there are some in {tmp_path / 'empty'}" in refusal(tmp_path, capsys)


def refusal(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that says why there is no report on a folder."""
    capsys.readouterr()
    assert report.main([str(folder)]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: .*\n", said)
    return said


def test_a_task_where_longer_training_loses(records: list[Record], page: Page, tmp_path: Path):
    assert not [words for words in ("best at budget", "training longer") if words in page.text]
    accuracies = {  # full falls from 3 to 24 and the others do not
        "full": {3.0: 0.90, 6.0: 0.88, 12.0: 0.86, 24.0: 0.82, 48.0: 0.84},
        "ucb:keep=0.5": {3.0: 0.91, 6.0: 0.92, 12.0: 0.85, 24.0: 0.845},
        "random:keep=0.5": {3.0: 0.70, 6.0: 0.88, 24.0: 0.80},
    }
    base = next(record for record in records if record["task"] == "clean")
    some = []
    for agent, budget, seed in [(a, b, s) for a, budgets in accuracies.items() for b in budgets for s in range(5)]:
        some.append(changed(base, agent=agent, budget=budget, seed=seed))
        some[-1]["results"]["test_accuracy"] = accuracies[agent][budget] + 0.001 * seed  # the mean is 0.2 points more
    page = write(tmp_path, some)
    assert "Full training is best at budget 3: 90.20 %, and 84.20 % at 48." in page.text
    uses = [row[-5:-3] for row in page.rows[1:5]]
    assert uses == [["3", "ucb:keep=0.5"], ["6", "ucb:keep=0.5"], ["12", "full"], ["24", "ucb:keep=0.5"]]
    verdicts = {(row[0], row[1]): row[3] for row in page.rows if len(row) == 6 and row[2] in ("6", "12", "24", "48")}
    assert verdicts["ucb:keep=0.5", "12"] == "lossless (so is full itself)"
    assert verdicts["ucb:keep=0.5", "24"] == "lossless"  # full itself loses 2 points
    assert verdicts["random:keep=0.5", "24"] == "lossy"
    assert "Lossless where full itself is not found so: ucb:keep=0.5 at budget 24." in page.text
    assert "At 3 against 6, 6 against 12 and 12 against 24 training longer brings nothing" in page.text
    # 85.2 %, which full has at 3 already, and at 24 not
    assert ["ucb:keep=0.5", "12", "at most 3", "at most -300"] in page.rows
    assert ["ucb:keep=0.5", "6", "at least 48", "at least +88"] in page.rows


def test_configurations_and_commits_that_differ_are_shown(records: list[Record], tmp_path: Path):
    some = copy.deepcopy([record for record in records if record["task"] == "clean"])
    for record in some:
        record["rate"] = "customary, not tuned"
        record["provenance"] |= {"commit": "a" * 40, "dirty": False}
    some[0]["configuration"]["recipe"]["lr"] = 7.25
    some[0]["provenance"]["commit"] = "b" * 40
    page = write(tmp_path, some)
    lr = some[1]["configuration"]["recipe"]["lr"]
    assert ["lr", f"7.25 at 2; {lr} at 2 and 4"] in page.rows
    for text in (page.text, (tmp_path / "table.txt").read_text()):
        assert "Learning rate: customary, not tuned." in text
        assert "Mixed commits: aaaaaaa (11), bbbbbbb (1); --fresh runs all anew." in text


OTHERS = ("digits", "digits-trouble", "cifar10-cpu", "cifar10-trouble", "transfer")


@pytest.mark.parametrize(
    "name",
    ["tiny20-cpu", "easy", "tune-first", "rho-loss", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)],
)
def test_the_committed_table_is_that_of_the_committed_records(name: str, tmp_path: Path):
    results = RESULTS / name  # compressed
    before = set(results.iterdir())
    assert report.main([str(results), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "table.txt").read_bytes() == (results / "table.txt").read_bytes()
    assert set(results.iterdir()) == before


@pytest.mark.slow
def test_the_committed_comparison_is_that_of_the_committed_accuracies(capsys: pytest.CaptureFixture[str]):
    results = RESULTS / "learned" / "digits"
    assert heldout.main(["compare", "learned", str(results)]) == 0
    shown = "".join(line.rstrip() + "\n" for line in capsys.readouterr().out.splitlines())
    assert shown == (results / "comparison.txt").read_text()
