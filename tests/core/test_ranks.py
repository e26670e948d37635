"""Several ranks train one student: to the numbers of one, whichever of them is lost on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.distributed as dist

from prune_env import ranks
from prune_env.ranks import Ranks
from prune_env.selection import select
from tests.helpers.processes import fork, until, wait
from tests.helpers.reference import toy
from tests.helpers.runs import trainer

ROOT = Path(__file__).parents[2]
MODELS = {"mlp:8": 1e-5, "convnet:2-3-4": 3e-4}  # tolerances: sums in another order, of which batch norm makes more
N = 37  # batches of 8 leave one of 5: parts of 3 and 2 rows; with 33 rows, a lone one
PARTS = {"uneven parts": (slice(0, 2), slice(2, 5)), "an empty part": (slice(0, 5), slice(5, 5))}  # of two ranks

Arrays = dict[str, np.ndarray]


def train(model: str) -> Arrays:
    """Take four steps; return what they leave: parameters, statistics and results, by name."""
    train, val = toy(N, 3, 2, 16, augment=True), toy(11, 3, 2, 16, seed=1)
    student = trainer(train, val, 8.0, seed=5, model=model, lr=0.05, label_smoothing=0.1, weight_decay=5e-4)
    rng = np.random.default_rng(0)
    found: Arrays = {}
    everything, most, alone = np.ones(N), np.arange(N) < 33, np.arange(N) == 4
    for step, mask in enumerate((everything, most, everything, alone)):
        # where nothing is dropped, partners are samples that this step trains on too
        mixup = np.where(rng.random(N) < 0.4, 0.3, 0.0)
        action = select(mask * rng.uniform(0.5, 2.0, N), mixup, score=(mask == 0) | (rng.random(N) < 0.2))
        result = student.train_epoch(student.select(action))
        found[f"step {step}"] = np.array(list(vars(result).values()), np.float64)
    found |= {f"model {name}": value.numpy() for name, value in student.model.state_dict().items()}
    return found | {f"seen {name}": values for name, values in student.observe().items()}


def normalise(rows: slice) -> Arrays:
    """Batch norm, in float64, of some of five rows, forward and backward; running averages too."""
    rng = np.random.default_rng(3)
    given, factors = (torch.from_numpy(rng.normal(2.0, 3.0, (5, 3, 2, 2)))[rows] for _ in range(2))
    plain = torch.nn.BatchNorm2d(3, momentum=0.3, dtype=torch.float64)
    torch.nn.init.constant_(plain.weight, 1.5)
    norm = cast(torch.nn.BatchNorm2d, next(ranks.here().synchronised(torch.nn.Sequential(plain)).children()))
    given.requires_grad_()
    out = norm(given)
    (out * factors).sum().backward()
    gradients = {"given": given.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    found = {"out": out.detach(), **gradients, **dict(norm.named_buffers())}
    return {name: value.numpy() for name, value in found.items() if value is not None}


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> list[dict[str, Arrays]]:
    """What each of two ranks ends with, by model and by case."""
    folder = tmp_path_factory.mktemp("ranks")

    def work(rank: int) -> None:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
        found = {model: train(model) for model in MODELS}
        found |= {case: normalise(rows[rank]) for case, rows in PARTS.items()}
        torch.save(found, folder / f"{rank}.pt")
        dist.destroy_process_group()

    pids = [fork(lambda rank=rank: work(rank)) for rank in range(2)]
    assert [wait(pid) for pid in pids] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("model", MODELS)
def test_two_ranks_give_the_numbers_of_one(both, model):
    """Uneven batches, a lone row, mixing, scoring, batch norm, smoothing, weights."""
    alone, (first, second) = train(model), (rank[model] for rank in both)
    assert first.keys() == second.keys() == alone.keys()
    for name, value in alone.items():
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        np.testing.assert_allclose(first[name], value, rtol=MODELS[model], atol=MODELS[model], err_msg=name)


@pytest.mark.parametrize("case", PARTS)
def test_batch_norm_is_over_the_rows_of_all_ranks(both, case):
    """In float64, where rounding hides nothing."""
    alone, (first, second) = normalise(slice(None)), (rank[case] for rank in both)
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
    every = [Ranks(rank, size) for rank in range(size)]
    start = 0
    for batch, length in enumerate(sizes):
        parts = [rank.positions(sizes)[batch].tolist() for rank in every]
        assert sorted(row for part in parts for row in part) == list(range(start, start + length))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        start += length
    totals = [sum(map(len, rank.positions(sizes))) for rank in every]
    assert all(rank.totals(sizes) == totals for rank in every)


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
    """Return the records by agent, without their seconds."""
    lines = (folder / "results.jsonl").read_text().splitlines()
    found = {record["agent"]: record for record in map(json.loads, lines)}
    for record in found.values():
        record["results"].pop("seconds")
    return found


def equal(ours: Any, theirs: Any, where: str = "") -> None:
    """Assert equal names and lengths, and numbers within a thousandth, which decides no sample of this validation."""
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


def evaluate(size: int, folder: Path, agents: Sequence[str]) -> subprocess.Popen[str]:
    """Start `train.evaluate`, on several ranks under torchrun."""
    folder.mkdir(exist_ok=True)
    (folder / "some_agents.py").write_text(AGENTS)
    torchrun = ("torch.distributed.run", "--nproc-per-node", size, "--standalone", "-m") if size > 1 else ()
    arguments = (*SMALL, "--checkpoint-seconds", 0, "--out", folder, "--name", "here", "--agents", *agents)
    command = (sys.executable, "-m", *torchrun, "train.evaluate", *arguments)
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    pipe, both = subprocess.PIPE, subprocess.STDOUT
    return subprocess.Popen([*map(str, command)], cwd=ROOT, env=environment, stdout=pipe, stderr=both, text=True)


def finish(job: subprocess.Popen[str], seconds: float = 120) -> str:
    """Wait for a job, and kill it if that takes too long; return what it printed."""
    try:
        printed, _ = job.communicate(timeout=seconds)
    finally:
        for pid in [*(rank for rank, _ in processes(job.pid)), job.pid] if job.poll() is None else []:
            os.kill(pid, signal.SIGKILL)
    return printed


@pytest.mark.slow
def test_evaluate_under_torchrun_gives_the_results_of_one_process(tmp_path):
    """An agent that raises costs its run and no other, on all ranks."""
    agents = ("full", "some_agents:Raises", "infobatch")
    job = evaluate(2, tmp_path / "two", agents)
    printed = finish(job)
    assert "1 run(s) failed, of some_agents:Raises" in printed
    assert job.returncode == 1, printed
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
    finish(evaluate(1, tmp_path / "whole", ["some_agents:Sleeps"]))
    job = evaluate(2, tmp_path, ["some_agents:Sleeps"])
    kept = tmp_path / "here" / "checkpoints"
    until(lambda: len(list(kept.glob("*/checkpoint.pt"))) == 1, seconds=180)
    victim = next(pid for pid, rank in processes(job.pid) if rank == "1")
    os.kill(victim, signal.SIGKILL)
    start = time.monotonic()
    printed = finish(job, seconds=60)
    assert time.monotonic() - start < 40
    assert "error: a rank of this job is lost, or cannot go on" in printed
    assert job.returncode != 0
    job = evaluate(then, tmp_path, ["some_agents:Sleeps"])
    printed = finish(job)
    assert job.returncode == 0, printed
    ours, theirs = (records(folder / "here")["some_agents:Sleeps"] for folder in (tmp_path, tmp_path / "whole"))
    for part in ("results", "curve", "configuration"):
        equal(ours[part], theirs[part], part)


def processes(job: int) -> list[tuple[int, str]]:
    """Return the process id and the rank of every process that torchrun has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = (path / "stat").read_text().rpartition(")")[2].split()[1]
            environment = (path / "environ").read_text().split("\0") if parent == str(job) else []
        except OSError:
            continue
        found += [(int(path.name), one.removeprefix("RANK=")) for one in environment if one.startswith("RANK=")]
    return found
