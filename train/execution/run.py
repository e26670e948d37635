"""One run: an agent trains one student to the end of its budget, and the test split is opened once."""

from __future__ import annotations

import dataclasses
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

import prune_env
from prune_env import data
from prune_env.budget import SCORE_COST, TRAIN_COST
from prune_env.trainer import Trainer
from train.execution import checkpoints, diagnostics, provenance, results
from train.execution.agent import AgentError, Seat, TimeLimit, line_of, printable
from train.execution.checkpoints import Checkpoint
from train.execution.diagnostics import Diary
from train.execution.process import locked
from train.execution.results import OF_MACHINE, Record

CURVE = ("spent", "val_accuracy", "train_accuracy", "kept", "mixed", "scored", "coverage", "lr", "reward")
CHANGED = "the data changed while the evaluation ran"
DIED = "the process died: out of memory, or ended by the agent"
TRACEBACK = 20_000  # characters kept of one
OTHERS_END = 120.0  # seconds for another process at a run: an engine that was killed ends its own, not all at once


@dataclasses.dataclass(frozen=True)
class Run:
    """What there is to do; small, so that it travels to a worker."""

    env: str  # id
    settings: dict[str, Any]  # keyword arguments of the environment, the budget among them
    agent: str  # spec
    seed: int
    task: str = ""  # what tables and figures call the task; no result depends on it
    key: str = ""  # see `results.key_of`; known once it is planned
    rate: str = ""  # what the learning rate was tuned for, in words

    def make_env(self) -> gym.Env:
        """The environment of this run; building it reads the data."""
        return gym.make(self.env, disable_env_checker=True, **self.settings)

    def configuration(self, env: gym.Env) -> dict[str, Any]:
        """Everything that a result depends on, but for agent, seed and code. `env` is from `make_env`."""
        plain = _unwrapped(env)
        return {
            "env": self.env,
            # where the data lies says nothing about a result: the digests stand for it
            "settings": {n: value for n, value in self.settings.items() if n not in OF_MACHINE or n == "device"},
            "recipe": dataclasses.asdict(plain.recipe),
            "device": plain.train_data.device.type,
            "data": {"train": plain.train_data.digest, "val": plain.val_data.digest},
        }


@dataclasses.dataclass(frozen=True)
class Terms:
    """How runs are done."""

    agent_timeout: float = 600.0  # seconds that an agent may take for one decision
    folder: Path | None = None  # of the results, where checkpoints are kept meanwhile
    checkpoint_seconds: float = 60.0  # from one to the next
    device: str = "cpu"  # type of the device that `auto` stands for


@dataclasses.dataclass(frozen=True)
class Failure:
    """A run that has no record."""

    run: Run
    error: str  # one line: type and message of what was raised, or what became of the process
    traceback: str
    final: bool = False  # it is the agent's: going on from a checkpoint would end there again

    def __post_init__(self) -> None:
        told = printable(self.traceback)
        if len(told) > TRACEBACK:  # it ends with the agent's message, which can be of any length
            told = f"{told[:TRACEBACK]}... ({len(told):,} characters)"
        object.__setattr__(self, "traceback", told)


# the last environment by its settings: its data is not read for every run
_kept: dict[str, gym.Env] = {}


def environment(run: Run) -> gym.Env:
    """The environment of a run, that of the run before if it had the same settings."""
    settings = repr((run.env, run.settings))
    if settings not in _kept:
        _kept.clear()  # first, so that two data sets are never held at once
        _kept[settings] = run.make_env()
    return _kept[settings]


def attempt(run: Run, terms: Terms) -> Record | Failure:
    """Do one planned run, or go on with it; whatever is raised becomes a `Failure`, but for what ends the process."""
    try:
        if terms.folder is None:
            return _attempt(run, terms, None)
        folder = checkpoints.folder_of(terms.folder, run.key)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, OTHERS_END):
            return _attempt(run, terms, folder)
    except Exception as error:
        return Failure(run, line_of(error), traceback.format_exc())


def _attempt(run: Run, terms: Terms, folder: Path | None) -> Record | Failure:
    note = None if folder is None else folder / NOTE
    if note is not None and (late := TimeLimit.told(note)):  # another process was ended at this run
        return Failure(run, str(late), late.traceback, final=True)
    limit = TimeLimit(terms.agent_timeout, note)
    try:
        env = environment(run)
        record = play(run, env, Seat(run.agent, run.seed, limit), Checkpoint(folder, terms.checkpoint_seconds))
    except AgentError as error:
        return Failure(run, str(error), error.traceback, final=True)
    finally:
        limit.close()
    if record["key"] != run.key:
        raise RuntimeError(CHANGED)
    return record


NOTE = "late"  # in the folder of a run's checkpoint, see `TimeLimit`


def lost(run: Run, terms: Terms, why: str) -> Failure:
    """Why a run's process is gone: the agent's time limit has ended it, or nobody knows."""
    note = None if terms.folder is None else checkpoints.folder_of(terms.folder, run.key) / NOTE
    late = None if note is None else TimeLimit.told(note)
    return Failure(run, DIED, why) if late is None else Failure(run, str(late), late.traceback, final=True)


def play(run: Run, env: gym.Env, seat: Seat | None = None, checkpoint: Checkpoint | None = None) -> Record:
    """Do one run in `env` (from `run.make_env()`, or that of another run with the same settings).

    Args:
        run: what to do.
        env: where.
        seat: the run's agent; by default one without a time limit.
        checkpoint: of the run, which goes on from there if there is one. By default nothing is kept.

    Returns:
        The record: plain numbers, strings, lists and dicts. Accuracies and shares lie in [0, 1], `spent` is in
        full-epoch equivalents, seconds are wall-clock. `curve` has a list a name of CURVE, a number a step.
    """
    seat = seat or Seat(run.agent, run.seed)
    checkpoint = checkpoint or Checkpoint()
    plain = _unwrapped(env)
    observation, info = env.reset(seed=run.seed)
    diary = Diary(len(plain.train_data))
    curve: dict[str, list[float]] = {name: [] for name in CURVE}
    seconds = {"select": 0.0, "total": 0.0}
    nonfinite = 0
    machines = [provenance.of_machine()]
    kept = checkpoint.load()
    if kept is not None:
        try:
            seat.load_state(kept["agent"])
            observation = plain.load_state_dict(kept["env"])
        except (AgentError, KeyError, ValueError) as error:  # as of an agent whose code is another now
            warnings.warn(f"run {run.agent!r}, seed {run.seed}, starts over: {line_of(error)}", stacklevel=2)
            checkpoint.forget()
            return play(run, env, seat.anew(), checkpoint)
        vars(diary).update(kept["diary"])
        curve, seconds, nonfinite = kept["curve"], kept["seconds"], kept["nonfinite"]
        machines = list(dict.fromkeys([*kept["machines"], *machines]))
    start = time.perf_counter() - seconds["total"]
    terminated = False
    while not terminated:
        difficulty, visits = observation["loss_mean"].copy(), observation["visits"].copy()
        share = float(observation["spent"][0])
        before = time.perf_counter()
        action = seat.act(observation)
        seconds["select"] += time.perf_counter() - before
        observation, reward, terminated, _, info = env.step(action)
        diary.record(difficulty, share, observation["visits"] > visits)  # after the budget's cut
        nonfinite += int(info["nonfinite"])
        point = {**info, "spent": info["total_spent"], "reward": reward}
        for name, values in curve.items():
            values.append(float(f"{point[name]:.6g}"))
        if not terminated and checkpoint.due() and (of_agent := seat.state()) is not None:
            seconds["total"] = time.perf_counter() - start
            checkpoint.save(
                {
                    "env": plain.state_dict(),
                    "agent": of_agent,
                    "diary": vars(diary),
                    "curve": curve,
                    "seconds": seconds,
                    "nonfinite": nonfinite,
                    "machines": machines,
                }
            )
    seconds["total"] = time.perf_counter() - start

    trainer = cast(Trainer, plain.trainer)
    visits = observation["visits"]
    of_class = diagnostics.class_visits(visits, observation["label"], len(plain.train_data.classes))
    outcome: dict[str, Any] = {
        "val_accuracy": trainer.val_accuracy,
        "kept": float(
            np.mean([kept for kept in curve["kept"] if kept > 0] or [0.0])
        ),  # steps that only score do not keep
        "coverage": float(np.mean(visits > 0)),
        "visits": diagnostics.quantiles(visits),
        "visits_gini": diagnostics.gini(visits),
        "class_visits": diagnostics.plain(of_class),
        "wrong_visits": _relative(visits, plain.train_data.wrong.cpu().numpy()),
        "age": float(np.mean(observation["age"], dtype=np.float64)),
        "kept_by_difficulty": diary.kept_by_difficulty(),
        "sometimes": diary.sometimes(),
        "steps": len(curve["spent"]),
        "diverged": bool(info["diverged"]),
        "nonfinite": nonfinite,
        "spent": _spent(trainer),
        "seconds": {**trainer.ledger.seconds, **seconds},
    }
    test = data.load_test(
        gym.spec(run.env).kwargs["dataset"],
        root=run.settings.get("root"),
        image_size=run.settings.get("image_size"),
        images=run.settings.get("images", "auto"),
        device=trainer.device,
    )
    tested = trainer.evaluate(test)
    outcome |= {
        "test_accuracy": tested.accuracy,
        "test_loss": tested.loss,
        "test_nonfinite": tested.nonfinite,
        "test_class_accuracy": diagnostics.plain(np.array(tested.class_accuracy)),
        "test_worst_class_accuracy": float(np.nanmin(tested.class_accuracy)),
    }
    configuration = run.configuration(env)
    return {
        "key": results.key_of(configuration, run.agent, run.seed, test.digest),
        "task": run.task,
        "rate": run.rate,
        "agent": run.agent,
        "budget": plain.budget,
        "seed": run.seed,
        "configuration": configuration,
        "results": outcome,
        "curve": curve,
        "provenance": {
            **provenance.of_process(trainer.device),
            "bf16": trainer.bf16,
            "machines": machines,  # more than one if the run was killed and went on elsewhere
            "own_files": seat.own_files,
            "data": {**configuration["data"], "test": test.digest},
        },
    }


def _unwrapped(env: gym.Env) -> prune_env.PruneEnv:
    return cast(prune_env.PruneEnv, env.unwrapped)


def _relative(visits: NDArray, group: NDArray[np.bool_]) -> float | None:
    """Mean visits of a group of samples, a mask (N,), relative to those of all; None without such, or visits."""
    return float(visits[group].mean() / visits.mean()) if group.any() and visits.any() else None


def _spent(trainer: Trainer) -> dict[str, float]:
    """Full-epoch equivalents by class; `evaluate`, the validation, is free and not in `total`."""
    ledger = trainer.ledger
    return {
        "train": ledger.train / ledger.n,
        "score": ledger.score * SCORE_COST / (ledger.n * TRAIN_COST),
        "evaluate": ledger.evaluate * SCORE_COST / (ledger.n * TRAIN_COST),
        "total": ledger.spent,
    }
