"""Kill a program at random moments until it is through, and compare what it leaves with an uninterrupted run.

python -m tests.slow.soak evaluate --kills 40 --seed 1
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from prune_env.policy.learned import Network

ROOT = Path(__file__).parents[2]
AGENTS = ("full", "random", "ucb", "infobatch", "same_amounts:el2n", "learned")
RUNS = ["--agents", *AGENTS, "--seeds", "2", "--budget", "6", "--workers", "2"]
SWEEP = f"""
agents = {json.dumps(AGENTS)}
budgets = [3, 6]
seeds = 2
[tasks.plain]
env = "prune_env/Digits-v0"
[tasks.noisy]
env = "prune_env/Digits-v0"
label_noise = 0.2
"""
LEARN = ["--tasks", "tiny", "--members", "6", "--processes", "2", "--pool", "8", "--steps", "1500"]
LEARN += ["--evaluate-every", "300"]
TASKS = {"train_size": (60,), "label_noise": (0.0, 0.1, 0.2, 0.3), "imbalance": (1.0, 2.0)}
TASKS |= {"model": ("mlp:4",), "budget": (1.2,)}


def learn_tiny(arguments: list[str]) -> int:
    """Run `train.learn` with tasks of 60 samples and a short search: minutes become seconds."""
    from prune_env.policy import tasks
    from train import learn
    from train.learning import search

    tasks.DISTRIBUTIONS["tiny"] = {"values": TASKS, "validations": 2, "held_outs": 2}
    torch.set_num_threads(1)
    with (
        mock.patch.multiple(search, CANDIDATES=6, ELITES=2, PAIRS=2),
        mock.patch.multiple(learn, PROBES=8, GENERATIONS=1),
    ):
        return learn.main(arguments)


def command(program: str, home: Path) -> list[str]:
    """The command line of a program whose results go into `home`/it."""
    (home / "sweep.toml").write_text(SWEEP)
    often = ["--checkpoint-seconds", "0"]
    of = {
        "evaluate": ["train.evaluate", *RUNS, *often],
        "sweep": ["train.sweep", str(home / "sweep.toml"), *often],
        "learn": ["tests.slow.soak", "learn-tiny", *LEARN],
    }
    return [sys.executable, "-m", *of[program], "--out", str(home), "--name", "it"]


def outcome(program: str, home: Path) -> Any:
    """What must not depend on kills."""
    if program == "learn":
        lines = [json.loads(line) for line in (home / "it" / "evaluations.jsonl").read_text().splitlines()]
        policy = [[a.tolist() for a in layer] for layer in Network.load(home / "it" / "policy.npz").layers]
        return [{**line, "seconds": 0} for line in lines], policy
    assert not (home / "it" / "checkpoints").exists(), "checkpoints are left"
    lines = (home / "it" / "results.jsonl").read_text().splitlines()  # each of them is whole
    records = {record["key"]: record for record in map(json.loads, lines)}
    return {key: ({**records[key]["results"], "seconds": 0}, records[key]["curve"]) for key in sorted(records)}


def processes_of(pid: int) -> list[int]:
    """A process, and all that descend from it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def one_round(program: str, seconds: float, kills: int, rng: random.Random) -> tuple[int, Any]:
    """Run a program, killing it or one of its processes, until it ends; how many kills that took, and what it left."""
    done = 0
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        while True:
            with open(home / "log", "ab") as log:
                ours = subprocess.Popen(command(program, home), cwd=ROOT, stdout=log, stderr=log)
            try:
                status = ours.wait(rng.uniform(0.0, seconds) if done < kills else 600.0)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):  # it has just ended by itself
                    os.kill(rng.choice([ours.pid, *processes_of(ours.pid)]), signal.SIGKILL)
                    done += 1
                time.sleep(rng.uniform(0.0, 1.0))
                ours.kill()  # if it goes on without the worker that was killed
                ours.wait()
                continue
            if status == 0:
                return done, outcome(program, home)
            assert done, (home / "log").read_text()


def main() -> int:
    """Print how it went; the exit status is 1 if a round ended with other results."""
    if sys.argv[1:2] == ["learn-tiny"]:
        return learn_tiny(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", choices=["evaluate", "sweep", "learn"])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    start = time.monotonic()
    _, expected = one_round(given.program, 0.0, 0, rng)
    seconds, done = time.monotonic() - start, 0
    while done < given.kills:
        kills, found = one_round(given.program, 0.6 * seconds, min(8, given.kills - done), rng)
        done += kills
        if found != expected:
            print(f"after {kills} kills the results are others")
            return 1
        print(f"{done} kills: the results are the same", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
