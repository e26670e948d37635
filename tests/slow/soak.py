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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
AGENTS = ("full", "random", "ucb", "infobatch", "same_amounts:el2n", "learned")
RUNS = ["--agents", *AGENTS, "--seeds", "2", "--budget", "6", "--checkpoint-seconds", "0", "--workers", "2"]
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
TINY_TASKS: dict[str, Any] = {
    "values": {
        "train_size": (60,),
        "label_noise": (0.0, 0.1, 0.2, 0.3),
        "imbalance": (1.0, 2.0),
        "model": ("mlp:4",),
        "budget": (1.2,),
    },
    "validations": 2,
    "held_outs": 2,
}


def learn_tiny(arguments: Sequence[str]) -> int:
    """`train.learn` with tasks of 60 samples and a short search: minutes become seconds, the program is the same."""
    from prune_env.policy import tasks
    from train import learn
    from train.learning import search

    tasks.DISTRIBUTIONS["tiny"] = TINY_TASKS
    search.CANDIDATES, search.ELITES, search.PAIRS = 6, 2, 2
    learn.PROBES, learn.GENERATIONS = 8, 1
    torch.set_num_threads(1)
    return learn.main(list(arguments))


def command(program: str, home: Path) -> list[str]:
    """The command line of a program whose results go into `home`/it."""
    where = ["--out", str(home), "--name", "it"]
    if program == "evaluate":
        return [sys.executable, "-m", "train.evaluate", *RUNS, *where]
    if program == "sweep":
        (home / "sweep.toml").write_text(SWEEP)
        return [sys.executable, "-m", "train.sweep", str(home / "sweep.toml"), "--checkpoint-seconds", "0", *where]
    return [sys.executable, "-m", "tests.slow.soak", "learn-tiny", *LEARN, *where]


def outcome(program: str, home: Path) -> Any:
    """What must not depend on kills."""
    if program == "learn":
        from safetensors.numpy import load_file

        lines = [json.loads(line) for line in (home / "it" / "evaluations.jsonl").read_text().splitlines()]
        policy = {name: a.tolist() for name, a in load_file(home / "it" / "policy.safetensors").items()}
        return [{**line, "seconds": 0} for line in lines], policy
    from train.execution import results

    records, unreadable = results.read(home / "it" / "results.jsonl")
    assert unreadable == 0, f"{unreadable} torn lines are left"
    assert not (home / "it" / "checkpoints").exists(), "checkpoints are left"
    kept = {key: {**record["results"], "seconds": 0} for key, record in records.items()}
    return {key: (kept[key], records[key]["curve"]) for key in sorted(records)}


def processes_of(pid: int) -> list[int]:
    """A process and those that it has started, and they."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
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
            time_left = rng.uniform(0.0, seconds) if done < kills else 600.0
            try:
                status = ours.wait(time_left)
            except subprocess.TimeoutExpired:
                victims = processes_of(ours.pid)
                try:
                    os.kill(rng.choice([ours.pid, *victims]), signal.SIGKILL)
                except ProcessLookupError:
                    continue
                done += 1
                time.sleep(rng.uniform(0.0, 1.0))
                if ours.poll() is None:  # a worker was killed: the program goes on, or is killed too
                    ours.kill()
                    done += 1
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
    seconds = time.monotonic() - start
    done = 0
    while done < given.kills:
        kills, found = one_round(given.program, 0.6 * seconds, min(8, given.kills - done), rng)
        done += kills
        if found != expected:
            print(f"after {kills} kills the results are others")
            return 1
        print(f"{done} kills: the results are the same", flush=True)
        if not kills:
            break
    return 0


if __name__ == "__main__":
    sys.exit(main())
