"""`python -m train.report`: the file as a browser would read it, and the numbers and pictures in it."""

import base64
import copy
import hashlib
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prune_env import data, io
from tests.helpers import trees
from train import report
from train.analysis import pictures, plots, summary, table
from train.execution import provenance, results
from train.execution.results import Record
from train.execution.run import Run, play

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
    return np.asarray(Image.open(BytesIO(base64.b64decode(content, validate=True))))


@pytest.fixture(autouse=True, scope="module")
def _small_figures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "DPI", 40)  # a fifth of the time
        yield


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


def write(folder: Path, some: Sequence[Record], *options: str) -> Page:
    """Write a results file, make the report on it, and read that."""
    folder.mkdir(exist_ok=True)
    results.write(folder / "results.jsonl", some)
    assert report.main([str(folder), *options]) == 0
    return Page((folder / "report.html").read_text())


def plan(folder: Path, keys: Sequence[str], file: str = "") -> None:
    """Write what was to be run, and the sweep file that said so."""
    (folder / "cells.json").write_bytes(io.seal_line(results.CELLS, {"keys": keys, "file": file}))


@pytest.fixture(scope="module")
def folder(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the report on all runs."""
    folder = tmp_path_factory.mktemp("out") / "mine"
    write(folder, records)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text())


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made and not drawn, where a test is of something else: it takes most of the time."""
    png = BytesIO()
    Image.new("L", (1, 1)).save(png, "png")
    monkeypatch.setattr(plots, "_png", lambda figure: png.getvalue())


def changed(record: Record, **to: object) -> Record:
    """A copy with other entries, and a key of its own."""
    other = copy.deepcopy(record) | to
    other["key"] = hashlib.sha256(json.dumps(other).encode()).hexdigest()
    return other


def test_the_page_stands_by_itself_and_holds_every_cell(records: list[Record], page: Page, folder: Path):
    text = (folder / "report.html").read_text()
    assert text.startswith("<!DOCTYPE html>")
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    names = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("src") or "data:image/png;").startswith("data:image/png;")
        href = attributes.get("href")
        assert href is None or (href.startswith("#") and href[1:] in names)
    assert not re.search(r"@import|url\(", text)
    assert all(attributes["alt"] for attributes in page.all("img"))
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert len([row for row in page.rows if row[0] == "agent" and "worst class %" in row]) == 4  # tasks x budgets
    for task, of_task in summary.by_task(records).items():
        assert task in page.text
        for agents in results.grouped(of_task).values():
            for row in table.rows(agents):
                low, high = row.accuracy_interval
                shown = [row.agent, f"{row.accuracy:.2f} [{low:.2f}, {high:.2f}]"]
                assert shown in [found[:2] for found in page.rows]


def test_numbers_are_the_planted_ones(page: Page):
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
    assert ["ucb:keep=0.5", "1.00 [1.00, 1.00]", "+10.00 [+10.00, +10.00]", "4", "8"] in page.rows  # improvement
    assert "4 have their whole interval above 0 and 4 below" in page.text


def test_figures_lie_beside_the_page(page: Page, folder: Path):
    shown = [_decoded(attributes["src"]) for attributes in page.all("img")]
    names = {path.name for path in (folder / "figures").iterdir()}
    kinds = ("accuracy", "differences", "seconds", "kept", "visits", "classes", "sometimes")
    for task in ("1-clean", "2-noisy-20"):
        assert {f"{task}-{kind}-1.png" for kind in kinds} <= names
    assert "2-noisy-20-wrong-1.png" in names
    assert "1-clean-wrong-1.png" not in names  # no wrong labels
    assert "profile-1.png" in names
    for path in (folder / "figures").iterdir():
        assert any(np.array_equal(np.asarray(Image.open(path)), image) for image in shown)


def test_the_same_results_give_the_same_bytes(records: list[Record], tmp_path: Path):
    def contents() -> dict[str, bytes]:
        write(tmp_path / "mine", [record for record in records if record["task"] == "clean"][:6])
        return {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    first = contents()
    assert contents() == first
    assert not [path for path in first if Path(path).name.startswith(".")]


def test_strings_of_users_are_escaped(records: list[Record], tmp_path: Path):
    hostile = '<i onclick="x">&amp;'
    some = [
        changed(record, task=hostile, agent=HOSTILE if record["agent"].startswith("ucb") else record["agent"])
        for record in records
        if record["task"] == "clean" and record["budget"] == 2.0
    ]
    run = {"agent": HOSTILE, "task": hostile, "seed": 3, "settings": {"budget": 2.0}}
    failure = {"key": "a", "run": run, "error": "ValueError: <u>", "traceback": "File <string>\n<u>&lt;</pre>"}
    results.write(tmp_path / "failures.jsonl", [failure])
    plan(tmp_path, [*(record["key"] for record in some), "a"], "# </pre><script>\n")
    page = write(tmp_path, some)
    assert not {"script", "b", "i", "u"} & {tag for tag, _ in page.tags}
    assert HOSTILE in [row[0] for row in page.rows]
    assert f"{hostile}, {HOSTILE}, budget 2, seed 3: ValueError: <u>" in page.text
    assert "File <string>\n<u>&lt;</pre>" in page.text
    assert "# </pre><script>" in page.text


@pytest.mark.usefixtures("undrawn")
def test_a_task_without_full(records: list[Record], tmp_path: Path):
    page = write(tmp_path, [r for r in records if r["task"] == "clean" and r["agent"] != "full"])
    assert "the agent full was not run" in page.text
    assert ["ucb:keep=0.5", "90.50 [90.00, 91.00]", ""] in [row[:3] for row in page.rows]


@pytest.mark.usefixtures("undrawn")
def test_only_full(records: list[Record], tmp_path: Path):
    page = write(tmp_path, [r for r in records if r["task"] == "clean" and r["agent"] == "full"])
    assert "No agent dropped anything." in page.text
    assert ["4", "full", "82.50 [82.00, 83.00]", "", "–"] in page.rows


def test_one_seed(records: list[Record], tmp_path: Path):
    page = write(tmp_path, [r for r in records if r["task"] == "clean" and r["seed"] == 0 and r["budget"] == 2.0])
    assert "Nothing can be told apart from full training: no agent has two seeds" in page.text
    assert ["ucb:keep=0.5", "90.00", "+10.00"] in [row[:3] for row in page.rows]  # and no interval
    assert "Few seeds" in page.text


def test_a_sweep_in_mid_way(records: list[Record], tmp_path: Path):
    """The last cells are missing, an agent has spent too little, another diverged, a class has no samples."""
    some = copy.deepcopy([record for record in records if record["task"] == "clean"][:-3])
    for record in some[:2]:
        record["results"]["spent"]["total"] = 1.9
    some[2]["results"]["diverged"] = True
    for record in some:
        record["results"]["class_visits"][3] = record["results"]["test_class_accuracy"][3] = None
    page = write(tmp_path, some)
    assert "less than 98% of the budget was spent" in page.text
    assert ["full", "1.90 †"] in [[row[0], row[7]] for row in page.rows if len(row) > 7]
    assert "ucb:keep=0.5 (1 diverged)" in [row[0] for row in page.rows]
    assert ["ucb:keep=0.5", "1"] in [[row[0], row[-1]] for row in page.rows]  # seeds


@pytest.mark.usefixtures("undrawn")
def test_many_agents(records: list[Record], tmp_path: Path):
    """Figures divide them among several images; one is far below the others."""
    base = [record for record in records if record["task"] == "clean" and record["budget"] == 4.0]
    some = [record for record in base if record["agent"] == "full"]
    for number in range(14):
        for record in base[2:4]:
            other = changed(record, agent=f"ucb:keep=0.5,c={number}")
            other["results"]["test_accuracy"] = 0.1 if number == 5 else 0.9 + 0.002 * number
            some.append(other)
    page = write(tmp_path, some)
    assert {f"ucb:keep=0.5,c={number}" for number in range(14)} <= {row[0] for row in page.rows}
    for kind in ("accuracy", "kept", "visits"):
        assert len(list((tmp_path / "figures").glob(f"1-clean-{kind}-*.png"))) == 2
    assert "At budget 4 ucb:keep=0.5,c=13, +10.10 [+9.60, +10.60] points; 12 other agents by less." in page.text


@pytest.mark.usefixtures("undrawn")
def test_thumbnails_are_the_samples(records: list[Record], tmp_path: Path):
    some = [record for record in records if record["task"] == "noisy, 20 %" and record["budget"] == 4.0]
    page = write(tmp_path, some)
    train, _ = data.load("digits", train_size=100, label_noise=0.2)
    run = next(record for record in some if record["agent"] == "ucb:keep=0.5" and record["seed"] == 0)
    examples = [example for group in run["results"]["sometimes"]["examples"].values() for example in group]
    pictures = page.thumbnails()
    assert len(pictures) == len(examples) > 0  # of random none are shown
    for picture, (index, share) in zip(pictures, examples, strict=True):
        assert np.array_equal(picture, train.images[index, 0].numpy())
        wrong = ", wrong" if train.wrong[index] else ""
        assert f"{train.classes[train.labels[index]]}{wrong}: {share:.0%}" in page.text
    assert {"class": "wrong"} in page.all("figure")

    others = copy.deepcopy(some)
    for record in others:
        record["configuration"]["data"]["train"] = "0" * 64
    page = write(tmp_path, others)
    assert not page.thumbnails()
    assert "their digest is another" in page.text


@pytest.mark.usefixtures("undrawn")
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
    monkeypatch.delenv("PRUNE_ENV_DATA", raising=False)
    assert "--root" in write(tmp_path, [record]).text
    monkeypatch.setenv("PRUNE_ENV_DATA", str(images))
    page = write(tmp_path, [record])
    assert not page.thumbnails()
    assert "--root, the folder with the images, was not given" in page.text
    page = write(tmp_path, [record], "--root", str(images))
    assert [picture.shape for picture in page.thumbnails()] == [(64, 64, 3)] * 2  # large ones are made smaller
    assert "cat: 100%" in page.text


@pytest.mark.usefixtures("undrawn")
def test_a_file_that_is_being_written_is_left_alone(records: list[Record], tmp_path: Path):
    some = [record for record in records if record["task"] == "clean" and record["budget"] == 2.0]
    write(tmp_path, some)
    path = tmp_path / "results.jsonl"
    with path.open("a") as file:
        file.write('{"key": "torn')
    (tmp_path / "failures.jsonl").write_text('{"key": "torn\n{"key": "torn')
    before = path.read_bytes()
    assert report.main([str(tmp_path)]) == 0
    assert path.read_bytes() == before
    page = (tmp_path / "report.html").read_text()
    assert "Lines of results.jsonl that could not be read: 1." in page
    assert "Lines of failures.jsonl that could not be read: 2." in page
    assert len(results.read(path)[0]) == len(some)
    assert path.read_bytes() != before  # who goes on writing repairs it


def test_only_the_cells_of_the_last_plan_count(
    records: list[Record], tmp_path: Path, capsys: pytest.CaptureFixture[str], undrawn: None
):
    some = [record for record in records if record["task"] == "clean" and record["budget"] == 2.0]
    older = next(record for record in some if (record["agent"], record["seed"]) == ("ucb:keep=0.5", 0))
    newer = changed(older)
    newer["configuration"]["recipe"]["lr"] = 7.25
    newer["results"]["test_accuracy"] = 0.1
    failures = [
        {"key": key, "run": {**older, "settings": {"budget": 2.0}}, "error": key, "traceback": ""}
        for key in ("failed-now", "failed-then")
    ]
    results.write(tmp_path / "failures.jsonl", failures)

    page = write(tmp_path, [*some, newer])
    assert ["ucb:keep=0.5", "50.50 [10.00, 91.00]"] in [row[:2] for row in page.rows]  # without a plan the last counts
    assert "7 runs of" not in page.text
    assert "2 failed runs" in page.text

    keys = [record["key"] for record in some]
    plan(tmp_path, [*keys, "failed-now", *map(str, range(1993))])
    page = write(tmp_path, [newer, *some, newer])
    assert ["ucb:keep=0.5", "90.50 [90.00, 91.00]"] in [row[:2] for row in page.rows]
    assert "6 of 2,000 planned runs of 3 agents on clean" in page.text
    assert "7.25" not in page.text
    assert "1 failed run" in page.text
    assert "failed-then" not in page.text

    plan(tmp_path, keys[::-1])
    page = write(tmp_path, [*some, newer])
    assert "6 runs of 3 agents on clean" in page.text
    assert "planned" not in page.text

    for other in ([], ["other"]):
        plan(tmp_path, other)
        assert refusal(tmp_path, capsys).endswith("what train.sweep wrote?\n")
    plan(tmp_path, keys, "agents = []\n")
    whole = (tmp_path / "cells.json").read_bytes()
    for damaged in (b"", b"{", b"[]\n", json.dumps(keys).encode(), whole[:-20], whole.replace(b"agents", b"agentz")):
        (tmp_path / "cells.json").write_bytes(damaged)
        assert "cells.json is damaged or of another format" in refusal(tmp_path, capsys)


def refusal(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that says why there is no report on a folder."""
    capsys.readouterr()
    assert report.main([str(folder)]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: .*\n", said)
    return said


FALLING = {  # full falls from 3 to 24 and the others do not
    "full": {3.0: 0.90, 6.0: 0.88, 12.0: 0.86, 24.0: 0.82, 48.0: 0.84},
    "ucb:keep=0.5": {3.0: 0.91, 6.0: 0.92, 12.0: 0.85, 24.0: 0.845},
    "random:keep=0.5": {3.0: 0.70, 6.0: 0.88, 24.0: 0.80},
    "infobatch": {3.0: 0.89, 6.0: 0.91},
    "ucb:keep=0.3": {3.0: 0.80},
    "full+mixup=0.5": {3.0: 0.88},
}


@pytest.mark.usefixtures("undrawn")
def test_a_task_where_longer_training_loses(records: list[Record], tmp_path: Path):
    base = next(record for record in records if record["task"] == "clean")
    some = []
    for agent, accuracies in FALLING.items():
        for budget, accuracy in accuracies.items():
            for seed in range(5):
                other = changed(base, agent=agent, budget=budget, seed=seed)
                other["results"]["test_accuracy"] = accuracy + 0.001 * seed  # the mean is 0.2 points more
                some.append(other)
    page = write(tmp_path, some)

    # the first screen
    assert (
        "More compute than budget 6 does not help here: the highest mean of all, 92.20 %, is ucb:keep=0.5's at "
        "budget 6. Full training is best at budget 3: 90.20 %, and 84.20 % at 48."
    ) in page.text
    bests = [row for row in page.rows if row[0] in ("3", "6", "12", "24", "48") and len(row) == 5]
    assert [row[:2] for row in bests] == [
        ["3", "ucb:keep=0.5"],
        ["6", "ucb:keep=0.5"],
        ["12", "full"],
        ["24", "ucb:keep=0.5"],
    ]
    assert "Alone at a budget" not in page.text  # full at 48 is there to compare with

    # lossless
    rows = {(row[0], row[1]): row[3] for row in page.rows if len(row) == 6 and row[2] in ("6", "12", "24", "48")}
    assert rows == {
        ("ucb:keep=0.5", "3"): "lossless (so is full itself)",
        ("ucb:keep=0.5", "6"): "lossless (so is full itself)",
        ("ucb:keep=0.5", "12"): "lossless (so is full itself)",
        ("ucb:keep=0.5", "24"): "lossless",  # full itself loses 2 points
        ("random:keep=0.5", "3"): "lossy",
        ("random:keep=0.5", "6"): "lossless (so is full itself)",
        ("random:keep=0.5", "24"): "lossy",
    }
    assert "Lossless where full itself is not found so: ucb:keep=0.5 at budget 24." in page.text
    assert (
        "At 3 against 6 (+2.00 [+2.00, +2.00] points), 6 against 12 (+2.00 [+2.00, +2.00] points) and 12 against 24 "
        "(+4.00 [+4.00, +4.00] points) training longer brings nothing: full itself at the smaller budget is lossless"
    ) in page.text
    assert "5 lossless (4 where full itself is), 0 undecided, 2 lossy" in page.text
    assert "7 verdicts, each by itself" in page.text
    assert "Never a verdict: infobatch and full+mixup=0.5." in page.text
    assert "No verdict: ucb:keep=0.3." in page.text

    # savings
    assert ["ucb:keep=0.5", "12", "≤ 3", "≤ -300"] in page.rows  # 85.2 %, which full has at 3 already, and at 24 not
    assert ["ucb:keep=0.5", "6", "≥ 48", "≥ +88"] in page.rows
    assert (
        "Full's mean falls somewhere with the budget here: 90.20 % at 3, 88.20 % at 6, 86.20 % at 12, 82.20 % at 24 "
        "and 84.20 % at 48."
    ) in page.text


def test_where_full_rises_nothing_is_said_of_falling(page: Page):
    for words in ("does not help", "Full training is best", "mean falls", "training longer", "so is full"):
        assert words not in page.text
    assert "Lossless: none." in page.text
    assert "From here on all is of budget 4, the largest of those at which most agents ran: 3 of 3." in page.text


@pytest.mark.usefixtures("undrawn")
def test_several_configurations_and_codes_are_shown(records: list[Record], tmp_path: Path):
    some = copy.deepcopy([record for record in records if record["task"] == "clean"])
    for record in some:
        record["provenance"]["agent_digest"] = record["agent"].encode().hex().ljust(64, "0")
    some[0]["configuration"]["recipe"]["lr"] = 7.25
    some[0]["configuration"]["settings"]["momentum"] = 0.125  # the others do not set it
    some[0]["provenance"]["agent_digest"] = "f" * 64
    page = write(tmp_path, some)
    lr = some[1]["configuration"]["recipe"]["lr"]
    assert ["lr", f"7.25 (1 run) and {lr} (5 runs) at 2; {lr} at 4"] in page.rows
    assert ["momentum", "0.125 (1 run) and None (5 runs) at 2; None at 4"] in page.rows
    digests = {agent: agent.encode().hex().ljust(64, "0")[:12] for agent in SPECS}
    assert ["full", f"{'f' * 12} (1 run) and {digests['full']} (3 runs) several"] in page.rows
    assert ["random:keep=0.5", digests["random:keep=0.5"]] in page.rows
    assert "Code of the agents, SHA-256 (1 agent with several)" in page.text


def test_agents_with_switches_are_not_pictured():
    agents = ["ucb:keep=0.5+mixup=0.5", "ucb:keep=0.5,c=1e+1", "mine:A+anneal=0.1", "full", "middle:keep=0.5", "mine:B"]
    assert pictures.pictured(agents) == ["ucb:keep=0.5,c=1e+1", "middle:keep=0.5", "mine:B"]
    assert pictures.pictured(["full+mixup=0.5", "ucb:keep=0.5+mixup=0.5"]) == []


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
