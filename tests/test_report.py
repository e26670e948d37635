"""`python -m train.report`: the file as a browser would read it, and the numbers and pictures in it."""

import base64
import copy
import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prune_env import data
from tests import trees
from train import plots, provenance, report, results, summary, table
from train.episode import Run, play
from train.results import Record

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
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert tag not in VOID
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if "td" in self._open or "th" in self._open:
            self.rows[-1][-1] += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        """The attributes of the elements called so."""
        return [attributes for tag, attributes in self.tags if tag == name]

    def thumbnails(self) -> list[np.ndarray]:
        """The pictures of samples."""
        return [_decoded(a["src"]) for a in self.all("img") if (a["alt"] or "").startswith("sample ")]


def _decoded(source: str | None) -> np.ndarray:
    kind, _, content = (source or "").partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content, validate=True))))


@pytest.fixture(autouse=True)
def _small_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "DPI", 40)  # a fifth of the time


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """Real runs: two tasks, two budgets, two seeds, with planted test accuracies."""
    found = []
    for task, settings in TASKS.items():
        for budget in (2.0, 4.0):
            kwargs = {**settings, "train_size": 100, "budget": budget, "device": "cpu"}
            env = Run("prune_env/Digits-v0", kwargs, "full", 0).make_env()
            for agent in SPECS:
                for seed in (0, 1):
                    record = play(Run("prune_env/Digits-v0", kwargs, agent, seed, task), env)
                    record["provenance"] |= {**provenance.of_code(), "command": "python -m train.sweep a.toml"}
                    record["results"]["test_accuracy"] = PLANTED[agent] + 0.01 * seed + (0.02 if budget == 4.0 else 0.0)
                    found.append(record)
    return found


Make = Callable[..., tuple[Page, Path]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a results file and make the report on it: the page and the folder."""

    def written(some: Sequence[Record], *options: str) -> tuple[Page, Path]:
        folder = tmp_path / "mine"
        folder.mkdir(exist_ok=True)
        (folder / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in some))
        assert report.main([str(folder), *options]) == 0
        return Page((folder / "report.html").read_text()), folder

    return written


def changed(record: Record, **to: object) -> Record:
    """A copy with other entries, and a key of its own."""
    other = copy.deepcopy(record) | to
    other["key"] = hashlib.sha256(json.dumps(other).encode()).hexdigest()
    return other


def test_the_page_stands_by_itself_and_holds_every_cell(records: list[Record], make: Make):
    page, folder = make(records)
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    names = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("src") or "data:image/png;").startswith("data:image/png;")
        href = attributes.get("href")
        assert href is None or (href.startswith("#") and href[1:] in names)
    assert not re.search(r"@import|url\(", (folder / "report.html").read_text())
    assert all(attributes["alt"] for attributes in page.all("img"))
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    headings = [row for row in page.rows if row[0] == "agent" and "worst class %" in row]
    assert len(headings) == 4  # tasks x budgets
    for task, of_task in summary.by_task(records).items():
        assert task in page.text
        for agents in results.grouped(of_task).values():
            for row in table.rows(agents):
                low, high = row.accuracy_interval
                shown = [row.agent, f"{row.accuracy:.2f} [{low:.2f}, {high:.2f}]"]
                assert shown in [found[:2] for found in page.rows]


def test_numbers_are_the_planted_ones(records: list[Record], make: Make):
    page, _ = make([record for record in records if record["task"] == "clean"])
    # differences are the same for both seeds: their intervals have no width
    assert ["ucb:keep=0.5", "90.50 [90.00, 91.00]", "+10.00 [+10.00, +10.00]"] in [row[:3] for row in page.rows]
    assert ["random:keep=0.5", "72.50 [72.00, 73.00]", "-10.00 [-10.00, -10.00]"] in [row[:3] for row in page.rows]
    best = ["2", "ucb:keep=0.5", "90.50 [90.00, 91.00]", "+10.00 [+10.00, +10.00]", "none: every other is told apart"]
    assert best in page.rows
    assert "At budget 2 ucb:keep=0.5, +10.00 [+10.00, +10.00] points." in page.text
    # full at twice the budget is 2 points better; two seeds decide nothing
    lossless = ["ucb:keep=0.5", "2", "4", "undecided", "+8.00 [+8.00, +8.00]", "+10.00 [+10.00, +10.00]"]
    assert lossless in page.rows
    assert ["ucb:keep=0.5", "2", "≥ 4", "≥ +50"] in page.rows  # saved: full never gets there
    assert ["ucb:keep=0.5", "91.50 [91.00, 92.00]", "+10.00 [+10.00, +10.00]"] in page.rows  # area
    assert ["ucb:keep=0.5", "1.00 [1.00, 1.00]", "+10.00 [+10.00, +10.00]", "2", "4"] in page.rows  # improvement
    assert "2 have their whole interval above 0 and 2 below" in page.text


def test_figures_lie_beside_the_page(records: list[Record], make: Make):
    page, folder = make(records)
    shown = [_decoded(attributes["src"]) for attributes in page.all("img") if attributes["alt"]]
    names = {path.name for path in (folder / "figures").iterdir()}
    kinds = ("accuracy", "differences", "seconds", "kept", "visits", "classes", "sometimes")
    for task in ("1-clean", "2-noisy-20"):
        assert {f"{task}-{kind}-1.png" for kind in kinds} <= names
    assert "2-noisy-20-wrong-1.png" in names
    assert "1-clean-wrong-1.png" not in names  # no wrong labels
    assert "profile-1.png" in names
    for path in (folder / "figures").iterdir():
        image = np.asarray(Image.open(path))
        assert any(np.array_equal(image, other) for other in shown)


def test_the_same_results_give_the_same_bytes(records: list[Record], make: Make):
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    some = [record for record in records if record["task"] == "clean" and record["budget"] == 2.0]
    _, folder = make(some)
    first = contents()
    make(some)
    assert contents() == first
    assert not [path for path in first if path.name.startswith(".")]


def test_strings_of_users_are_escaped(records: list[Record], make: Make):
    hostile = '<i onclick="x">&amp;'
    some = [
        changed(record, task=hostile, agent=HOSTILE if record["agent"].startswith("ucb") else record["agent"])
        for record in records
        if record["task"] == "clean" and record["budget"] == 2.0
    ]
    folder = make(some)[1]
    run = {"agent": HOSTILE, "task": hostile, "seed": 3, "settings": {"budget": 2.0}}
    failure = {"key": "a", "run": run, "error": "ValueError: <u>", "traceback": "File <string>\n<u>&lt;</pre>"}
    (folder / "failures.jsonl").write_text(json.dumps(failure) + "\n")
    (folder / "sweep.toml").write_text("# </pre><script>\n")
    page, _ = make(some)
    assert not {"script", "b", "i", "u"} & {tag for tag, _ in page.tags}
    assert HOSTILE in [row[0] for row in page.rows]
    assert f"{hostile}, {HOSTILE}, budget 2, seed 3: ValueError: <u>" in page.text
    assert "File <string>\n<u>&lt;</pre>" in page.text
    assert "# </pre><script>" in page.text


def test_what_is_not_there_is_left_out(records: list[Record], make: Make):
    clean = [record for record in records if record["task"] == "clean"]
    one_seed = [record for record in clean if record["seed"] == 0 and record["budget"] == 2.0]
    page, _ = make(one_seed)
    assert "Nothing can be told apart from full training: no agent has two seeds" in page.text
    assert ["ucb:keep=0.5", "90.00", "+10.00"] in [row[:3] for row in page.rows]  # and no interval
    assert "Few seeds" in page.text

    page, _ = make([record for record in clean if record["agent"] != "full"])
    assert "the agent full was not run" in page.text
    assert ["ucb:keep=0.5", "90.50 [90.00, 91.00]", ""] in [row[:3] for row in page.rows]

    only_full = [record for record in clean if record["agent"] == "full"]
    page, _ = make(only_full)
    assert "No agent dropped anything." in page.text

    # in mid-way: the last cells are missing, an agent has spent too little, another has diverged
    some = copy.deepcopy(clean[:-3])
    some[0]["results"]["spent"]["total"] = 1.9
    some[2]["results"]["diverged"] = True
    some[2]["results"]["class_visits"][3] = some[2]["results"]["test_class_accuracy"][3] = None
    page, _ = make(some)
    assert "less than 98% of the budget was spent" in page.text
    assert "ucb:keep=0.5 (1 diverged)" in [row[0] for row in page.rows]


def test_many_agents_and_budgets(records: list[Record], make: Make):
    """Cells that the figures divide among several images; one far below the others."""
    base = [record for record in records if record["task"] == "clean" and record["budget"] == 4.0]
    some = [record for record in base if record["agent"] == "full"]
    for number in range(14):
        for record in base[2:4]:
            other = changed(record, agent=f"ucb:keep=0.5,c={number}")
            other["results"]["test_accuracy"] = 0.1 if number == 5 else 0.8 + 0.002 * number
            some.append(other)
    page, folder = make(some)
    shown = {row[0] for row in page.rows}
    assert {f"ucb:keep=0.5,c={number}" for number in range(14)} <= shown
    for kind in ("accuracy", "kept", "visits"):
        assert len(list((folder / "figures").glob(f"1-clean-{kind}-*.png"))) == 2
    assert "13 other agents by less" not in page.text  # c=5 is far worse, and the first three no better
    assert "At budget 4 ucb:keep=0.5,c=13" in page.text


def test_thumbnails_are_the_samples(records: list[Record], make: Make):
    some = [record for record in records if record["task"] == "noisy, 20 %" and record["budget"] == 4.0]
    page, _ = make(some)
    train, _ = data.load("digits", train_size=100, label_noise=0.2)
    run = next(record for record in some if record["agent"] == "ucb:keep=0.5" and record["seed"] == 0)
    examples = [example for group in run["results"]["sometimes"]["examples"].values() for example in group]
    assert examples
    pictures = page.thumbnails()
    assert len(pictures) == len(examples)  # of random none are shown
    for picture, (index, share) in zip(pictures, examples, strict=True):
        assert np.array_equal(picture, train.images[index, 0].numpy())
        wrong = ", wrong" if train.wrong[index] else ""
        assert f"{train.classes[train.labels[index]]}{wrong}: {share:.0%}" in page.text
    assert {"class": "wrong"} in page.all("figure")

    for record in (others := copy.deepcopy(some)):
        record["configuration"]["data"]["train"] = "0" * 64
    page, _ = make(others)
    assert not page.thumbnails()
    assert "their digest is another" in page.text


def test_photographs_need_a_root(records: list[Record], make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What may not be passed on is not shown because an environment variable happens to say where it is."""
    images = tmp_path / "images"
    trees.imagefolder(images, size=80)
    train, _ = data.load("imagefolder", root=images, image_size=80)
    base = next(record for record in records if record["agent"] == "ucb:keep=0.5")
    record = changed(base)
    record["configuration"]["env"] = "prune_env/ImageFolder-v0"
    record["configuration"]["settings"] = {"image_size": 80, "budget": 2.0}
    record["configuration"]["data"]["train"] = train.digest
    record["results"]["sometimes"]["examples"] = {"always": [[0, 1.0]], "sometimes": [[3, 0.5]], "never": []}
    page, _ = make([record])
    assert "--root" in page.text
    monkeypatch.setenv("PRUNE_ENV_DATA", str(images))
    page, _ = make([record])
    assert not page.thumbnails()
    assert "--root, the folder with the images, was not given" in page.text
    page, _ = make([record], "--root", str(images))
    assert [picture.shape for picture in page.thumbnails()] == [(64, 64, 3)] * 2  # large ones are made smaller
    assert "cat: 100%" in page.text


def test_a_file_that_is_being_written_is_left_alone(records: list[Record], make: Make):
    some = [record for record in records if record["task"] == "clean" and record["budget"] == 2.0]
    _, folder = make(some)
    path = folder / "results.jsonl"
    with path.open("a") as file:
        file.write('{"key": "torn')
    before = path.read_bytes()
    assert report.main([str(folder)]) == 0
    assert path.read_bytes() == before
    assert "could not be read: 1." in (folder / "report.html").read_text()
    assert len(results.read(path)[0]) == len(some)
    assert path.read_bytes() != before  # who goes on writing repairs it


def test_no_results_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "results.jsonl").write_text("")
    for folder in (tmp_path, tmp_path / "empty", tmp_path / "absent"):
        before = sorted(tmp_path.rglob("*"))
        assert report.main([str(folder)]) == 2
        assert sorted(tmp_path.rglob("*")) == before
        out, err = capsys.readouterr()
        assert not out
        assert re.fullmatch(r"error: .*has no results.*\n", err)
