"""README.md and docs/: their Python and commands run, page by page, as a reader would; links lead somewhere."""

import itertools
import math
import os
import re
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path

import pytest
import torch
import tyro

import agents
from prune_env import __main__ as command
from prune_env.policy.features import FEATURES
from prune_env.policy.learned import SHIPPED
from prune_env.policy.rules import RULE_PARAMETERS
from tests.helpers.processes import fork, wait
from train import heldout
from train.execution.run import CURVE

ROOT = Path(__file__).parents[1]
PAGES = [path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))]
PAGES.append("results/README.md")
BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```", re.M | re.S)
PART = re.compile(r'^```(python|bash)(?: title="([^"]*)")?\n(.*?)^```|`(prune-env [^`]*)`', re.M | re.S)
ON_RANKS = "init_process_group"  # in a block that is for torchrun
SHORT = {"range(60)": "range(6)", "epochs=10": "epochs=2"}
FEW = ["--seeds", "1", "--budget", "1", "--workers", "0"]
SWEEP = 'agents = ["full"]\nbudgets = [1]\nseeds = 1\n[tasks.clean]\nenv = "prune_env/Digits-v0"\n'
ELSEWHERE = ("learn", "tune", "proxies", "heldout")  # programs that other tests run


def blocks(page: str) -> list:
    """Return the code of each block, compiled so that an error names the page's line."""
    text = (ROOT / page).read_text()
    return [compile("\n" * text[: b.start(1)].count("\n") + b[1], page, "exec") for b in BLOCK.finditer(text)]


def commands(text: str) -> Iterator[list[str]]:
    """Yield the arguments of each `prune-env` in lines of a shell."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in line.split("&&"):
            words = [word for word in shlex.split(part, comments=True) if word != "..."]
            if "prune-env" in words:
                yield words[words.index("prune-env") + 1 :]


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Run a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("my_agents", "my_policy"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def run(arguments: list[str]) -> int:
        monkeypatch.setattr(sys, "argv", ["prune-env", *arguments])
        return command.main()

    return run


# over 2 s: a page trains ten students and more
@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{name}.md" for name in ("index", "agents", "policies", "images"))]
)
def test_a_page_can_be_followed(page, call, tmp_path):
    for path, text in (
        ("runs/learn/digits-ppo-0/policy.npz", SHIPPED.read_bytes()),
        ("sweeps/digits.toml", SWEEP.encode()),
    ):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_bytes(text)
    namespace: dict = {"__name__": "page"}
    for language, title, text, inline in PART.findall((ROOT / page).read_text()):
        if language == "python":
            if title:
                (tmp_path / title).write_text(text)
            for old, new in SHORT.items():
                text = text.replace(old, new)
            exec(compile(text, page, "exec"), namespace)
            continue
        for program, *rest in commands(text or inline.replace("\n", " ")):
            if rest and "DIR" not in rest and "--help" not in rest and program not in ELSEWHERE:
                few = FEW if program == "evaluate" else FEW[-2:] if program == "sweep" else []
                assert call([program, *rest, *few]) == 0, rest


class Parsed(Exception):
    """The arguments of a program were right."""


def test_the_commands_of_all_pages_have_the_options_of_their_programs(call, monkeypatch):
    parse = tyro.cli

    def parsed(*args, **options):
        parse(*args, **options)
        raise Parsed

    monkeypatch.setattr(tyro, "cli", parsed)
    for name in ("tasks", "sweep", "compare"):  # which tyro calls itself
        monkeypatch.setattr(heldout, name, wraps(getattr(heldout, name))(lambda *_, **__: None))
    for page in PAGES:
        for _, _, text, inline in PART.findall((ROOT / page).read_text()):
            for program, *rest in commands(text or inline.replace("\n", " ")):
                if len(rest) <= (program == "heldout") or "--help" in rest:
                    continue  # it is only mentioned
                if program == "heldout":
                    assert call([program, *rest]) == 0, (page, rest)
                else:
                    with pytest.raises(Parsed):
                        call([program, *rest])


def table(page: str, heading: str) -> set[str]:
    """Return what the first column of the first table after a heading names in code."""
    text = (ROOT / page).read_text().split(f"# {heading}\n", 1)[1]
    rows = re.search(r"(?:^\|.*\n)+", text, re.M)
    assert rows
    cells = [line.split("|")[1] for line in rows[0].splitlines() if line.count("|") > 1]
    return set(re.findall(r"`([^`]+)`", "".join(cells)))


def test_pages_name_all_features_parameters_and_agents():
    assert table("docs/policies.md", "Features") == set(FEATURES)
    assert table("docs/policies.md", "Rule parameters") == set(RULE_PARAMETERS)
    named = {re.split(r"[:+]", name)[0] for name in table("docs/agents.md", "The agents there are")}
    assert named == {*agents.AGENTS, agents.SAME_AMOUNTS, "AGENT"}
    readme = re.search(r"^Agents: (.*?)\. \[", (ROOT / "README.md").read_text(), re.M | re.S)
    assert readme
    assert set(re.findall(r"`(\w+)`", readme[1])) == set(agents.AGENTS)


def slugs(path: Path) -> set[str]:
    """Return the anchors that a forge makes of a page's headings."""
    titles = re.findall(r"^#+ (.*)", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#]*)#?([^)]*)\)", (ROOT / page).read_text()):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        if anchor and "/api/" not in path.as_posix():
            assert anchor in slugs(path), (target, anchor)


# over 2 s: a page trains several students
@pytest.mark.parametrize(
    "page", [f"docs/{name}.md" for name in ("environment", "pruner", "python", "records", "wheel")]
)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "page"}
    alone = [code for code in blocks(page) if ON_RANKS not in code.co_names]
    assert alone, f"{page} shows no Python"
    for code in alone:
        exec(code, namespace)
    if page == "docs/records.md":
        record = namespace["record"]
        assert table(page, "A record: a line of `results.jsonl`") == set(record)
        assert table(page, "`results`") == set(record["results"])
        assert table(page, "`curve`") == set(CURVE) == set(record["curve"])


def on_two_ranks(work: Callable[[int], object]) -> list[int]:
    """Do `work` as torchrun would on two ranks; return their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def rank(number: int) -> None:
        os.environ |= {"RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        work(number)

    pids = [fork(lambda number=number: rank(number)) for number in range(2)]
    return [wait(pid) for pid in pids]


def test_the_loop_for_several_devices_runs_on_two_ranks():
    setting, *others = blocks("docs/pruner.md")
    on_ranks, _ = (code for code in others if ON_RANKS in code.co_names)

    def work(rank: int) -> None:
        namespace: dict = {"__name__": "page"}
        exec(setting, namespace)
        exec(on_ranks, namespace)
        assert namespace["pruner"].ledger.spent == 5.0

    assert on_two_ranks(work) == [0, 0]


def test_the_script_that_is_killed_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    _, script = (code for code in blocks("docs/pruner.md") if ON_RANKS in code.co_names)
    assert "checkpoint.pt" in script.co_consts
    replace = os.replace

    def start(folder: Path, saves: float = math.inf) -> list[int]:
        """Run the script in a folder; rank 0 is killed when it has saved so often and saves again."""

        def work(rank: int) -> None:
            left = itertools.count(saves, -1)
            monkeypatch.setattr(os, "replace", lambda *names: replace(*names) if next(left) > 0 else die())
            namespace: dict = {"__name__": "page"}
            exec(script, namespace)
            seen = namespace["pruner"].observe()
            weights = namespace["model"].state_dict()
            torch.save((seen["visits"].tolist(), namespace["pruner"].val_accuracy, weights), f"{rank}.pt")

        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        return on_two_ranks(work)

    assert start(tmp_path / "whole") == [0, 0]
    killed, alone = start(tmp_path / "killed", saves=4)
    assert (killed, alone != 0) == (-signal.SIGKILL, True)
    done = torch.load(tmp_path / "killed" / "checkpoint.pt")["pruner"]["done"]
    assert done > 0  # in mid-epoch
    assert start(tmp_path / "killed") == [0, 0]
    for rank in range(2):
        whole, resumed = (torch.load(tmp_path / folder / f"{rank}.pt") for folder in ("whole", "killed"))
        assert resumed[:2] == whole[:2]
        torch.testing.assert_close(resumed[2], whole[2])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
