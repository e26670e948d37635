"""One run: an agent trains one student to the end of its budget, and the test split is opened once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
import warnings
from collections.abc import Mapping
from contextlib import closing
from typing import Any, cast

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

import agents
import prune_env
from agents import state
from prune_env import data
from prune_env.budget import SCORE_COST, TRAIN_COST, Ledger
from prune_env.trainer import Trainer
from train.execution import diagnostics, provenance
from train.execution.checkpoints import Keeper
from train.execution.companion import Player, Seat
from train.execution.diagnostics import Diary

CURVE = ("spent", "val_accuracy", "train_accuracy", "kept", "mixed", "scored", "coverage", "lr", "reward")

OF_MACHINE = ("root", "images")  # settings on which no result depends


@dataclasses.dataclass(frozen=True)
class Run:
    """What there is to do; small, so that it travels to a worker."""

    env: str  # id
    settings: dict[str, Any]  # keyword arguments of the environment, the budget among them
    agent: str  # spec
    seed: int
    task: str = ""  # what tables and figures call the task; no result depends on it

    def make_env(self) -> gym.Env:
        """The environment of this run; building it reads the data."""
        return gym.make(self.env, disable_env_checker=True, **self.settings)

    def configuration(self, env: gym.Env) -> dict[str, Any]:
        """Everything that a result depends on, but for agent, seed and code. `env` is from `make_env`."""
        plain = _unwrapped(env)
        return {
            "env": self.env,
            # where the data lies says nothing about a result: the digests stand for it
            "settings": {name: value for name, value in self.settings.items() if name not in OF_MACHINE},
            "recipe": dataclasses.asdict(plain.recipe),
            "device": plain.train_data.device.type,
            "data": {"train": plain.train_data.digest, "val": plain.val_data.digest},
        }

    def key(self, env: gym.Env, agent_digest: str | None = None) -> str:
        """SHA-256 (hex) that equal runs share: configuration, agent and its code, seed, code of the training.

        Args:
            env: from `make_env`.
            agent_digest: `agents.source_digest` of the agent, where its module must not be imported.
        """
        parts = {
            "configuration": self.configuration(env),
            "agent": self.agent,
            "agent_digest": agents.source_digest(self.agent) if agent_digest is None else agent_digest,
            "seed": self.seed,
            "version": prune_env.__version__,
            "code": provenance.decisive_digest(),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def play(run: Run, env: gym.Env, player: Player | None = None, keeper: Keeper | None = None) -> dict[str, Any]:
    """Do one run in `env` (from `run.make_env()`, or that of another run with the same settings).

    Args:
        run: what to do.
        env: where.
        player: the run's agent; by default it lives in this process.
        keeper: of what the run needs to go on after a kill; it goes on from what is there. It is closed
            at the end. By default nothing is kept.

    Returns:
        The record: plain numbers, strings, lists and dicts. Accuracies and shares lie in [0, 1], `spent` is in
        full-epoch equivalents, seconds are wall-clock. `curve` has a list a name of CURVE, a number a step.
    """
    player = player or Seat(run.agent, run.seed)
    keeper = keeper or Keeper()
    plain = _unwrapped(env)
    observation, info = env.reset(seed=run.seed)
    diary = Diary(len(plain.train_data))
    curve: dict[str, list[float]] = {name: [] for name in CURVE}
    seconds = {"select": 0.0, "total": 0.0}
    nonfinite = 0
    with closing(keeper):
        keeper.begin()
        for kept in keeper.states():
            try:
                observation = plain.load_state_dict(kept["env"])
            except (ValueError, KeyError) as error:
                warnings.warn(f"a checkpoint of another run is passed over: {error}", stacklevel=2)
                continue
            state.restore(diary, kept["diary"])
            curve, seconds, nonfinite = kept["curve"], kept["seconds"], kept["nonfinite"]
            player.recall(kept["memory"])
            break
        keeper.resume(_ledger(plain).used)
        start = time.perf_counter() - seconds["total"]
        terminated = False
        while not terminated:
            difficulty, visits = observation["loss_mean"].copy(), observation["visits"].copy()
            share = float(observation["spent"][0])
            before = time.perf_counter()
            action = player.act(observation)
            seconds["select"] += time.perf_counter() - before
            keeper.note(_most(_ledger(plain), action))
            observation, reward, terminated, _, info = env.step(action)
            diary.record(difficulty, share, observation["visits"] > visits)  # after the budget's cut
            nonfinite += int(info["nonfinite"])
            point = {**info, "spent": info["total_spent"], "reward": reward}
            for name, values in curve.items():
                values.append(float(f"{point[name]:.6g}"))
            if keeper.due() and not terminated and (memory := player.memory()) is not None:
                seconds["total"] = time.perf_counter() - start
                keeper.save(
                    len(curve["spent"]),
                    {
                        "env": plain.state_dict(),
                        "diary": state.capture(diary),
                        "curve": curve,
                        "seconds": seconds,
                        "nonfinite": nonfinite,
                        "memory": memory,
                    },
                )
    seconds["total"] = time.perf_counter() - start

    trainer = cast(Trainer, plain.trainer)
    visits = observation["visits"]
    of_class = diagnostics.class_visits(visits, observation["label"], len(plain.train_data.classes))
    results = {
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
    results |= {
        "test_accuracy": tested.accuracy,
        "test_loss": tested.loss,
        "test_nonfinite": tested.nonfinite,
        "test_class_accuracy": diagnostics.plain(np.array(tested.class_accuracy)),
        "test_worst_class_accuracy": float(np.nanmin(tested.class_accuracy)),
    }
    configuration = run.configuration(env)
    return {
        "key": run.key(env, player.digest),
        "task": run.task,
        "agent": run.agent,
        "budget": plain.budget,
        "seed": run.seed,
        "configuration": configuration,
        "results": results,
        "curve": curve,
        "provenance": {
            **provenance.of_process(trainer.device),
            "bf16": trainer.bf16,
            "machines": keeper.machines,  # more than one if it was killed and went on elsewhere
            "agent_digest": player.digest,
            "waste": {
                "interruptions": keeper.interruptions,
                "spent": keeper.wasted / (TRAIN_COST * trainer.ledger.n),
            },
            "data": {**configuration["data"], "test": test.digest},
        },
    }


def _unwrapped(env: gym.Env) -> prune_env.PruneEnv:
    return cast(prune_env.PruneEnv, env.unwrapped)


def _ledger(env: prune_env.PruneEnv) -> Ledger:
    return cast(Trainer, env.trainer).ledger


def _most(ledger: Ledger, action: Mapping[str, NDArray]) -> int:
    """Units of the ledger that are used when a step with this action has ended, at most."""
    kept, scored = (np.count_nonzero(action[name]) for name in ("weight", "score"))
    return min(ledger.used + TRAIN_COST * kept + SCORE_COST * scored, ledger.total)


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
