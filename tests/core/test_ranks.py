"""Several ranks train one student: to the numbers of one, whichever of them is lost on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prune_env.ranks import Ranks
from tests.helpers import ranked
from tests.helpers.processes import until

ROOT = Path(__file__).parents[2]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node")
# of float32, as sums are taken in another order; batch norm over few rows makes more of that
TOLERANCE = {"mlp": 1e-5, "convnet": 3e-4}


def launch(ranks: int, module: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    command = [*TORCHRUN, str(ranks), "--standalone", "-m", module, *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(job: subprocess.Popen[str], seconds: float = 120) -> str:
    try:
        told, _ = job.communicate(timeout=seconds)
    finally:
        for pid in [*(rank for rank, _ in processes(job.pid)), job.pid] if job.poll() is None else []:
            os.kill(pid, signal.SIGKILL)
    return told


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[dict[str, np.ndarray], ...]:
    """What each of two ranks ends with."""
    folder = tmp_path_factory.mktemp("ranks")
    job = launch(2, "tests.helpers.ranked", folder / "rank")
    told = finish(job)
    assert job.returncode == 0, told
    return tuple(dict(np.load(folder / f"rank{rank}.npz")) for rank in range(2))


@pytest.mark.parametrize("of", ranked.RECIPES)
def test_two_ranks_give_the_numbers_of_one(both, of):
    """Uneven batches, a lone row, mixing, scoring, batch norm, smoothing, weights."""
    alone = ranked.train(ranked.RECIPES[of])
    first, second = ({n.removeprefix(f"{of}: "): v for n, v in rank.items() if n.startswith(of)} for rank in both)
    assert first.keys() == second.keys() == alone.keys()
    for name, value in alone.items():
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        np.testing.assert_allclose(first[name], value, rtol=TOLERANCE[of], atol=TOLERANCE[of], err_msg=name)


@pytest.mark.parametrize("case", ranked.PARTS)
def test_batch_norm_is_that_of_all_rows(both, case):
    """In float64, where rounding hides nothing."""
    alone = ranked.normalise(slice(None))
    first, second = ({n.removeprefix(f"{case}: "): v for n, v in rank.items() if n.startswith(case)} for rank in both)
    for name in ("out", "given"):
        np.testing.assert_allclose(np.concatenate([first[name], second[name]]), alone[name], rtol=1e-12, atol=1e-12)
    for name in ("weight", "bias"):
        np.testing.assert_allclose(first[name] + second[name], alone[name], rtol=1e-12)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        np.testing.assert_allclose(first[name], alone[name], rtol=1e-12)
        np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.parametrize("sizes", [[8, 8, 5], [1], [7, 1, 2], []])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_row_of_a_batch_belongs_to_one_rank(sizes, size):
    ranks = [Ranks(rank, size) for rank in range(size)]
    start = 0
    for batch, length in enumerate(sizes):
        parts = [rank.positions(sizes)[batch].tolist() for rank in ranks]
        assert sorted(row for part in parts for row in part) == list(range(start, start + length))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        start += length
    totals = [sum(map(len, rank.positions(sizes))) for rank in ranks]
    assert all(rank.totals(sizes) == totals for rank in ranks)


# ---------------------------------------------------------------- the program

SMALL = ("--train-size", 300, "--model", "convnet:4-4-4", "--precision", "float32", "--budget", 4, "--seeds", 1)
AGENTS = """
import time
from dataclasses import dataclass
import numpy as np
from prune_env import select

class Raises:
    def __call__(self, seen, rng):
        if seen["visits"].max() > 1:
            raise RuntimeError("no more")
        return select(np.ones(len(seen["loss"])))

@dataclass(frozen=True)  # so it has no state, and goes on from a checkpoint
class Sleeps:
    def __call__(self, seen, rng):
        time.sleep(1.0)
        return select(rng.random(len(seen["loss"])) < 0.5)
"""


def records(folder: Path) -> dict[str, dict]:
    """The results by agent, without what is measured in seconds or says where they were made."""
    lines = (folder / "results.jsonl").read_text().splitlines()
    found = {record["agent"]: record for record in map(json.loads, lines)}
    for record in found.values():
        record["results"].pop("seconds")
    return found


def equal(ours: Any, theirs: Any, where: str = "") -> None:
    """The same names and lengths; numbers within a thousandth, which decides no sample of this validation part."""
    assert type(ours) is type(theirs), where
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for name, value in theirs.items():
            equal(ours[name], value, f"{where}.{name}")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), where
        for number, value in enumerate(theirs):
            equal(ours[number], value, f"{where}[{number}]")
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-3), where
    else:
        assert ours == theirs, where


def evaluate(ranks: int, folder: Path, agents: Sequence[str]) -> subprocess.Popen[str]:
    (folder / "some_agents.py").write_text(AGENTS)
    arguments = (*SMALL, "--checkpoint-seconds", 0, "--out", folder, "--name", "here", "--agents", *agents)
    if ranks > 1:
        return launch(ranks, "train.evaluate", *arguments, PYTHONPATH=f"{folder}{os.pathsep}{ROOT}")
    return subprocess.Popen(
        [sys.executable, "-m", "train.evaluate", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_evaluate_under_torchrun_gives_the_results_of_one_process(tmp_path):
    """An agent that raises costs its run and no other, on all ranks."""
    agents = ("full", "some_agents:Raises", "infobatch")
    (tmp_path / "two").mkdir()
    job = evaluate(2, tmp_path / "two", agents)
    told = finish(job)
    assert "1 run(s) failed, of some_agents:Raises" in told
    assert job.returncode == 1, told
    (tmp_path / "one").mkdir()
    finish(evaluate(1, tmp_path / "one", agents))
    two, one = (records(tmp_path / name / "here") for name in ("two", "one"))
    assert two.keys() == one.keys() == {"full", "infobatch"}
    for agent, record in two.items():
        assert record["provenance"]["ranks"] == 2
        assert record["key"] == one[agent]["key"]
        for part in ("results", "curve", "configuration"):
            equal(record[part], one[agent][part], part)


@pytest.mark.slow
@pytest.mark.parametrize("then", [1, 2, 3])
def test_a_killed_rank_ends_the_job_and_it_goes_on_with_any_number_of_ranks(tmp_path, then):
    (tmp_path / "whole").mkdir()
    finish(evaluate(1, tmp_path / "whole", ["some_agents:Sleeps"]))
    job = evaluate(2, tmp_path, ["some_agents:Sleeps"])
    kept = tmp_path / "here" / "checkpoints"
    until(lambda: len(list(kept.glob("*/checkpoint.pt"))) == 1, seconds=180)
    victim = next(pid for pid, rank in processes(job.pid) if rank == "1")
    os.kill(victim, signal.SIGKILL)
    start = time.monotonic()
    told = finish(job, seconds=60)
    assert time.monotonic() - start < 40
    assert "error: a rank of this job is lost, or cannot go on" in told
    assert job.returncode != 0
    shutil.copytree(tmp_path / "here", tmp_path / "kept")
    job = evaluate(then, tmp_path, ["some_agents:Sleeps"])
    told = finish(job)
    assert job.returncode == 0, told
    ours, theirs = (records(folder / "here")["some_agents:Sleeps"] for folder in (tmp_path, tmp_path / "whole"))
    for part in ("results", "curve", "configuration"):
        equal(ours[part], theirs[part], part)


def processes(job: int) -> list[tuple[int, str]]:
    """The ranks that torchrun has started: process ids, and which."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = (path / "stat").read_text().rpartition(")")[2].split()[1]
            environment = (path / "environ").read_text().split("\0") if parent == str(job) else []
        except OSError:
            continue
        found += [(int(path.name), one.removeprefix("RANK=")) for one in environment if one.startswith("RANK=")]
    return found
