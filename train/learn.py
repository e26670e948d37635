"""Train a policy over pruning decisions with PPO: `prune-env learn --help`.

    prune-env learn                               # ten minutes: a policy for any task, from digits tasks only
    prune-env evaluate --agents full learned:runs/learn/digits-ppo-0/policy.npz

The first trains a policy and keeps the one that is best on validation tasks, the second compares it.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, astuple, dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.vec_env import VecMonitor

from prune_env import PruneEnv, io
from prune_env.machine import cores
from prune_env.policy.features import FEATURES
from prune_env.policy.rules import FULL, RULE_PARAMETERS
from prune_env.policy.tasks import Tasks
from train.analysis.text import plus_minus
from train.execution import command_line, provenance
from train.execution.process import Taken, locked
from train.learning import ppo, search
from train.learning.phases import Phases
from train.learning.rollouts import distribution, draw_pairs, play, training_env
from train.learning.subproc_env import ProcessVecEnv
from train.learning.workers import Died, Workers

VALIDATION_SEEDS = range(10_000, 10_006)  # of each validation task
GENERATIONS = 12  # of the search for the best fixed rule
SEARCH_SHARE = 0.4  # of the time, after which that search ends at the latest
BASELINE_SHARE = 0.15  # of the time, after which the pool gets no more pairs
PAIRS = 128  # that full training is run on between two looks at the clock
PROBES = 64  # runs in which the scale of features is measured
# arguments that decide what is drawn, and so cannot change when a run goes on
FIXED = ("tasks", "seed", "pool", "members", "processes", "evaluate_every")
ELSEWHERE = ("out", "name", "engine", "address")  # arguments on which no number depends
# fields of a task that decide whether it is too small
SIZING = ("dataset", "root", "image_size", "train_size", "imbalance", "duplicates", "budget")


@dataclass
class Arguments:
    """Train a policy over pruning decisions on a distribution of tasks; keep the one that is best on validation tasks.

    First the best fixed rule is searched; the policy starts as that rule. An episode is rewarded at its end, by its
    validation accuracy over the mean of full training and of that rule on the same task and seed. Held-out tasks are
    never touched. OUT/NAME gets policy.npz (for `--agents learned:PATH`), evaluations.jsonl, TensorBoard's
    events, SB3's model.zip, and a checkpoint: the same command goes on from the last evaluation. With --steps alone, a
    run that was killed ends with the same results.
    """

    tasks: str = "digits"
    """Distribution of tasks: `digits`, `natural`, `convnets`, `mixed` (digits and natural); several joined by +, which
    are drawn equally often; or a TOML file with its arguments."""
    root: tuple[str, ...] = ()
    """Folders of images, for tasks of image folders: `natural`, `convnets` and `mixed`; by default $PRUNE_ENV_DATA."""
    minutes: float | None = None
    """Time for all of it; 10 without --steps. The search before training takes up to two fifths."""
    steps: int | None = None
    """Epochs of students, in whole rollouts. With --minutes, whichever comes first ends it."""
    members: int = 96
    """Students in training at once."""
    processes: int = min(96, cores())
    """Processes that the students are spread over, by default one a core; another number draws other episodes."""
    engine: Literal["local", "ray"] = "local"
    """Where these processes are: on this machine, or on a Ray cluster; see docs/scale.md."""
    address: str | None = None
    """With ray: address of the cluster, `auto` or HOST:PORT; by default one is started on this machine, and ended."""
    pool: int = 512
    """Pairs of training task and seed that episodes are drawn from; fewer where full training on them takes long."""
    evaluate_every: int = 49_152
    """Steps between evaluations on validation tasks."""
    seed: int = 0
    """Seed of everything that is drawn."""
    out: Path = Path("runs/learn")
    """Folder of policies."""
    name: str | None = None
    """Folder of this one in OUT; by default TASKS-ppo-SEED."""


@dataclass
class Start:
    """What is known before a policy is trained. Accuracies are in [0, 1]."""

    rule: list[float]  # (R,) the best fixed one
    searched: int  # episodes that the search took
    shift: list[float]  # (D,) mean of the features
    scale: list[float]  # (D,) their deviation
    baseline: list[float]  # (P,) on the pool, the mean of full training and the fixed rule
    full: list[float]  # (V,) full training on the validation pairs
    fixed: list[float]  # (V,) the fixed rule on the validation pairs


@dataclass
class Progress:
    """How far a run is."""

    seconds: float = 0.0
    steps: int = 0
    episodes: int = 0
    best: float = -math.inf  # points over full training in validation


class Another(Exception):
    """The folder holds a run with other arguments."""


class Clock(BaseCallback):
    """Ends a model's training when the time is over; asks for the bar to be drawn."""

    def __init__(self, end: float, show: Callable[[PPO], None]):
        super().__init__()
        self._end = end  # of time.perf_counter()
        self._show = show

    def _on_step(self) -> bool:
        self._show(self.model)  # pyright: ignore[reportArgumentType]  (it is a PPO)
        return time.perf_counter() < self._end


class Learning:
    """One policy's training: the search before it, evaluations in between, and the files that it leaves."""

    def __init__(self, given: Arguments, tasks: Tasks, folder: Path, workers: Workers):
        self._given, self._tasks, self._folder, self._workers = given, tasks, folder, workers
        self._phases = Phases(Console())
        self._pairs = draw_pairs(tasks, given.pool, np.random.default_rng([given.seed, 0]))
        self._validation = [(task, seed) for task in tasks.validation for seed in VALIDATION_SEEDS]
        self._limit = 60.0 * (given.minutes or math.inf)  # seconds
        self._begun = time.perf_counter()
        self._progress = Progress()
        self._evaluations: list[dict[str, float]] = []
        self._parameters: dict[str, Any] | None = None  # of the model
        self._start: Any = None

    @property
    def _seconds(self) -> float:
        """Seconds at work so far, with earlier runs of the command up to their last checkpoint."""
        return time.perf_counter() - self._begun

    def run(self) -> None:
        """Train until the time or the steps are over. Raises Another if a run with other arguments is there."""
        say = self._phases.say
        with self._phases:
            if self._load():
                say(f"going on after {self._seconds / 60:.1f} minutes")
            else:
                self._start = self._prepare()
                self._save()
            self._pairs = self._pairs[: len(self._start.baseline)]
            make = partial(training_env, self._tasks, pairs=self._pairs, baseline=self._start.baseline)
            sizes = [len(part) for part in np.array_split(np.arange(self._given.members), self._given.processes)]
            env = ProcessVecEnv(self._workers, [partial(make, size) for size in sizes])
            logger = configure(str(self._folder / "tensorboard"), ["tensorboard"])
            if self._share(self._progress.steps) < 1.0:
                say(
                    "return: mean of the last 100 episodes, in points over the mean of full training and the fixed rule"
                )
                say(
                    f"validation: points over full training; ± is the standard error over {len(self._validation)} "
                    "pairs of task and seed"
                )
                with self._phases.phase("training") as show:
                    while self._share(self._progress.steps) < 1.0:
                        self._train(env, logger, show)
            if not self._evaluations:  # the search took all the time
                self._evaluate(self._model(env), env, logger)
            if not self._progress.steps:
                say("no time was left to train: this is the best fixed rule; give more --minutes")
        policy = self._folder / "policy.npz"
        say(f"the best policy is {policy}: {self._progress.best:+.2f} points over full training in validation")
        say(shlex.join(["prune-env", "evaluate", "--agents", "full", "balanced", f"learned:{policy}"]))

    def _share(self, steps: int) -> float:
        """Return how much of the time is over, or of the steps if that is more: 1 or above at the end."""
        return max(steps / (self._given.steps or math.inf), self._seconds / self._limit)

    def _model(self, env: ProcessVecEnv) -> PPO:
        """Return the model as it stands, with generators that are seeded for the steps that follow."""
        start, steps = self._start, self._progress.steps
        seed = int(np.random.default_rng([self._given.seed, 3, steps]).integers(2**31))
        monitored = VecMonitor(env)  # its mean returns go to TensorBoard
        model = ppo.build(monitored, start.rule, start.shift, start.scale, seed)
        if self._parameters is not None:
            model.set_parameters(self._parameters, device="cpu")
        model.num_timesteps = steps
        return model

    def _train(self, env: ProcessVecEnv, logger: Logger, show: Callable[..., None]) -> None:
        """Train up to the next evaluation.

        Every segment starts from the saved state, with new episodes, so that interrupted and uninterrupted runs agree.
        """
        model = self._model(env)
        model.set_logger(logger)
        ahead = min(self._given.evaluate_every, (self._given.steps or math.inf) - self._progress.steps)

        def show_steps(model: PPO) -> None:
            show(self._share(model.num_timesteps), f"{model.num_timesteps:,} steps, return {mean_return(model)}")

        clock = Clock(self._begun + self._limit, show_steps)
        model.learn(int(ahead), callback=clock, reset_num_timesteps=False)  # in whole rollouts
        self._progress.steps = model.num_timesteps
        show(self._share(model.num_timesteps), "validation")
        self._evaluate(model, env, logger)

    def _prepare(self) -> Start:
        """Measure the baseline, search the best fixed rule, and measure the scale of the features."""
        given, workers, say = self._given, self._workers, self._phases.say
        baseline = np.zeros(0)
        with self._phases.phase("full training") as show:
            while not len(baseline) or (len(baseline) < given.pool and self._seconds < BASELINE_SHARE * self._limit):
                at = len(baseline)
                baseline = np.append(baseline, workers.play(self._pairs[at : at + PAIRS], FULL))
                if not at:
                    self._warn_of_little_time(len(baseline))
                show(max(len(baseline) / given.pool, self._seconds / (BASELINE_SHARE * self._limit)))
        say(f"full training reaches {100 * baseline.mean():.1f} % on {len(baseline)} pairs of training task and seed")
        since = self._seconds
        rng = np.random.default_rng([given.seed, 2])
        with self._phases.phase("search of a fixed rule") as show:

            def go_on(generations: int) -> bool:
                share = max(generations / GENERATIONS, (self._seconds - since) / (SEARCH_SHARE * self._limit))
                show(share)
                return share < 1.0

            rule, searched = search.fixed_rule(workers, self._tasks, rng, go_on)
        with self._phases.phase("that rule, for comparison") as show:
            baseline = (baseline + workers.play(self._pairs[: len(baseline)], rule)) / 2
            show(0.5)
            full, fixed = (workers.play(self._validation, rules) for rules in (FULL, rule))
            show(0.9)
            shift, scale = _moments(self._tasks, rule, rng)
        words = ", ".join(f"{name} {value:+.2f}" for name, value in zip(RULE_PARAMETERS, rule, strict=True))
        say(f"best fixed rule after {searched} episodes: {words}; {_over_full(fixed, full)} in validation")
        return Start(
            rule=rule.tolist(),
            searched=searched,
            shift=shift.tolist(),
            scale=scale.tolist(),
            baseline=baseline.tolist(),
            full=full.tolist(),
            fixed=fixed.tolist(),
        )

    def _warn_of_little_time(self, played: int) -> None:
        """Say so if the time will be over before a policy has learned anything, going by the runs played so far."""
        rollout = self._given.members * ppo.SETTINGS["n_steps"] / np.mean([task.budget for task, _ in self._pairs])
        ahead = search.CANDIDATES * search.PAIRS + played + 3 * len(self._validation) + PROBES + rollout  # episodes
        needed = self._seconds * (1.0 + ahead / played)
        if needed > self._limit:
            self._phases.say(
                f"warning: --minutes {self._given.minutes:g} may be too little: going by the first {played} runs, it "
                f"takes about {needed / 60:.2g} until a policy has learned from anything; give "
                f"{max(1, math.ceil(3 * needed / 60))} or more"
            )

    def _evaluate(self, model: PPO, env: ProcessVecEnv, logger: Logger) -> None:
        """Play the validation tasks, keep the policy if it is the best so far, and save a checkpoint."""
        accuracy = self._workers.play(self._validation, ppo.network_of(model, {}))
        points = 100.0 * float(np.mean(accuracy - np.array(self._start.full)))
        progress, former = self._progress, self._progress.best
        progress.episodes += env.episodes
        env.episodes = 0
        progress.best = max(former, points)
        progress.seconds = self._seconds
        self._parameters = model.get_parameters()
        self._evaluations.append({**asdict(progress), "points": points})
        if points > former:
            zipped = BytesIO()
            model.save(zipped)
            io.write_atomic(self._folder / "model.zip", zipped.getvalue())
            ppo.network_of(model, self._card(accuracy)).save(self._folder / "policy.npz")
        self._save()
        logger.record("validation/points_over_full", points)
        logger.dump(progress.steps)
        left = "" if math.isinf(self._limit) else f"; {max(0.0, self._limit - self._seconds) / 60:.1f} left"
        self._phases.say(
            f"{self._seconds / 60:5.1f} minutes, {progress.steps:,} steps, {progress.episodes:,} episodes: return "
            f"{mean_return(model)}; validation {_over_full(accuracy, self._start.full)}, best "
            f"{progress.best:+.2f}{left}"
        )

    def _identity(self) -> dict[str, Any]:
        """Return what has to be the same for a run to go on, as JSON has it."""
        fixed = {name: getattr(self._given, name) for name in FIXED}
        version = {"features": FEATURES, "parameters": RULE_PARAMETERS}
        return json.loads(json.dumps({"arguments": fixed, "distribution": asdict(self._tasks), "version": version}))

    def _save(self) -> None:
        """Write the checkpoint, and the evaluations for people to read."""
        self._progress.seconds = self._seconds
        state = {
            "identity": self._identity(),
            "start": asdict(self._start),
            "progress": astuple(self._progress),
            "evaluations": self._evaluations,
            "parameters": self._parameters,
        }
        written = BytesIO()
        torch.save(state, written)
        io.write_atomic(self._folder / "checkpoint.pt", written.getvalue())
        lines = "".join(json.dumps(line) + "\n" for line in self._evaluations)
        io.write_atomic(self._folder / "evaluations.jsonl", lines.encode())

    def _load(self) -> bool:
        """Go on from the checkpoint, if there is one. Raises Another if its run is another one."""
        path = self._folder / "checkpoint.pt"
        if not path.exists():
            return False
        try:
            state = torch.load(path, weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            self._phases.say(f"{path} cannot be read, so this run starts over: {error}")
            return False
        kept, own = state["identity"], self._identity()
        if kept.get("version") != own["version"]:
            raise Another(f"{self._folder} holds a run with other features or rules than this version; choose --name")
        if kept["distribution"] != own["distribution"]:
            raise Another(f"{self._folder} holds a run with other tasks than {self._given.tasks!r} has; choose --name")
        if kept != own:
            words = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in kept["arguments"].items())
            raise Another(f"{self._folder} holds a run with {words}; go on with these, or choose another --name")
        self._start, self._evaluations = Start(**state["start"]), state["evaluations"]
        self._progress = Progress(*state["progress"])
        self._begun -= self._progress.seconds
        self._parameters = state["parameters"]
        return True

    def _card(self, accuracy: NDArray) -> dict[str, Any]:
        """Return where the policy comes from, and what it does on the validation tasks."""
        over = {"full": self._start.full, "fixed_rule": self._start.fixed}
        points = {f"points_over_{name}": 100.0 * float(np.mean(accuracy - np.array(its))) for name, its in over.items()}
        return {
            "arguments": {name: value for name, value in asdict(self._given).items() if name not in ELSEWHERE},
            "training": {**asdict(self._progress), "searched": self._start.searched, "pool": len(self._pairs)},
            "tasks": asdict(self._tasks),
            "validation": {"pairs": len(self._validation), **points},
            "fixed_rule": dict(zip(RULE_PARAMETERS, self._start.rule, strict=True)),
            "code": provenance.of_code(),
            "machine": provenance.of_machine(),
        }


def check(given: Arguments) -> Tasks:
    """Return the tasks. Raises ValueError for arguments that are wrong."""
    tasks = distribution(given.tasks, given.root)
    if min(given.members, given.processes, given.pool) < 1 or given.members < given.processes:
        raise ValueError("--processes and --pool must be at least 1, and --members no fewer than --processes")
    if given.evaluate_every < 1:
        raise ValueError(f"--evaluate-every is {given.evaluate_every}; it must be at least 1 step")
    if given.address is not None and given.engine != "ray":
        raise ValueError(f"--address needs --engine ray; the engine is {given.engine}")
    for name in ("minutes", "steps"):
        value = getattr(given, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name} is {value}; it must be above 0")
    if given.seed < 0:
        raise ValueError(f"--seed is {given.seed}; it must be 0 or more")
    if not tasks.validation:
        raise ValueError(f"--tasks {given.tasks} has no validation tasks, by which the best policy is chosen")
    tried: set[Any] = set()
    for task in (*tasks.training, *tasks.validation):  # one for each value, and each size, that tasks have
        values = {*asdict(task).items(), tuple(getattr(task, field) for field in SIZING)}
        if not values <= tried:
            try:
                PruneEnv(**task.settings())
            except (TypeError, ValueError, OSError) as error:
                raise ValueError(f"--tasks {given.tasks}: {task}: {' '.join(str(error).split())}") from error
            tried |= values
    return tasks


def _moments(tasks: Tasks, rule: NDArray, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Measure mean and deviation (D,) of features under rules around this one.

    The deviation of a feature that hardly varies is set to infinity, so that the policy does not read it: its weights
    would stay as they were drawn, and add noise on tasks where the feature has another value.
    """
    seen: list[NDArray] = []

    def around(features: NDArray, begun: NDArray[np.bool_]) -> NDArray:
        seen.append(features)
        return np.clip(rule + 0.3 * rng.standard_normal((len(features), len(RULE_PARAMETERS))), -1.0, 1.0)

    play(draw_pairs(tasks, PROBES, rng), around, tasks)
    features = np.concatenate(seen)
    scale = features.std(axis=0)
    return features.mean(axis=0), np.where(scale < ppo.SMALLEST_SCALE, np.inf, np.maximum(scale, 0.05))


def mean_return(model: PPO) -> str:
    """Return the mean reward of the last 100 episodes in words."""
    returns = [episode["r"] for episode in model.ep_info_buffer or ()]
    return f"{np.mean(returns):+.2f}" if returns else "not known yet"


def _over_full(accuracy: NDArray, full: Sequence[float] | NDArray) -> str:
    points = 100.0 * (accuracy - np.array(full))
    return f"{plus_minus(points, '+.2f')} points over full training"


def main(args: list[str] | None = None) -> int:
    """Run the program with `args` (else those of the command line); return its exit status."""
    given = command_line.read("learn", Arguments, args)
    torch.set_num_threads(1)  # the other cores have processes of their own
    if given.minutes is None and given.steps is None:
        given = replace(given, minutes=10.0)
    cluster, make_workers = nullcontext(), Workers
    try:
        tasks = check(given)
        if given.engine == "ray":
            from train.learning import ray_env

            cluster, make_workers = ray_env.cluster(given), ray_env.RayWorkers
    except ModuleNotFoundError as error:
        return command_line.refused(f"--engine ray needs {error.name}: pip install -e '.[ray]'")
    except (ValueError, OSError) as error:
        return command_line.refused(error)
    folder = given.out / (given.name or f"{Path(given.tasks).stem}-ppo-{given.seed}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder), cluster, closing(make_workers(tasks, given.processes)) as workers:
            Learning(given, tasks, folder, workers).run()
    except Died as error:
        return command_line.refused(f"{error}; the same command goes on from the last evaluation", 1)
    except (Another, ConnectionError) as error:
        return command_line.refused(error)
    except Taken:
        return command_line.refused(f"another program is at {folder}; wait for its end, or choose --name")
    except OSError as error:
        return command_line.refused(f"cannot go on in {folder}: {error}; the same command goes on from there", 3)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last evaluation", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
