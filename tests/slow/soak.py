"""Long checks, which no test run waits for; each prints a table and exits with 1 if a promise was broken.

    python -m tests.slow.soak episodes --count 1000
    python -m tests.slow.soak kills --program evaluate --count 100
    python -m tests.slow.soak flips --count 200

`episodes` plays that many episodes of the digits environment, of its vector form, and as runs of `train.evaluate` with
two workers. Every 50 episodes it looks at the memory, threads and open files of all processes that take part. After a
warm-up of a tenth, the mean of the last quarter may exceed that of the first by GROWTH MiB of memory a process, and
the least number of processes, threads and files by none. The parent of the workers keeps all records, for the report:
RECORD MiB a run.

`kills` runs a program once without interruption, then again and again with SIGKILL at uniformly random moments, three
of four after a run has begun: to the whole program, to its first process alone, whose workers then have to notice, or
to a single child; and in one kill of four at the moment at which a file is being written. After each kill it is
started again with the same command, half of the time at once, until it ends by itself. Then there must be each run
once, with equal numbers, and no file that the uninterrupted run does not have, but for results.jsonl.damaged, which
holds lines torn by a kill. For `learn` the policy, and what was found in validation, must be equal.

`flips` damages, one at a time, the files that a later start reads: a byte is changed, or the file is cut, emptied, or
replaced by something else. The next start has to name the file and refuse, or go on without it; then the results must
be those of the intact file. Accepted without a word is only what leaves a correct, shorter file: a results.jsonl that
ends with a whole line has fewer runs, which are done again.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from prune_env import select
from train import evaluate as evaluating
from train import report as reporting
from train.execution import workers as workers_of
from train.execution.checkpoints import Keeper, folder_of
from train.execution.episode import Run, play

ROOT = Path(__file__).resolve().parents[2]
UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}")
DAMAGED_ASIDE = "results.jsonl.damaged"

# Episodes

GROWTH = 2.0  # MiB a process, from the first quarter to the last
RECORD = 0.03  # MiB a run in the process that keeps all records for the report at the end
EVERY = 50
BEGUN = 0.75  # share of the kills that come once a run has begun


@dataclass(frozen=True)
class Sample:
    """What a tree of processes holds at one moment."""

    processes: int
    memory: float  # MiB resident, summed
    threads: int
    files: int  # open descriptors


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    for one in found:
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            with suppress(OSError):
                found += [int(child) for child in children.read_text().split()]
    return found


def look(*pids: int) -> Sample:
    """What these processes hold."""
    processes, memory, threads, files = 0, 0.0, 0, 0
    for one in pids:
        with suppress(OSError):
            pages = int(Path(f"/proc/{one}/statm").read_text().split()[1])
            threads += len(os.listdir(f"/proc/{one}/task"))
            files += len(os.listdir(f"/proc/{one}/fd"))
            memory += pages * os.sysconf("SC_PAGE_SIZE") / 2**20
            processes += 1
    return Sample(processes, memory, threads, files)


def act(n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A random subset, some of it blended, some samples scored."""
    return select(rng.random(n) < 0.5, 0.2 * (rng.random(n) < 0.2), rng.random(n) < 0.1)


SMALL = {"train_size": 100, "budget": 1.5, "model": "mlp:16", "device": "cpu"}


def single(count: int) -> Iterator[dict[str, Sample]]:
    """Episodes of one environment, one after the other, a new environment every hundred."""
    rng, env = np.random.default_rng(0), gym.make("prune_env/Digits-v0", **SMALL)
    for episode in range(count):
        if episode % 100 == 99:
            env.close()
            env = gym.make("prune_env/Digits-v0", **SMALL)
        env.reset(seed=episode)
        done = False
        while not done:
            done = env.step(act(100, rng))[2]
        if episode % EVERY == EVERY - 1:
            yield {"single": look(os.getpid())}


def vector(count: int) -> Iterator[dict[str, Sample]]:
    """Episodes of eight members stepped together, which reset themselves."""
    rng, env = np.random.default_rng(0), gym.make_vec("prune_env/Digits-v0", num_envs=8, **SMALL)
    env.reset(seed=0)
    done = sampled = 0
    while done < count:
        rows = [act(100, rng) for _ in range(8)]
        _, _, ended, _, _ = env.step({name: np.stack([row[name] for row in rows]) for name in rows[0]})
        done += int(np.sum(ended))
        if done // EVERY > sampled:
            sampled = done // EVERY
            yield {"vector": look(os.getpid())}


def workers(count: int) -> Iterator[dict[str, Sample]]:
    """Runs of `train.evaluate` in two processes, seen from outside; those that live as long as it does.

    An agent's process ends with its run, and just after it has begun it shares most of its memory.
    """
    seen: list[dict[int, Sample]] = []
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--agents", "random", "ucb", "--seeds", str(count // 2), "--budget", "1.5", "--train-size", "100"]
        arguments += ["--workers", "2", "--out", folder, "--name", "soak", "--device", "cpu"]
        with open(os.devnull, "w") as nowhere:
            program = subprocess.Popen(
                [sys.executable, "-m", "train.evaluate", *arguments], cwd=ROOT, stdout=nowhere, stderr=nowhere
            )
            results = Path(folder) / "soak" / "results.jsonl"
            while program.poll() is None:
                time.sleep(0.05)
                done = results.read_bytes().count(b"\n") if results.exists() else 0
                if done // EVERY > len(seen) and done < 2 * (count // 2):
                    seen.append({pid: look(pid) for pid in family(program.pid)})
        if program.returncode:
            raise RuntimeError(f"train.evaluate ended with {program.returncode}")
    lasting = set.intersection(*(set(sample) for sample in seen)) - {program.pid}
    for sample in seen:
        others = [sample[pid] for pid in lasting]
        names = ("processes", "memory", "threads", "files")
        yield {
            "workers": Sample(*(sum(getattr(other, name) for other in others) for name in names)),
            "their parent": sample[program.pid],
        }


def episodes(given: argparse.Namespace) -> list[str]:
    """Table of what each way to play holds, first and last quarter; complaints."""
    torch.set_num_threads(1)
    complaints = []
    print(f"{'':14}{'count':>7}{'seconds':>9}{'processes':>11}{'MiB':>18}{'threads':>12}{'files':>12}")
    for way in (single, vector, workers):
        start = time.monotonic()
        seen = list(way(given.count))
        seconds = time.monotonic() - start
        seen = seen[max(1, len(seen) // 10) :]  # the warm-up
        for name in seen[0]:
            complaints += _compare(name, [sample[name] for sample in seen], given.count, seconds)
    return complaints


def _compare(name: str, samples: list[Sample], count: int, seconds: float) -> list[str]:
    """Print a line on the first and the last quarter; complaints."""
    quarter = max(1, len(samples) // 4)
    parts = samples[:quarter], samples[-quarter:]
    # a file may be open for a moment, but what leaks is open in every sample
    of = {"processes": np.min, "memory": np.mean, "threads": np.min, "files": np.min}
    means = {
        entry: [float(gather([getattr(sample, entry) for sample in part])) for part in parts]
        for entry, gather in of.items()
    }
    shown = "".join(f"{f'{means[entry][0]:.0f} -> {means[entry][1]:.0f}':>12}" for entry in ("threads", "files"))
    before, after = means["memory"]
    print(f"{name:14}{count:7}{seconds:9.0f}{means['processes'][0]:11.0f}{f'{before:.1f} -> {after:.1f}':>18}{shown}")
    allowed = GROWTH * means["processes"][0] + (RECORD * count if name == "their parent" else 0.0)
    complaints = [f"{name}: memory grew by {after - before:.1f} MiB"] if after - before > allowed else []
    for entry in ("processes", "threads", "files"):
        before, after = means[entry]
        if after > before:
            complaints.append(f"{name}: {entry} grew from {before:g} to {after:g}")
    return complaints


# Kills


@dataclass(frozen=True)
class Program:
    """A command that can be killed and started again, and what is to be equal afterwards."""

    command: Callable[[Path], list[str]]  # with its results in a folder of this one
    outcome: Callable[[Path], Any]  # of a folder, compared with ==
    loose: tuple[str, ...] = ()  # names of files that may be there or not
    journal: bool = True  # whether its runs keep one
    part: float = 0.6  # of its time, in which it is killed

    def start(self, home: Path) -> subprocess.Popen[bytes]:
        with open(home / "log", "ab") as log:
            return subprocess.Popen(
                self.command(home), cwd=ROOT, stdout=log, stderr=log, start_new_session=True, env=ENVIRONMENT
            )


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
AGENTS = ("random:keep=0.5", "ucb", "el2n", "same_amounts:ucb")
# what is said of a run, or of learning, that has failed by a kill
DIED = ("process died", "no process could start", "process of the training environment died", "terminated abruptly")
RUN = ("--checkpoint-seconds", "0", "--workers", "2", "--device", "cpu", "--name", "run")
SWEEP = """
agents = ["ucb", "same_amounts:loss_topk"]
budgets = [40, 80]
keep = [0.5]
seeds = 1

[tasks.plain]
env = "prune_env/Digits-v0"
train_size = 300

[tasks.noisy]
env = "prune_env/Digits-v0"
train_size = 300
label_noise = 0.2
"""


def records(folder: Path) -> dict[str, Any]:
    """What results.jsonl says of each run, but for times; raises ValueError for a run that is there twice."""
    found: dict[str, Any] = {}
    for line in (folder / "run" / "results.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["key"] in found:
            raise ValueError(f"two lines for {record['agent']}, seed {record['seed']}")
        results = {name: value for name, value in record["results"].items() if name != "seconds"}
        found[record["key"]] = {**{name: record[name] for name in ("agent", "seed", "curve")}, "results": results}
    return found


def waste(folder: Path) -> tuple[int, float]:
    """Interruptions and compute lost, in full-epoch equivalents, that the records tell of."""
    told = [json.loads(line)["provenance"] for line in (folder / "run" / "results.jsonl").read_text().splitlines()]
    lost = [one.get("waste", {"interruptions": 0, "spent": 0.0}) for one in told]
    return sum(one["interruptions"] for one in lost), sum(one["spent"] for one in lost)


def evaluate(home: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "train.evaluate", "--agents", *AGENTS, "--seeds", "1", "--budget", "120"),
        *("--train-size", "300", "--out", str(home), *RUN),
    ]


def sweep(home: Path) -> list[str]:
    (home / "soak.toml").write_text(SWEEP)
    return [sys.executable, "-m", "train.sweep", str(home / "soak.toml"), "--out", str(home), *RUN]


def learn(home: Path) -> list[str]:
    arguments = ["--tasks", "tiny", "--steps", "600", "--evaluate-every", "128", "--pool", "8"]
    arguments += ["--members", "4", "--processes", "2"]
    return [sys.executable, "-m", "tests.slow.soak", "learn-tiny", *arguments, "--out", str(home), "--name", "run"]


def learned(home: Path) -> Any:
    """Weights of the policy, and what was found in validation after how many steps."""
    from safetensors.numpy import load_file

    weights = {name: array.tolist() for name, array in load_file(home / "run" / "policy.safetensors").items()}
    lines = [json.loads(line) for line in (home / "run" / "evaluations.jsonl").read_text().splitlines()]
    points = [{name: line[name] for name in ("steps", "episodes", "points", "best")} for line in lines]
    return {"weights": weights, "points": points}


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
    from train import learn as program
    from train.learning import search

    tasks.DISTRIBUTIONS["tiny"] = TINY_TASKS
    search.CANDIDATES, search.ELITES, search.PAIRS = 6, 2, 2
    program.PROBES, program.GENERATIONS = 8, 1
    torch.set_num_threads(1)
    return program.main(list(arguments))


PROGRAMS = {
    "evaluate": Program(evaluate, records, (DAMAGED_ASIDE,)),
    "sweep": Program(sweep, records, (DAMAGED_ASIDE,)),
    "learn": Program(learn, learned, journal=False, part=0.4),
}


def left(home: Path) -> set[str]:
    """Files and folders in a folder of results, but for TensorBoard's, whose names have a time and a process."""
    paths = (path.relative_to(home) for path in home.rglob("*"))
    return {str(path) for path in paths if "tensorboard" not in path.parts} - {"log"}


def writing(home: Path) -> bool:
    """Whether a file, or a folder of files, is being written at this moment."""
    return any(UNFINISHED.fullmatch(name) for _, folders, names in os.walk(home) for name in [*folders, *names])


def gone(session: int, seconds: float) -> bool:
    """Whether no process of a session is left, waiting for that so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(_session(int(entry)) == session for entry in os.listdir("/proc") if entry.isdecimal()):
            return True
        time.sleep(0.05)
    return False


def _session(pid: int) -> int:
    try:
        state, _, _, session, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return -1
    return -1 if state == "Z" else int(session)


@dataclass
class Tally:
    """What happened in `kills`."""

    kills: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    interruptions: int = 0
    spent: float = 0.0  # full-epoch equivalents that were lost


def begin(process: subprocess.Popen[bytes], home: Path) -> None:
    """Wait until a run begins or goes on, if the program keeps its journal."""
    start = time.time()
    while process.poll() is None and time.time() < start + 60.0:
        for journal in home.glob("run/checkpoints/*/journal"):
            with suppress(OSError):
                if journal.stat().st_mtime > start:
                    return
        time.sleep(0.01)


def kill(process: subprocess.Popen[bytes], home: Path, until: float, rng: random.Random) -> str:
    """Wait so long, then kill something; its name, or nothing if the program had ended before."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, until - time.monotonic()))
        return ""
    how = rng.choice(["the program", "the program", "the first process", "a child"])
    if rng.random() < 0.25:
        end = time.monotonic() + 5.0
        while not writing(home) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.0005)
    children = family(process.pid)[1:]
    if process.poll() is not None:
        return ""
    with suppress(ProcessLookupError):
        if how == "a child" and children:
            os.kill(rng.choice(children), signal.SIGKILL)
            return how
        if how == "the program":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()
    return how


def kills(given: argparse.Namespace) -> list[str]:
    """Table of what was killed; complaints."""
    program, rng = PROGRAMS[given.program], random.Random(given.seed)
    tally, complaints = Tally(), []
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        calm = Path(folder) / "calm"
        calm.mkdir()
        start = time.monotonic()
        if program.start(calm).wait() != 0:
            return [f"the program fails without being killed:\n{(calm / 'log').read_text()}"]
        length = time.monotonic() - start
        expected, files = program.outcome(calm), left(calm)
        print(f"{given.program}: {length:.0f} s without a kill; {len(files)} files", flush=True)
        end = start + 60.0 * given.minutes
        while sum(tally.kills.values()) < given.count and time.monotonic() < end and not complaints:
            home = Path(folder) / f"round {tally.rounds}"
            home.mkdir()
            complaints += one_round(program, home, length, rng, tally, given.count)
            tally.rounds += 1
            complaints += [] if complaints else differences(program, home, expected, files)
            if given.program != "learn" and not complaints:
                interruptions, spent = waste(home)
                tally.interruptions += interruptions
                tally.spent += spent
            if complaints:
                kept = Path(tempfile.mkdtemp(prefix="soak-"))
                shutil.copytree(home, kept, dirs_exist_ok=True)
                shutil.copytree(calm, kept / "calm")
                complaints.append(f"the folder of this round is kept in {kept}")
            shutil.rmtree(home)
            print(f"  round {tally.rounds}: {sum(tally.kills.values())} kills so far", flush=True)
    print(f"{'rounds':>8}{'kills':>8}  of")
    of = ", ".join(f"{how} {number}" for how, number in sorted(tally.kills.items()))
    print(f"{tally.rounds:8}{sum(tally.kills.values()):8}  {of}")
    print(f"told as waste: {tally.interruptions} interruptions, {tally.spent:.2f} full-epoch equivalents")
    return complaints


def one_round(program: Program, home: Path, length: float, rng: random.Random, tally: Tally, count: int) -> list[str]:
    """Kill and start again until the program ends by itself."""
    starts, idle = 0, 0
    while True:
        process = program.start(home)
        starts += 1
        while process.poll() is None:
            if sum(tally.kills.values()) >= count or starts > 60:
                process.wait()
                break
            if program.journal and rng.random() < BEGUN:  # the start of a program takes as long as many runs
                begin(process, home)
            # of a part of the time that all takes: there is less left to do at each start
            how = kill(process, home, time.monotonic() + rng.uniform(0.0, program.part * length), rng)
            if how:
                tally.kills[how] += 1
        code = process.returncode
        if code >= 0 and not gone(process.pid, 10.0):
            return [f"processes of a program that has ended are left: {family(process.pid)}"]
        if code < 0:
            if rng.random() < 0.5 and not gone(process.pid, 20.0):
                return ["processes of a killed program are left after 20 seconds"]
            continue
        if code == 0:
            return []
        # a run whose process is killed twice has failed, and is done again by the next start
        idle += 1
        others = [line for line in errors(home) if not any(died in line for died in DIED)]
        text = (home / "log").read_text()
        if idle > 20 or others or not any(died in text[-3000:] for died in (*DIED, "run(s) failed")):
            return [f"the program ends with {code}, {others}; the last it said:\n{text[-3000:]}"]


def errors(home: Path) -> list[str]:
    """Why runs have failed."""
    path = home / "run" / "failures.jsonl"
    return [json.loads(line)["error"] for line in path.read_text().splitlines()] if path.exists() else []


def differences(program: Program, home: Path, expected: Any, files: set[str]) -> list[str]:
    """What is not as in the uninterrupted run."""
    try:
        found = program.outcome(home)
    except (ValueError, OSError, KeyError) as error:
        return [f"the results cannot be read: {error}"]
    complaints = []
    if found != expected:
        which = [key for key in expected if found.get(key) != expected[key]] + [k for k in found if k not in expected]
        for key in which[:3]:
            complaints.append(f"{key} differs:\n  calm   {expected.get(key)}\n  killed {found.get(key)}"[:3000])
    here = {name for name in left(home) if Path(name).name not in program.loose}
    missing, more = sorted(files - here), sorted(here - files)
    complaints += [f"files are missing: {missing}"] if missing else []
    complaints += [f"files are left over: {more}"] if more else []
    return complaints


# Flips


@dataclass(frozen=True)
class Verdict:
    """What came of a start with a damaged file."""

    named: bool  # the file was named in what was said
    same: bool  # the results are those of the intact file; also if it was refused
    refused: bool
    said: str


Try = Callable[[Path], Verdict]  # with the damaged file


def damage(path: Path, rng: random.Random) -> str:
    """Change a file; in what way."""
    intact = path.read_bytes()
    how = rng.choice(["byte", "byte", "byte", "cut", "empty", "foreign"])
    if how == "byte":
        at = rng.randrange(len(intact))
        changed = bytes([intact[at] ^ rng.randrange(1, 256)])
        path.write_bytes(intact[:at] + changed + intact[at + 1 :])
        return f"byte {at} of {len(intact)} changed from {intact[at : at + 1]!r} to {changed!r}"
    if how == "cut":
        length = rng.randrange(1, len(intact))
        path.write_bytes(intact[:length])
        return f"cut to {length} of {len(intact)} bytes"
    path.write_bytes(b"" if how == "empty" else b"<html><body>503 Service Unavailable</body></html>\n")
    return how


def names(said: str, path: Path) -> bool:
    """Whether the file is named, by its last two parts or by a path."""
    return str(path) in said or path.name in said


def of_cache(home: Path) -> tuple[Callable[[random.Random], Path], Try]:
    """The decoded images of a folder."""
    from prune_env import data
    from tests.helpers.trees import imagefolder

    imagefolder(home / "images")
    os.environ["PRUNE_ENV_CACHE"] = str(home / "cache")
    expected = data.load("imagefolder", root=home / "images")[0].digest
    (path,) = (home / "cache").rglob("*.arrays")

    def attempt(path: Path) -> Verdict:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            digest = data.load("imagefolder", root=home / "images")[0].digest
        said = "\n".join(str(warning.message) for warning in caught)
        return Verdict(names(said, path), digest == expected, False, said)

    return lambda rng: path, attempt


def of_policy(home: Path) -> tuple[Callable[[random.Random], Path], Try]:
    """The shipped policy."""
    import agents
    from agents.learned import SHIPPED

    path = home / "policy.safetensors"
    shutil.copy(SHIPPED, path)

    def attempt(path: Path) -> Verdict:
        try:
            agents.make(f"learned:{path}")
        except ValueError as error:
            return Verdict(names(str(error), path), True, True, str(error))
        return Verdict(False, False, False, "it was loaded")

    return lambda rng: path, attempt


TINY = ("--agents", "full", "ucb", "--seeds", "2", "--budget", "1", "--train-size", "100")
LONG = ("--agents", "ucb", "--seeds", "1", "--budget", "12", "--train-size", "1000", "--checkpoint-seconds", "0")
COMMON = ("--workers", "1", "--device", "cpu", "--name", "run")


def one_by_one(
    runs: Mapping[str, Run], processes: int, terms: workers_of.Terms
) -> Generator[dict[str, Any], None, None]:
    """In place of a pool of processes, each of which would take seconds to start: the runs, in this process."""
    assert terms.folder is not None
    for key, run in runs.items():
        yield play(run, run.make_env(), keeper=Keeper(folder_of(terms.folder, key), terms.checkpoint_seconds, key))


def told(program: Callable[[list[str]], int], *arguments: str) -> tuple[int, str]:
    """Exit status of a program, run in this process, and all that it said."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
        patch.setattr(workers_of, "outcomes", one_by_one)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            code = program(list(arguments))
    return code, said.getvalue()


def again(home: Path, path: Path, expected: Any, files: set[str], arguments: Sequence[str]) -> Verdict:
    """Evaluate once more after a file of the folder was damaged."""
    code, said = told(evaluating.main, *arguments)
    said = said.replace("\n", "")  # lines are broken where a terminal ends
    if code:
        return Verdict(names(said, path), True, True, said)
    here = {name for name in left(home) if not name.endswith(".damaged")}
    same = records(home) == expected and here == files
    return Verdict(names(said, path), same, False, f"{said} {sorted(here ^ files)}")


def of_results(home: Path) -> tuple[Callable[[random.Random], Path], Try]:
    """results.jsonl of runs that have ended."""
    arguments = [*TINY, *COMMON, "--out", str(home)]
    told(evaluating.main, *arguments)
    expected, files = records(home), left(home)
    path = home / "run" / "results.jsonl"
    whole = path.read_bytes()

    def attempt(path: Path) -> Verdict:
        lines = path.read_bytes().splitlines(keepends=True)
        verdict = again(home, path, expected, files, arguments)
        if whole.startswith(b"".join(lines)) and all(line.endswith(b"\n") for line in lines):
            verdict = Verdict(True, verdict.same, verdict.refused, verdict.said)  # correct, but shorter
        path.with_name(DAMAGED_ASIDE).unlink(missing_ok=True)
        return verdict

    return lambda rng: path, attempt


def of_cells(home: Path) -> tuple[Callable[[random.Random], Path], Try]:
    """cells.json, which `train.report` reads and the next start of a program writes anew."""
    told(evaluating.main, *TINY, *COMMON, "--out", str(home))
    path = home / "run" / "cells.json"

    def attempt(path: Path) -> Verdict:
        code, said = told(reporting.main, str(path.parent))
        return Verdict(names(said, path), code != 0, code != 0, said)

    return lambda rng: path, attempt


def interrupted(home: Path) -> tuple[Path, Any, set[str]]:
    """A folder of a run that was killed after some checkpoints, and what the run comes to."""
    calm, killed = home / "calm", home / "killed"
    told(evaluating.main, *LONG, *COMMON, "--out", str(calm))
    command = [sys.executable, "-m", "train.evaluate", *LONG, *COMMON, "--out", str(killed)]
    with open(os.devnull, "w") as nowhere:
        program = subprocess.Popen(
            command, cwd=ROOT, env=ENVIRONMENT, start_new_session=True, stdout=nowhere, stderr=nowhere
        )
    while program.poll() is None and len(saved(killed)) < 3:  # two, and the journal
        time.sleep(0.001)
    if program.poll() is None:
        os.killpg(program.pid, signal.SIGKILL)
    program.wait()
    if not gone(program.pid, 20.0) or len(saved(killed)) < 3:
        raise RuntimeError("the run ended before it could be killed")
    return killed, records(calm), left(calm)


def saved(home: Path) -> list[Path]:
    """Files of checkpoints, those in the writing apart."""
    return sorted(path for path in home.glob("run/checkpoints/*/*") if not path.name.startswith("."))


def of_checkpoints(home: Path, journal: bool = False) -> tuple[Callable[[random.Random], Path], Try]:
    """What a run keeps to go on from; or the journal of what was lost, on which no number of a run rests."""
    killed, expected, files = interrupted(home)
    template = home / "template"
    killed.rename(template)

    def choose(rng: random.Random) -> Path:
        if killed.exists():
            shutil.rmtree(killed)
        shutil.copytree(template, killed)
        return rng.choice([path for path in saved(killed) if (path.name == "journal") == journal])

    def attempt(path: Path) -> Verdict:
        newest = max(one for one in saved(killed) if one.name != "journal")
        verdict = again(killed, path, expected, files, [*LONG, *COMMON, "--out", str(killed)])
        if path != newest and not journal:  # an older one is not read while the newest is whole
            verdict = Verdict(True, verdict.same, verdict.refused, verdict.said)
        return verdict

    return choose, attempt


def of_learning(home: Path) -> tuple[Callable[[random.Random], Path], Try]:
    """What `train.learn` keeps to go on from; its students are in this process."""
    from tests.learning.test_learn import Here, Players
    from train import learn as learning

    learning.ProcessVecEnv, learning.Players, Players.played = Here, Players, []  # pyright: ignore
    arguments = ["--tasks", "tiny", "--steps", "300", "--evaluate-every", "100", "--pool", "4", "--members", "4"]
    arguments += ["--processes", "1", "--out", str(home), "--name", "run"]
    told(learn_tiny, *arguments)
    expected, template = learned(home), home / "template"
    shutil.copytree(home / "run", template)

    def choose(rng: random.Random) -> Path:
        shutil.rmtree(home / "run")
        shutil.copytree(template, home / "run")
        return home / "run" / "checkpoint.pt"

    def attempt(path: Path) -> Verdict:
        code, said = told(learn_tiny, *arguments)
        return Verdict(names(said, path), code != 0 or learned(home) == expected, code != 0, said)

    return choose, attempt


KINDS: dict[str, Callable[[Path], tuple[Callable[[random.Random], Path], Try]]] = {
    "cache": of_cache,
    "policy": of_policy,
    "results": of_results,
    "cells": of_cells,
    "checkpoint": of_checkpoints,
    "learning": of_learning,
    "journal": lambda home: of_checkpoints(home, journal=True),
}


def flips(given: argparse.Namespace) -> list[str]:
    """Table of what was damaged; complaints."""
    complaints = []
    print(f"{'file':12}{'damaged':>9}{'named':>7}{'refused':>9}{'went on, equal':>16}")
    for kind in given.kinds or KINDS:
        rng, verdicts = random.Random(given.seed), []
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            torch.set_num_threads(1)
            choose, attempt = KINDS[kind](Path(folder))
            for _ in range(given.count):
                path = choose(rng)
                intact = path.read_bytes()
                how = damage(path, rng)
                if path.read_bytes() == intact:
                    continue
                verdict = attempt(path)
                verdicts.append(verdict)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(intact)
                if not (verdict.named and verdict.same):
                    wrong = "is accepted silently" if not verdict.named else "changes the results"
                    complaints.append(f"{kind}: {path.name}, {how}, {wrong}: {verdict.said[-600:].strip()}")
        named, refused = (sum(getattr(v, name) for v in verdicts) for name in ("named", "refused"))
        equal = sum(verdict.same and not verdict.refused for verdict in verdicts)
        print(f"{kind:12}{len(verdicts):9}{named:7}{refused:9}{equal:16}", flush=True)
    return complaints


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; 1 if a promise was broken."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] == "learn-tiny":  # what `kills` starts
        return learn_tiny(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m tests.slow.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="check", required=True)
    one = commands.add_parser("episodes", help="memory, threads and open files over many episodes")
    one.add_argument("--count", type=int, default=1000, help="of episodes, each way")
    one = commands.add_parser("kills", help="a program that is killed goes on as if nothing had been")
    one.add_argument("--count", type=int, default=100, help="of kills")
    one.add_argument("--minutes", type=float, default=float("inf"), help="after which no further round begins")
    one.add_argument("--program", choices=PROGRAMS, default="evaluate")
    one.add_argument("--seed", type=int, default=0, help="of the moments")
    one.add_argument("--folder", help="for the results, which are removed; by default that for temporary files")
    one = commands.add_parser("flips", help="damaged files are noticed")
    one.add_argument("--count", type=int, default=200, help="of damages, of each kind of file")
    one.add_argument("--kinds", nargs="+", choices=KINDS, help="all by default")
    one.add_argument("--seed", type=int, default=0, help="of the damages")
    one.add_argument("--folder", help="as for kills")
    given = parser.parse_args(arguments)
    start = time.monotonic()
    complaints = {"episodes": episodes, "kills": kills, "flips": flips}[given.check](given)
    for complaint in complaints:
        print(f"BROKEN: {complaint}")
    print(f"{'no' if not complaints else len(complaints)} complaint(s), {time.monotonic() - start:.0f} s")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
