"""The Python of README.md and these pages of docs/ runs, block after block, in one namespace for each page."""

import itertools
import math
import os
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers.processes import fork, wait

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```", re.M | re.S)
ON_RANKS = "init_process_group"  # in a block that is for torchrun


def blocks(page: str) -> list:
    """Return the code of each block, compiled so that an error names the page's line."""
    text = (ROOT / page).read_text()
    return [compile("\n" * text[: b.start(1)].count("\n") + b[1], page, "exec") for b in BLOCK.finditer(text)]


# over 2 s: the README trains nine students
@pytest.mark.parametrize(
    "page", ["README.md", "docs/environment.md", "docs/pruner.md", "docs/python.md", "docs/wheel.md"]
)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "page"}
    alone = [code for code in blocks(page) if ON_RANKS not in code.co_names]
    assert alone, f"{page} shows no Python"
    for code in alone:
        exec(code, namespace)


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
    script = blocks("docs/pruner.md")[-1]
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
