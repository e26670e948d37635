"""The Python of README.md, docs/pruner.md and docs/wheel.md runs, block after block, in one namespace for each."""

import os
import re
import socket
from pathlib import Path

import pytest

from tests.helpers.processes import fork, wait

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```", re.M | re.S)
ON_RANKS = "init_process_group"  # in a block that is for torchrun


def blocks(page: str) -> list:
    """Return the code of each block, compiled so that an error names the page's line."""
    text = (ROOT / page).read_text()
    return [compile("\n" * text[: b.start(1)].count("\n") + b[1], page, "exec") for b in BLOCK.finditer(text)]


# over 2 s: the README trains nine students
@pytest.mark.parametrize("page", ["README.md", "docs/pruner.md", "docs/wheel.md"])
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "page"}
    alone = [code for code in blocks(page) if ON_RANKS not in code.co_names]
    assert alone, f"{page} shows no Python"
    for code in alone:
        exec(code, namespace)


def test_the_loop_for_several_devices_runs_on_two_ranks():
    setting, *others = blocks("docs/pruner.md")
    (on_ranks,) = (code for code in others if ON_RANKS in code.co_names)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def rank(number: int) -> None:
        os.environ |= {"RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        namespace: dict = {"__name__": "page"}
        exec(setting, namespace)
        exec(on_ranks, namespace)
        assert namespace["pruner"].ledger.spent == 5.0

    pids = [fork(lambda number=number: rank(number)) for number in range(2)]
    assert [wait(pid) for pid in pids] == [0, 0]
