"""One run: an agent trains one student to the end of its budget, and the test split is opened once."""

from __future__ import annotations

import dataclasses
import sys
import time
import traceback
import warnings
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

import agents
import prune_env
from prune_env import data, ranks
from prune_env.budget import SCORE_COST, TRAIN_COST
from prune_env.threads import one_thread
from prune_env.trainer import Trainer
from train.execution import checkpoints, diagnostics, provenance, results, saved
from train.execution.agent import AgentError, Given, Seat, TimeLimit, late, line_of
from train.execution.checkpoints import Checkpoint, Note
from train.execution.diagnostics import Diary
from train.execution.process import locked
from train.execution.results import OF_MACHINE, Record

CURVE = ("spent", "val_accuracy", "train_accuracy", "kept", "mixed", "scored", "coverage", "lr", "reward")
DIED = "the process died: out of memory, or ended by the agent"
NOTE = "late"  # in the folder of a run's checkpoint, see `TimeLimit`
OTHERS_END = 120.0  # seconds for another process at a run: an engine that was killed ends its own, not all at once


@dataclasses.dataclass(frozen=True)
class Run:
    """What there is to do; small, so that it travels to a worker."""

    env: str  # id
    settings: dict[str, Any]  # keyword arguments of the environment, the budget among them
    agent: str  # spec, or the name of what is given
    seed: int
    task: str = ""  # what tables and figures call the task; no result depends on it
    key: str = ""  # see `results.key_of`; known once it is planned
    rate: str = ""  # what the learning rate was tuned for, in words
    given: Given | None = None  # an agent of the calling program, which no other process can make
    label: str = ""  # what tables and figures call the agent; "" for its spec

    @property
    def own(self) -> bool:
        """Whether it runs code of the calling program, which has no key: no record stands for this run."""
        return self.given is not None or any(map(callable, self.settings.values()))

    def make_env(self) -> gym.Env:
        """Return the environment of this run; building it reads the data."""
        return gym.make(self.env, disable_env_checker=True, **self.settings)

    def configuration(self, env: gym.Env) -> dict[str, Any]:
        """Return everything that a result depends on, but for agent, seed and code. `env` is from `make_env`."""
        plain, settings = _unwrapped(env), results.plain_settings(self.settings)
        return {
            "env": self.env,
            # where the data lies says nothing about a result: the digests stand for it
            "settings": {n: value for n, value in settings.items() if n not in OF_MACHINE or n == "device"},
            "recipe": plain.recipe.plain(),
            "device": plain.train_data.device.type,
            "data": {"train": plain.train_data.digest, "val": plain.val_data.digest},
            **({"network": plain.traits.outline} if plain.traits.outline else {}),
            **({"reference": plain.train_data.reference_digest} if plain.train_data.reference is not None else {}),
        }


@dataclasses.dataclass(frozen=True)
class Terms:
    """How runs are done."""

    folder: Path  # of the results, where checkpoints are kept meanwhile
    agent_timeout: float = 600.0  # seconds that an agent may take for one decision
    checkpoint_seconds: float = 60.0  # from one to the next
    device: str = "cpu"  # type of the device that `auto` stands for
    save_models: bool = False  # see `files`
    save_selections: bool = False

    def files(self, run: Run) -> dict[str, Path]:
        """Return where a run saves its "model" and its "selections", those of the two that are asked for."""
        name = f"{saved.run_name(run.agent, run.settings['budget'], run.seed)}-{run.key[:8]}"
        found = {}
        if self.save_models:
            found["model"] = self.folder / "models" / f"{name}.pt"
        if self.save_selections:
            found["selections"] = self.folder / "selections" / f"{name}.npz"
        return found


@dataclasses.dataclass(frozen=True)
class Failure:
    """A run that has no record."""

    run: Run
    error: str  # one line: type and message of what was raised, or what became of the process
    traceback: str
    final: bool = False  # it is the agent's: going on from a checkpoint would end there again


Outcome = Record | Failure

# the last environment by its settings: its data is not read for every run
_last_env: dict[str, gym.Env] = {}


def attempt(run: Run, terms: Terms) -> Outcome:
    """Do one planned run, or go on with it; whatever is raised becomes a `Failure`, but for what ends the process."""
    folder = checkpoints.folder_of(terms.folder, run.key)
    try:
        with locked(folder, OTHERS_END):
            return perform(run, terms, Checkpoint(folder, terms.checkpoint_seconds), folder / NOTE, late(folder / NOTE))
    except Exception as error:
        return Failure(run, line_of(error), traceback.format_exc())


def perform(run: Run, terms: Terms, checkpoint: Checkpoint, note: Path | None, late: AgentError | None) -> Outcome:
    """Do one planned run, or go on with it. Raises what is not the agent's.

    Args:
        run: what to do.
        terms: how.
        checkpoint: of the run.
        note: where the agent's time limit leaves its note; without one there is no limit.
        late: what another process, which the limit ended at this run, has left there.
    """
    if late:
        return Failure(run, str(late), late.traceback, final=True)
    limit = TimeLimit(terms.agent_timeout, note)
    try:
        return _played(run, terms, limit, checkpoint)
    except AgentError as error:
        return Failure(run, str(error), error.traceback, final=True)
    finally:
        limit.close()


def here(runs: Iterable[Run], terms: Terms) -> Generator[Record, None, None]:
    """Do planned runs in this process, one after the other, on one thread as other processes do.

    Raises what the first run that fails raises, an agent's own exception too, with a note that names the run.
    """
    try:
        for run in runs:
            folder = checkpoints.folder_of(terms.folder, run.key)
            with locked(folder, OTHERS_END), one_thread():
                try:
                    outcome = _played(run, terms, TimeLimit(), Checkpoint(folder, terms.checkpoint_seconds))
                except AgentError as error:
                    outcome = cast(Exception, error.__cause__)
                    if sys.version_info >= (3, 11):
                        outcome.add_note(f"{run.agent}, budget {run.settings['budget']:g}, seed {run.seed}: {error}")
            if isinstance(outcome, Exception):
                checkpoints.forget(terms.folder, run.key)
                raise outcome
            yield outcome
    finally:
        _last_env.clear()  # the caller's process lives on


def _played(run: Run, terms: Terms, limit: TimeLimit, checkpoint: Checkpoint) -> Record:
    """Do a planned run. Raises AgentError, and what is not the agent's."""
    record = play(run, _env_of(run), limit, checkpoint, terms.files(run))
    if record["key"] != run.key:
        raise RuntimeError("the data changed while the evaluation ran")
    return record


def lost(run: Run, terms: Terms, why: str) -> Failure:
    """Say why a run's process is gone: the agent's time limit has ended it, or nobody knows."""
    error = late(checkpoints.folder_of(terms.folder, run.key) / NOTE)
    return Failure(run, str(error), error.traceback, final=True) if error else Failure(run, DIED, why)


def _env_of(run: Run) -> gym.Env:
    """Return the environment of a run: the last run's if the settings are the same."""
    settings = repr((run.env, run.settings))
    if settings not in _last_env:
        _last_env.clear()  # first, so that two data sets are never held at once
        _last_env[settings] = run.make_env()
    return _last_env[settings]


def play(
    run: Run,
    env: gym.Env,
    limit: TimeLimit | None = None,
    checkpoint: Checkpoint | None = None,
    files: Mapping[str, Path] | None = None,
) -> Record:
    """Do one run in `env` (from `run.make_env()`, also of another run with the same settings).

    Args:
        run: what to do.
        env: where.
        limit: on the time that the agent takes for an answer; none by default.
        checkpoint: of the run, which goes on from there if there is one. By default nothing is kept.
        files: what to save besides, see `Terms.files`; nothing by default.

    Returns:
        The record: plain numbers, strings, lists and dicts. Accuracies and shares lie in [0, 1], `spent` is in
        full-epoch equivalents, seconds are wall-clock. `curve` has a list a name of CURVE, a number a step.

    Raises:
        AgentError: whatever the agent raises.
    """
    plain = _unwrapped(env)
    files = files or {}
    seat = Seat(run.agent if run.given is None else run.given, run.seed, limit)
    own_files = provenance.files_digest([] if run.given is not None else agents.own_files(run.agent))
    observation, info = env.reset(seed=run.seed)
    diary = Diary(len(plain.train_data))
    log: dict[str, Any] = {
        "curve": {name: [] for name in CURVE},
        "select": 0.0,
        "total": 0.0,
        "nonfinite": 0,
        "machines": [],
        "weights": [] if "selections" in files else None,  # (N,) of each step
    }
    kept = checkpoint.load() if checkpoint else None
    if checkpoint and kept is not None:
        try:
            if kept["own_files"] != own_files:
                raise ValueError("the agent has changed")
            seat.load_state(kept["agent"])
            observation = plain.load_state_dict(kept["env"])
            vars(diary).update(kept["diary"])
            if kept["log"]["weights"] is None and "selections" in files:
                raise ValueError("its checkpoint has no selections")
            log = kept["log"]
        except (AgentError, KeyError, ValueError) as error:  # as of an agent whose code is another now
            warnings.warn(f"run {run.agent!r}, seed {run.seed}, starts over: {line_of(error)}", stacklevel=2)
            checkpoint.forget()
            return play(run, env, limit, checkpoint, files)
    log["machines"] = list(dict.fromkeys([*log["machines"], provenance.of_machine()]))
    start = time.perf_counter() - log["total"]
    restart = len(log["curve"]["spent"])  # the step from which a killed run goes on
    terminated = False
    while not terminated:
        difficulty, visits = observation["loss_mean"].copy(), observation["visits"].copy()
        share = float(observation["spent"][0])
        before = time.perf_counter()
        action = seat.act(observation)
        log["select"] += time.perf_counter() - before
        observation, reward, terminated, _, info = env.step(action)
        trained = observation["visits"] > visits  # after the budget's cut
        diary.record(difficulty, share, trained)
        if log["weights"] is not None:
            log["weights"].append(np.where(trained, action["weight"], 0).astype(np.float32))
        log["nonfinite"] += int(info["nonfinite"])
        point = {**info, "spent": info["total_spent"], "reward": reward}
        for name, values in log["curve"].items():
            values.append(float(f"{point[name]:.6g}"))
        if checkpoint and not terminated and checkpoint.due() and (of_agent := seat.state()) is not None:
            log["total"] = time.perf_counter() - start
            state = {"env": plain.state_dict(), "agent": of_agent, "own_files": own_files}
            checkpoint.save({**state, "diary": vars(diary), "log": log})
            restart = len(log["curve"]["spent"])
        if checkpoint:
            note: Note = {
                "step": len(log["curve"]["spent"]),
                "spent": float(info["total_spent"]),
                "val_accuracy": float(info["val_accuracy"]),
                "seconds": time.perf_counter() - start,
                "saved": restart,
            }
            checkpoint.tell(note)
    log["total"] = time.perf_counter() - start

    trainer = cast(Trainer, plain.trainer)
    if ranks.here().rank == 0:
        if path := files.get("model"):
            saved.write_model(path, trainer)
        if path := files.get("selections"):
            saved.write_selections(path, cast(list, log["weights"]), log["curve"]["spent"], plain.train_data.source)
    outcome = _outcome(plain, observation, diary, log) | {"diverged": bool(info["diverged"])}
    test = data.load_test(
        run.settings.get("dataset", gym.spec(run.env).kwargs["dataset"]),
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
        "label": run.label,
        "budget": plain.budget,
        "seed": run.seed,
        "configuration": configuration,
        "results": outcome,
        "curve": log["curve"],
        "provenance": {
            **provenance.of_process(trainer.device),
            "bf16": trainer.bf16,
            "machines": log["machines"],  # more than one if the run was killed and went on elsewhere
            "own_files": own_files,
            "data": {**configuration["data"], "test": test.digest},
        },
    }


def _unwrapped(env: gym.Env) -> prune_env.PruneEnv:
    return cast(prune_env.PruneEnv, env.unwrapped)


def _outcome(
    plain: prune_env.PruneEnv, observation: dict[str, NDArray], diary: Diary, log: dict[str, Any]
) -> dict[str, Any]:
    """Return what a run came to before its test: how it trained, on what, and what it spent."""
    trainer = cast(Trainer, plain.trainer)
    ledger, visits, train = trainer.ledger, observation["visits"], plain.train_data
    class_visits = diagnostics.class_visits(visits, observation["label"], len(plain.train_data.classes))
    units = ledger.n * TRAIN_COST  # of a full epoch
    return {
        "val_accuracy": trainer.val_accuracy,
        # steps that only score do not keep
        "kept": float(np.mean([kept for kept in log["curve"]["kept"] if kept > 0] or [0.0])),
        "coverage": float(np.mean(visits > 0)),
        "visits": diagnostics.quantiles(visits),
        "visits_gini": diagnostics.gini(visits),
        "class_visits": diagnostics.plain(class_visits),
        "wrong_visits": diagnostics.relative_visits(visits, train.wrong),
        "corrupted_visits": diagnostics.relative_visits(visits, train.corrupted),
        "age": float(np.mean(observation["age"], dtype=np.float64)),
        "kept_by_difficulty": diary.kept_by_difficulty(),
        "sometimes": diary.sometimes(observation["label"]),
        "steps": len(log["curve"]["spent"]),
        "nonfinite": log["nonfinite"],
        # `evaluate`, the validation, is free and not in `total`
        "spent": {
            "train": ledger.train / ledger.n,
            "score": ledger.score * SCORE_COST / units,
            "evaluate": ledger.evaluate * SCORE_COST / units,
            "reference": ledger.reference / units,
            "total": ledger.spent,
        },
        "seconds": {**ledger.seconds, "select": log["select"], "total": log["total"]},
    }
