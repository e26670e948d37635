"""Train a policy over pruning decisions with PPO: `python -m train.learn --help`.

python -m train.learn                               # ten minutes: a policy for any task, from digits tasks only
python -m train.evaluate --agents full learned:runs/learn/digits-ppo-0/policy.safetensors
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from gymnasium import spaces
from numpy.typing import NDArray
from rich.console import Console
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from torch import nn

from agents.learned import Network
from prune_env import PruneEnv, io
from prune_env.machine import cores
from prune_env.policy.rules import RULE_PARAMETERS
from prune_env.policy.tasks import TaskDistribution
from train.execution import provenance
from train.execution.process import Taken, locked
from train.learning import search
from train.learning.rollouts import FULL, Pair, Players, Rollouts, distribution, draw_pairs, make_env, play
from train.learning.sb3_env import SB3VecEnv
from train.learning.subproc_env import Died, ProcessVecEnv

CLIP = 10.0  # points, see Rollouts
VALIDATION_SEEDS = range(10_000, 10_006)  # of each validation task
GENERATIONS = 12  # of the search for the best fixed rule
SEARCH_SHARE = 0.4  # of the time, after which that search ends at the latest
BASELINE_SHARE = 0.15  # of the time, after which the pool gets no more pairs
PAIRS = 128  # that full training is run on between two looks at the clock
PROBES = 64  # runs in which the scale of features is measured
SMALLEST_SCALE = 0.02  # features that deviate less are not read
LARGEST_START = 0.95  # of a rule parameter that a policy starts at: at 1 the policy could not move
# arguments that decide what is drawn, and so cannot change when a run goes on
FIXED = ("tasks", "seed", "pool", "members", "processes", "evaluate_every")
# fields of a task that decide whether it is too small
SIZING = ("dataset", "root", "image_size", "train_size", "imbalance", "duplicates", "budget")

# gamma and lambda are 1 since an episode is judged as a whole, at its end. Noise stays through a rollout (gSDE, arXiv
# 2005.05719): noise that is drawn anew in each of a dozen steps cancels out. Found on the training tasks.
SETTINGS: dict[str, Any] = {"n_steps": 32, "gamma": 1.0, "gae_lambda": 1.0, "learning_rate": 1e-3}
SETTINGS |= {"batch_size": 512, "n_epochs": 6, "use_sde": True}
LOG_STD = -3.0  # 1 is the whole range of a parameter; gSDE's noise is a sum over the 64 units of the last layer


@dataclass
class Arguments:
    """Train a policy over pruning decisions on a distribution of tasks; keep the one that is best on validation tasks.

    First the best fixed rule is searched; the policy starts as that rule. An episode is rewarded at its end, by its
    validation accuracy over the mean of full training and of that rule on the same task and seed. Held-out tasks are
    never touched. OUT/NAME gets policy.safetensors (for `--agents learned:PATH`), evaluations.jsonl, TensorBoard's
    events, SB3's model.zip, and a checkpoint: the same command goes on from the last evaluation. With --steps alone, a
    run that was killed ends with the same results.
    """

    tasks: str = "digits"
    """Distribution of tasks: a name, see prune_env/policy/tasks.py, or a TOML file with its arguments."""
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
    """With ray: of the cluster, `auto` or HOST:PORT; by default one is started on this machine, and ended."""
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


class Scaled(BaseFeaturesExtractor):
    """Scales features to mean 0 and deviation 1."""

    def __init__(self, observation_space: spaces.Box, shift: list[float], scale: list[float]):
        super().__init__(observation_space, len(shift))
        self.shift, self.scale = (nn.Parameter(torch.tensor(x), requires_grad=False) for x in (shift, scale))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return (observations - self.shift) / self.scale


def build(env: VecEnv, start: Start, seed: int) -> PPO:
    """Return a PPO model whose policy is the best fixed rule."""
    policy = {
        "net_arch": [64, 64],
        "features_extractor_class": Scaled,
        "features_extractor_kwargs": {"shift": start.shift, "scale": start.scale},
        "log_std_init": LOG_STD,
    }
    model = PPO("MlpPolicy", env, policy_kwargs=policy, device="cpu", seed=seed, **SETTINGS)
    last: Any = model.policy.action_net
    with torch.no_grad():
        last.weight.mul_(0.01)
        last.bias.copy_(torch.tensor(np.clip(start.rule, -LARGEST_START, LARGEST_START)))
    return model


def network_of(model: PPO, card: dict[str, Any]) -> Network:
    """Return the policy of a model as a plain network of unscaled features."""
    policy: Any = model.policy
    modules = [*policy.mlp_extractor.policy_net, policy.action_net]
    layers = [
        tuple(parameter.detach().numpy().copy() for parameter in (module.weight, module.bias))
        for module in modules
        if isinstance(module, nn.Linear)
    ]
    weight, bias = layers[0]
    weight = weight / policy.features_extractor.scale.numpy()
    layers[0] = weight, bias - weight @ policy.features_extractor.shift.numpy()
    return Network(layers, "tanh", "clip", card)


class Another(Exception):
    """The folder holds a run with other arguments."""


class Clock(BaseCallback):
    """Ends a model's training when the time is over."""

    def __init__(self, end: float):
        super().__init__()
        self._end = end  # of time.perf_counter()

    def _on_step(self) -> bool:
        return time.perf_counter() < self._end


def rollouts(tasks: TaskDistribution, members: int, pairs: list[Pair], baseline: list[float]) -> VecEnv:
    """Return the training environment of one process; PPO seeds it."""
    env = make_env(members, tasks)
    return SB3VecEnv(Rollouts(env, pairs, np.array(baseline), np.random.default_rng(), CLIP))


class Learning:
    """One policy's training: the search before it, evaluations in between, and the files that it leaves."""

    def __init__(
        self, given: Arguments, tasks: TaskDistribution, folder: Path, console: Console, players: Any, vec_env: Any
    ):
        self._given, self._tasks, self._folder, self._console = given, tasks, folder, console
        self._players, self._vec_env = players, vec_env
        self._pairs = draw_pairs(tasks.training, given.pool, np.random.default_rng([given.seed, 0]))
        self._validation = [(task, seed) for task in tasks.validation for seed in VALIDATION_SEEDS]
        self._limit = 60.0 * (given.minutes or math.inf)  # seconds
        self._former = 0.0  # seconds of former sittings, up to their last checkpoint
        self._begun = time.perf_counter()
        self._steps = self._episodes = 0
        self._best = -math.inf
        self._evaluations: list[dict[str, float]] = []
        self._parameters: dict[str, Any] | None = None  # of the model
        self._start: Any = None

    @property
    def _seconds(self) -> float:
        """Seconds at work so far, over all sittings."""
        return self._former + time.perf_counter() - self._begun

    def run(self) -> None:
        """Train until the time or the steps are over. Raises Another if a run with other arguments is there."""
        if self._load():
            self._console.print(f"going on after {self._seconds / 60:.1f} minutes")
        else:
            self._start = self._prepare()
            self._save()
        self._pairs = self._pairs[: len(self._start.baseline)]
        sizes = [len(part) for part in np.array_split(np.arange(self._given.members), self._given.processes)]
        make = partial(rollouts, self._tasks, pairs=self._pairs, baseline=self._start.baseline)
        with closing(self._vec_env([partial(make, size) for size in sizes])) as env:
            logger = configure(str(self._folder / "tensorboard"), ["tensorboard"])
            while self._steps < (self._given.steps or math.inf) and self._seconds < self._limit:
                self._train(env, logger)
            if not self._evaluations:  # the search took all the time
                self._evaluate(self._model(env), env, logger)
        if not self._steps:
            self._console.print("no time was left to train: this is the best fixed rule; give more --minutes")

    def _model(self, env: VecEnv) -> PPO:
        """Return the model as it stands, with generators that are seeded for the steps that follow."""
        seed = int(np.random.default_rng([self._given.seed, 3, self._steps]).integers(2**31))
        model = build(VecMonitor(env), self._start, seed)  # its mean returns go to TensorBoard
        if self._parameters is not None:
            model.set_parameters(self._parameters, device="cpu")
        model.num_timesteps = self._steps
        return model

    def _train(self, env: VecEnv, logger: Logger) -> None:
        """Train up to the next evaluation.

        Every segment starts from the saved state, with new episodes, so that interrupted and uninterrupted runs agree.
        """
        model = self._model(env)
        model.set_logger(logger)
        ahead = min(self._given.evaluate_every, (self._given.steps or math.inf) - self._steps)
        clock = Clock(time.perf_counter() + self._limit - self._seconds)
        model.learn(int(ahead), callback=clock, reset_num_timesteps=False)  # in whole rollouts
        self._steps = model.num_timesteps
        self._evaluate(model, env, logger)

    def _prepare(self) -> Start:
        """Measure the baseline, search the best fixed rule, and measure the scale of the features."""
        given, players = self._given, self._players
        self._console.print(f"full training on up to {given.pool} pairs of task and seed, for comparison")
        played: list[NDArray] = []
        while sum(map(len, played)) < given.pool and (not played or self._seconds < BASELINE_SHARE * self._limit):
            at = len(played) * PAIRS
            played.append(players.play(self._pairs[at : at + PAIRS], FULL))
        baseline = np.concatenate(played)
        until = self._seconds + SEARCH_SHARE * self._limit

        def go_on(generations: int) -> bool:
            return generations < GENERATIONS and self._seconds < until

        rng = np.random.default_rng([given.seed, 2])
        rule, searched = search.fixed_rule(players, self._tasks, rng, go_on)
        baseline = (baseline + players.play(self._pairs[: len(baseline)], rule)) / 2
        full, fixed = (players.play(self._validation, rules) for rules in (FULL, rule))
        words = ", ".join(f"{name} {value:+.2f}" for name, value in zip(RULE_PARAMETERS, rule, strict=True))
        self._console.print(f"best fixed rule after {searched} episodes: {words}; {_over_full(fixed, full)}")
        shift, scale = _moments(self._tasks, rule, rng)
        arrays = (rule, shift, scale, baseline, full, fixed)
        rule, shift, scale, baseline, full, fixed = (array.tolist() for array in arrays)
        return Start(rule, searched, shift, scale, baseline, full, fixed)

    def _evaluate(self, model: PPO, env: Any, logger: Logger) -> None:
        """Play the validation tasks, keep the policy if it is the best so far, and save a checkpoint."""
        accuracy = self._players.play(self._validation, network_of(model, {}))
        points = 100.0 * float(np.mean(accuracy - np.array(self._start.full)))
        self._episodes += env.episodes
        env.episodes = 0
        self._parameters = model.get_parameters()
        best, self._best = self._best, max(self._best, points)
        progress = {"seconds": self._seconds, "steps": self._steps, "episodes": self._episodes, "best": self._best}
        self._evaluations.append({**progress, "points": points})
        if points > best:
            zipped = BytesIO()
            model.save(zipped)
            io.write_atomic(self._folder / "model.zip", zipped.getvalue())
            network_of(model, self._card(accuracy, progress)).save(self._folder / "policy.safetensors")
        self._save()
        logger.record("validation/points_over_full", points)
        logger.dump(self._steps)
        left = "" if math.isinf(self._limit) else f"; {max(0.0, self._limit - self._seconds) / 60:.1f} left"
        self._console.print(
            f"{self._seconds / 60:5.1f} minutes, {self._steps:,} steps, {self._episodes:,} episodes: validation "
            f"{_over_full(accuracy, self._start.full)}, best {self._best:+.2f}{left}"
        )

    def _identity(self) -> dict[str, Any]:
        """Return what has to be the same for a run to go on, as JSON has it."""
        fixed = {name: getattr(self._given, name) for name in FIXED}
        return json.loads(json.dumps({"arguments": fixed, "distribution": asdict(self._tasks)}))

    def _save(self) -> None:
        """Write the checkpoint, and the evaluations for people to read."""
        state = {
            "identity": self._identity(),
            "start": asdict(self._start),
            "progress": (self._seconds, self._steps, self._episodes, self._best),
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
            self._console.print(f"{path} cannot be read, so this run starts over: {error}")
            return False
        kept = state["identity"]
        if kept["distribution"] != self._identity()["distribution"]:
            raise Another(f"{self._folder} holds a run with other tasks than {self._given.tasks!r} has; choose --name")
        if kept != self._identity():
            words = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in kept["arguments"].items())
            raise Another(f"{self._folder} holds a run with {words}; go on with these, or choose another --name")
        self._start, self._evaluations = Start(**state["start"]), state["evaluations"]
        self._former, self._steps, self._episodes, self._best = state["progress"]
        self._parameters = state["parameters"]
        return True

    def _card(self, accuracy: NDArray, progress: dict[str, float]) -> dict[str, Any]:
        """Return where the policy comes from, and what it does on the validation tasks."""
        elsewhere = ("out", "name", "engine", "address")  # on which no number depends
        over = {"full": self._start.full, "fixed_rule": self._start.fixed}
        return {
            "arguments": {name: value for name, value in asdict(self._given).items() if name not in elsewhere},
            "training": {**progress, "searched": self._start.searched, "pool": len(self._pairs)},
            "tasks": asdict(self._tasks),
            "validation": {"pairs": len(self._validation)}
            | {f"points_over_{name}": 100.0 * float(np.mean(accuracy - np.array(its))) for name, its in over.items()},
            "fixed_rule": dict(zip(RULE_PARAMETERS, self._start.rule, strict=True)),
            "code": provenance.of_code(),
            "machine": provenance.of_machine(),
        }


def check(given: Arguments) -> TaskDistribution:
    """Return the tasks. Raises ValueError for arguments that are wrong."""
    tasks = distribution(given.tasks)
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


def _moments(tasks: TaskDistribution, rule: NDArray, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Measure mean and deviation (D,) of features under rules around this one.

    The deviation of a feature that hardly varies is set to infinity, so that the policy does not read it: its weights
    would stay as they were drawn, and add noise on tasks where the feature has another value.
    """
    seen: list[NDArray] = []

    def around(features: NDArray, begun: NDArray[np.bool_]) -> NDArray:
        seen.append(features)
        return np.clip(rule + 0.3 * rng.standard_normal((len(features), len(RULE_PARAMETERS))), -1.0, 1.0)

    play(draw_pairs(tasks.training, PROBES, rng), around, tasks)
    features = np.concatenate(seen)
    scale = features.std(axis=0)
    return features.mean(axis=0), np.where(scale < SMALLEST_SCALE, np.inf, np.maximum(scale, 0.05))


def _over_full(accuracy: NDArray, full: Sequence[float] | NDArray) -> str:
    points = 100.0 * (accuracy - np.array(full))
    return f"{points.mean():+.2f} ± {points.std(ddof=1) / len(points) ** 0.5:.2f} points over full training"


def main(args: list[str] | None = None) -> int:
    """Run the program with `args` (else those of the command line); return its exit status."""
    given = tyro.cli(Arguments, args=args)
    if given.minutes is None and given.steps is None:
        given = replace(given, minutes=10.0)
    cluster, players, vec_env = nullcontext(), Players, ProcessVecEnv
    try:
        tasks = check(given)
        if given.engine == "ray":
            from train.learning import ray_env

            cluster, players, vec_env = ray_env.cluster(given), ray_env.RayPlayers, ray_env.RayVecEnv
    except ModuleNotFoundError as error:
        print(f"error: --engine ray needs {error.name}: pip install -e '.[ray]'", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    folder = given.out / (given.name or f"{Path(given.tasks).stem}-ppo-{given.seed}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder), cluster, closing(players(tasks, given.processes)) as playing:
            Learning(given, tasks, folder, Console(), playing, vec_env).run()
    except (Died, BrokenProcessPool) as error:
        print(f"error: {error}; the same command goes on from the last evaluation", file=sys.stderr)
        return 1
    except (Another, ConnectionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Taken:
        print(f"error: another program is at {folder}; wait for its end, or choose --name", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: cannot go on in {folder}: {error}; the same command goes on from there", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last evaluation", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)  # the other cores have processes of their own
    sys.exit(main())
