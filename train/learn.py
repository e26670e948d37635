"""Teach a policy what to prune: `python -m train.learn --help`.

python -m train.learn                               # ten minutes: a policy for any task, from digits tasks only
python -m train.evaluate --agents full learned:runs/learn/digits-ppo-0/policy.safetensors
"""

from __future__ import annotations

import importlib
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, suppress
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
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from torch import nn

from agents.learned import Network
from prune_env import PruneEnv, io
from prune_env.data.residence import cores
from prune_env.plain import pack, unpack
from prune_env.policy.rules import RULE_PARAMETERS
from prune_env.policy.tasks import TaskDistribution
from train.execution import checkpoints, engines, provenance
from train.execution.checkpoints import Keeper
from train.execution.engines import Unavailable
from train.execution.process import Taken, locked
from train.learning import search
from train.learning.rollouts import FULL, Pair, Players, Practice, distribution, draw_pairs, make_env, play
from train.learning.sb3_env import SB3VecEnv
from train.learning.subproc_env import Died, Shards

CLIP = 10.0  # points, see Practice
VALIDATION_SEEDS = range(10_000, 10_006)  # of each validation task
GENERATIONS = 12  # of the search for the best fixed rule
SEARCH_SHARE = 0.4  # of the time, after which that search ends at the latest
BASELINE_SHARE = 0.15  # of the time, after which the pool gets no more pairs
PAIRS = 128  # that full training is run on between two looks at the clock
# arguments that cannot change when a run goes on: they decide what is drawn
OF = ("tasks", "algo", "seed", "pool", "members", "processes", "evaluate_every")
SIZING = ("dataset", "root", "image_size", "train_size", "imbalance", "duplicates", "budget")  # decide what is too few
PROBES = 64  # runs in which the scale of summaries is measured
SMALLEST_SCALE = 0.02  # deviation of a summary that is read
LARGEST_START = 0.95  # of a number of the rule that a policy starts as: at 1 a policy has nowhere to go

# gamma and lambda 1: the episode is judged as a whole, at its end. Found on the training tasks.
ON_POLICY = {"n_steps": 32, "gamma": 1.0, "gae_lambda": 1.0, "learning_rate": 1e-3}
MINIBATCHES = {"batch_size": 512, "n_epochs": 6}
# Noise that stays through a rollout, two or three episodes of a member (gSDE, arXiv 2005.05719): an episode has a dozen
# steps, and what is drawn anew in each cancels out, while the return says what all of them did.
STEADY = {"use_sde": True}
ALGORITHMS: dict[str, tuple[str, str, str, dict[str, Any]]] = {  # module, class, policy, settings
    "ppo": ("stable_baselines3", "PPO", "MlpPolicy", {**ON_POLICY, **MINIBATCHES, **STEADY}),
    "a2c": ("stable_baselines3", "A2C", "MlpPolicy", ON_POLICY),
    "sac": ("stable_baselines3", "SAC", "MlpPolicy", {"gamma": 1.0, "learning_starts": 2000, "batch_size": 512}),
    "ars": ("sb3_contrib", "ARS", "MlpPolicy", {"n_delta": 8, "n_top": 4, "zero_policy": False}),
    "recurrent_ppo": ("sb3_contrib", "RecurrentPPO", "MlpLstmPolicy", {**ON_POLICY, **MINIBATCHES}),
}


@dataclass
class Arguments:
    """Train a policy over pruning decisions on a distribution of tasks; keep the one that is best on validation tasks.

    First the best fixed rule is searched; the policy starts as that rule. An episode is
    rewarded at its end, by its validation accuracy over that of full training and of that rule on the same task and
    seed. Held-out tasks are never touched. OUT/NAME gets policy.safetensors (for `--agents learned:PATH`),
    evaluations.jsonl, TensorBoard's events, the algorithm's own model.zip (recurrent_ppo leaves that alone: for
    `--agents learned:PATH,trust=True`), and what is needed to go on: the same command again does, from the last
    evaluation. With --steps alone a run that was killed ends as one that was not.
    """

    tasks: str = "digits"
    """Distribution of tasks: a name, see prune_env/policy/tasks.py, or a TOML file with its arguments."""
    algo: Literal["ppo", "a2c", "sac", "ars", "recurrent_ppo"] = "ppo"
    """Of Stable-Baselines3, the last two of sb3-contrib."""
    minutes: float | None = None
    """Time for all of it; 10 without --steps. What comes before training is cut short, but takes some of it."""
    steps: int | None = None
    """Steps of students (epochs of theirs), in whole rollouts; with --minutes, what comes first ends it."""
    members: int = 96
    """Students in training at once."""
    processes: int = min(96, cores())
    """Processes that they are spread over, by default one a core; another number draws other episodes."""
    engine: Literal["local", "ray"] = "local"
    """Where these processes are: on this machine, or on a Ray cluster; see docs/scale.md."""
    address: str | None = None
    """With ray: of the cluster, `auto` or HOST:PORT; by default one is started on this machine, and ended."""
    pool: int = 512
    """Pairs of training task and seed that episodes are drawn from; fewer where full training on them takes long."""
    evaluate_every: int = 49_152
    """Steps between evaluations on validation tasks; each begins with new episodes."""
    seed: int = 0
    """Of everything that is drawn."""
    out: Path = Path("runs/learn")
    """Folder of policies."""
    name: str | None = None
    """Folder of this one in OUT; by default TASKS-ALGO-SEED."""


@dataclass
class Start:
    """What is known before a policy is trained; kept, so that a run that was stopped goes on with the same."""

    of: dict[str, Any]  # the arguments OF
    conditions: str  # the tasks that their name stands for, and the code that trains students
    rule: list[float]  # (R,) the best fixed one
    searched: int  # episodes that it took
    shift: list[float]  # (D,) mean of summaries, and their deviation
    scale: list[float]
    baseline: list[float]  # (P,) accuracy on the pool: the mean of full training's and the fixed rule's
    full: list[float]  # likewise on the validation pairs
    fixed: list[float]  # and that of the fixed rule


class Scaled(BaseFeaturesExtractor):
    """Summaries of about mean 0 and deviation 1."""

    def __init__(self, observation_space: spaces.Box, shift: list[float], scale: list[float]):
        super().__init__(observation_space, len(shift))
        self.shift, self.scale = (nn.Parameter(torch.tensor(x), requires_grad=False) for x in (shift, scale))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return (observations - self.shift) / self.scale


class Memory:
    """A recurrent policy of Stable-Baselines3, as `play` takes one."""

    def __init__(self, model: BaseAlgorithm):
        self._model, self._state = model, None

    def __call__(self, summaries: NDArray, begun: NDArray[np.bool_]) -> NDArray:
        numbers, self._state = self._model.predict(
            summaries, state=self._state, episode_start=begun, deterministic=True
        )
        return numbers


def network_of(model: BaseAlgorithm, card: dict[str, Any]) -> Network | None:
    """The policy of a trained model as a plain network of raw summaries; None if it has memory."""
    policy: Any = model.policy
    if hasattr(policy, "lstm_actor"):
        return None
    if hasattr(policy, "actor"):  # SAC
        modules, output = [*policy.actor.latent_pi, policy.actor.mu], "tanh"
    elif hasattr(policy, "mlp_extractor"):  # PPO, A2C
        modules, output = [*policy.mlp_extractor.policy_net, policy.action_net], "clip"
    else:  # ARS
        modules, output = list(policy.action_net), "tanh"
    linear = [module for module in modules if isinstance(module, nn.Linear)]
    layers = [tuple(p.detach().cpu().numpy().copy() for p in (module.weight, module.bias)) for module in linear]
    scaled = next((module for module in policy.modules() if isinstance(module, Scaled)), None)
    if scaled is not None:
        weight, bias = layers[0]
        weight = weight / scaled.scale.numpy()
        layers[0] = weight, bias - weight @ scaled.shift.numpy()
    hidden = "relu" if any(isinstance(module, nn.ReLU) for module in modules) else "tanh"
    return Network(layers, hidden, output, card)


def build(algo: str, env: VecEnv, start: Start, seed: int) -> BaseAlgorithm:
    """An algorithm whose policy begins as the best fixed rule."""
    module, name, policy, settings = ALGORITHMS[algo]
    kwargs: dict[str, Any] = {"net_arch": [64, 64]}
    if algo != "ars":
        scaling = {"shift": start.shift, "scale": start.scale}
        kwargs |= {"features_extractor_class": Scaled, "features_extractor_kwargs": scaling}
    if algo in ("ppo", "a2c", "recurrent_ppo"):
        # 1 is the whole range of a number; steady noise is a sum over the 64 units of the last layer
        kwargs["log_std_init"] = -3.0 if "use_sde" in settings else -1.5
    if algo == "recurrent_ppo":
        kwargs["lstm_hidden_size"] = 64
    if algo == "ars":
        settings = {**settings, "n_eval_episodes": env.num_envs}
    make = getattr(importlib.import_module(module), name)
    model = make(policy, env, policy_kwargs=kwargs, device="cpu", seed=seed, **settings)
    rule = np.clip(start.rule, -LARGEST_START, LARGEST_START)
    with torch.no_grad():
        if algo == "sac":
            last, bias = model.policy.actor.mu, np.arctanh(rule)
        elif algo == "ars":
            last = [module for module in model.policy.action_net if isinstance(module, nn.Linear)][-1]
            bias = np.arctanh(rule)
        else:
            last, bias = model.policy.action_net, rule
        last.weight.mul_(0.01)
        last.bias.copy_(torch.tensor(bias))
    _let_it_know(model)
    return model


def _let_it_know(model: Any) -> None:
    """ARS perturbs a vector of its own, which has to follow when the weights of its policy are set."""
    if hasattr(model, "weights"):
        model.weights = nn.utils.parameters_to_vector(model.policy.parameters()).detach()


BUFFER = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")  # of SAC's memory


def model_state(model: Any) -> dict[str, Any]:
    """All that training changes, as plain values, arrays and tensors."""
    entropy = getattr(model, "log_ent_coef", None)  # of SAC, which get_parameters() leaves out
    told = {"parameters": model.get_parameters(), "entropy": None if entropy is None else entropy.detach()}
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None:
        rows = buffer.size()
        told["buffer"] = {name: getattr(buffer, name)[:rows] for name in BUFFER}
        told |= {"pos": buffer.pos, "full": buffer.full}
    return told


def load_model_state(model: Any, told: dict[str, Any], steps: int) -> None:
    """Let a model from `build` go on after these steps."""
    model.set_parameters(told["parameters"], device="cpu")
    model.num_timesteps = steps
    _let_it_know(model)
    if told["entropy"] is not None:
        model.log_ent_coef.data.copy_(told["entropy"])
    if "buffer" in told:
        for name, rows in told["buffer"].items():
            getattr(model.replay_buffer, name)[: len(rows)] = rows
        model.replay_buffer.pos, model.replay_buffer.full = told["pos"], told["full"]


class Over(Exception):
    """The end, for an algorithm that does not ask."""


class Another(Exception):
    """The folder holds a run with other arguments."""


def practice(tasks: TaskDistribution, members: int, pairs: list[Pair], baseline: list[float]) -> VecEnv:
    """The training environment of one process; the algorithm seeds it."""
    env = make_env(members, tasks)
    return SB3VecEnv(Practice(env, pairs, np.array(baseline), np.random.default_rng(), CLIP))


class Learning(BaseCallback):
    """One policy's training: what comes before, the evaluations in between, and what is left behind."""

    def __init__(self, given: Arguments, tasks: TaskDistribution, folder: Path, console: Console):
        super().__init__()
        self._given, self._tasks, self._folder, self._console = given, tasks, folder, console
        self._pairs = draw_pairs(tasks.training, given.pool, np.random.default_rng([given.seed, 0]))
        self._validation = [(task, seed) for task in tasks.validation for seed in VALIDATION_SEEDS]
        self._kind, players = Shards, Players
        if given.engine == "ray":
            on_ray = engines.module("ray_learn", "ray")
            self._kind, players = on_ray.Shards, on_ray.Players
        self._players = players(tasks, given.processes)
        self._keeper = Keeper(folder / checkpoints.FOLDER, of="learn")
        self._kept: dict[str, Any] = {
            "state": {"seconds": 0.0, "steps": 0, "episodes": 0, "best": -math.inf},
            "start": None,  # a `Start`, as a dict
            "evaluations": [],
            "files": {},  # content of those that hold the best policy, by name
            "model": None,  # its state, packed
        }
        self._begun = time.perf_counter()

    @property
    def _seconds(self) -> float:
        """At work so far, over all sittings; what a kill undid is not counted."""
        return self._kept["state"]["seconds"] + time.perf_counter() - self._begun

    @property
    def _limit(self) -> float:
        """Seconds for all of it."""
        return 60.0 * (self._given.minutes or math.inf)

    def _clock(self) -> None:
        """Enter the time so far into what is kept."""
        self._kept["state"]["seconds"] = self._seconds
        self._begun = time.perf_counter()

    def run(self) -> None:
        """Train until the time or the steps are over. Raises Another if a run with other arguments is there."""
        with closing(self._players), closing(self._keeper):
            self._keeper.begin()
            for kept in self._keeper.states():
                if kept["start"].get("conditions") != _conditions(self._tasks):
                    said = f"the tasks {self._given.tasks!r}, or the code that trains students, were others"
                    raise Another(f"{self._folder} holds a run from when {said}; choose another --name")
                if (of := kept["start"]["of"]) != _of(self._given):
                    said = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in of.items())
                    raise Another(f"{self._folder} holds a run with {said}; go on with these, or choose another --name")
                self._kept = kept
                self._write()
                self._console.print(f"going on after {self._seconds / 60:.1f} minutes")
                break
            self._keeper.resume(self._kept["state"]["steps"])
            if self._kept["start"] is None:
                self._kept["start"] = asdict(self._prepare())
                self._clock()
                self._keeper.save(0, self._kept)
            self._start = Start(**self._kept["start"])
            self._pairs = self._pairs[: len(self._start.baseline)]
            with closing(self._shards()) as self._env:
                self._former = self._kept["state"]["episodes"]
                logger = configure(str(self._folder / "tensorboard"), ["tensorboard"])
                while self._train(logger):
                    pass
            self._renew()
            self._keeper.end()
            if not self._kept["state"]["steps"]:
                self._console.print("no time was left to train: this is the best fixed rule; give more --minutes")

    def _shards(self) -> Shards:
        given = self._given
        sizes = [len(part) for part in np.array_split(np.arange(given.members), given.processes)]
        make = partial(practice, self._tasks, pairs=self._pairs, baseline=self._start.baseline)
        return self._kind([partial(make, size) for size in sizes])

    def _train(self, logger: Logger) -> bool:
        """Train from one evaluation to the next; whether there is more to do.

        Each begins as if the run had been stopped just before: with what was kept, new episodes and generators seeded
        for it. So it makes no difference whether it was.
        """
        given, steps = self._given, self._kept["state"]["steps"]
        seed = int(np.random.default_rng([given.seed, 3, steps]).integers(2**31))
        model = build(given.algo, VecMonitor(self._env), self._start, seed)  # its mean returns go to TensorBoard
        if self._kept["model"] is not None:
            load_model_state(model, unpack(self._kept["model"]), steps)
        model.set_logger(logger)
        self.init_callback(model)
        if self._over(steps):
            if not self._kept["evaluations"]:  # the time went before there was any to train
                self._evaluate()
            return False
        ahead = given.evaluate_every if given.steps is None else min(given.evaluate_every, given.steps - steps)
        with suppress(Over):
            # a rollout that --steps ends in is played to its end, and learned from
            model.learn(ahead, callback=self, reset_num_timesteps=False)
        self._evaluate()
        return True

    def _prepare(self) -> Start:
        """The baseline, the best fixed rule and the scale of summaries."""
        given, players = self._given, self._players
        self._console.print(f"full training on up to {given.pool} pairs of task and seed, for comparison")
        played: list[NDArray] = []
        while sum(map(len, played)) < given.pool and (not played or self._seconds < BASELINE_SHARE * self._limit):
            at = len(played) * PAIRS
            played.append(players.play(self._pairs[at : at + PAIRS], FULL))
        baseline = np.concatenate(played)
        self._pairs = self._pairs[: len(baseline)]
        until = self._seconds + SEARCH_SHARE * self._limit

        def go_on(generations: int) -> bool:
            return generations < GENERATIONS and self._seconds < until

        rng = np.random.default_rng([given.seed, 2])
        rule, searched = search.fixed_rule(players, self._tasks, rng, go_on)
        baseline = (baseline + players.play(self._pairs, rule)) / 2
        full, fixed = (players.play(self._validation, rules) for rules in (FULL, rule))
        numbers = ", ".join(f"{name} {number:+.2f}" for name, number in zip(RULE_PARAMETERS, rule, strict=True))
        self._console.print(f"best fixed rule after {searched} episodes: {numbers}; {_over_full(fixed, full)}")
        shift, scale = _moments(self._tasks, rule, rng)
        return Start(
            of=_of(given),
            conditions=_conditions(self._tasks),
            rule=rule.tolist(),
            searched=searched,
            shift=shift.tolist(),
            scale=scale.tolist(),
            baseline=baseline.tolist(),
            full=full.tolist(),
            fixed=fixed.tolist(),
        )

    def _over(self, steps: int) -> bool:
        return steps >= (self._given.steps or math.inf) or self._seconds >= self._limit

    def _on_step(self) -> bool:
        self._keeper.note(self.num_timesteps + self._env.num_envs)  # the step that follows
        over = self._seconds >= self._limit
        if over and self._given.algo == "ars":  # it goes on whatever is returned
            raise Over
        return not over

    def _evaluate(self) -> None:
        """Play the validation tasks; keep the policy if it is the best so far; save all that is needed to go on."""
        network = network_of(self.model, {})
        if network is None:
            accuracy = play(self._validation, Memory(self.model), self._tasks)
        else:
            accuracy = self._players.play(self._validation, network)
        points = 100.0 * float(np.mean(accuracy - np.array(self._start.full)))
        kept, state = self._kept, self._kept["state"]
        state |= {"steps": self.num_timesteps, "episodes": self._former + self._env.episodes}
        self._clock()
        if points > state["best"]:
            state["best"] = points
            kept["files"] = {"model.zip": _zipped(self.model)}
            if network is not None:
                kept["files"]["policy.safetensors"] = replace(network, card=self._card(accuracy)).content()
        kept["evaluations"].append({**state, "points": points})
        kept["model"] = pack(model_state(self.model))
        self._keeper.save(len(kept["evaluations"]), kept)
        self._write()
        self.logger.record("validation/points_over_full", points)
        self.logger.dump(self.num_timesteps)
        left = "" if math.isinf(self._limit) else f"; {max(0.0, self._limit - self._seconds) / 60:.1f} left"
        self._console.print(
            f"{self._seconds / 60:5.1f} minutes, {state['steps']:,} steps, {state['episodes']:,} episodes: validation "
            f"{_over_full(accuracy, self._start.full)}, best {state['best']:+.2f}{left}"
        )

    def _write(self) -> None:
        """Put down what was kept, for others to read."""
        for name, content in self._kept["files"].items():
            io.replace(self._folder / name, content)
        lines = "".join(json.dumps(line) + "\n" for line in self._kept["evaluations"])
        io.replace(self._folder / "evaluations.jsonl", lines.encode())

    def _renew(self) -> None:
        """Let the card tell the waste up to the end: it is of the evaluation that was the best."""
        path = self._folder / "policy.safetensors"
        if path.exists():
            network = Network.load(path)
            replace(network, card={**network.card, "waste": self._waste()}).save(path)

    def _waste(self) -> dict[str, int]:
        """What kills undid; of the search, which notes no steps, that it was interrupted."""
        return {"interruptions": self._keeper.interruptions, "steps": self._keeper.wasted}

    def _card(self, accuracy: NDArray) -> dict[str, Any]:
        """Where this policy comes from, and what it does on the validation tasks."""
        elsewhere = ("out", "name", "engine", "address")  # on which nothing depends
        given = {name: value for name, value in asdict(self._given).items() if name not in elsewhere}
        return {
            "arguments": given,
            "training": {**self._kept["state"], "searched": self._start.searched, "pool": len(self._pairs)},
            "waste": self._waste(),
            "machines": self._keeper.machines,
            "tasks": asdict(self._tasks),
            "validation": {
                "pairs": len(self._validation),
                "points_over_full": 100.0 * float(np.mean(accuracy - np.array(self._start.full))),
                "points_over_fixed_rule": 100.0 * float(np.mean(accuracy - np.array(self._start.fixed))),
            },
            "fixed_rule": dict(zip(RULE_PARAMETERS, self._start.rule, strict=True)),
            "code": provenance.of_code(),
        }


def _of(given: Arguments) -> dict[str, Any]:
    return {name: getattr(given, name) for name in OF}


def _conditions(tasks: TaskDistribution) -> str:
    return json.dumps({"tasks": asdict(tasks), "code": provenance.learning_digest()}, sort_keys=True)


def check(given: Arguments) -> TaskDistribution:
    """The tasks. Raises ValueError for arguments that are wrong."""
    tasks = distribution(given.tasks)
    if min(given.members, given.processes, given.pool) < 1 or given.members < given.processes:
        raise ValueError("--processes and --pool must be at least 1, and --members no fewer than --processes")
    if given.evaluate_every < 1:
        raise ValueError(f"--evaluate-every is {given.evaluate_every}; it must be at least 1 step")
    if given.address is not None and given.engine != "ray":
        raise ValueError(f"--address needs --engine ray; the engine is {given.engine}")
    if given.engine == "ray":
        engines.module("ray_learn", "ray")
    for name in ("minutes", "steps"):
        value = getattr(given, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name} is {value}; it must be above 0")
    if given.seed < 0:
        raise ValueError(f"--seed is {given.seed}; it must be 0 or more")
    if not tasks.validation:
        raise ValueError(f"--tasks {given.tasks} has no validation tasks, by which the best policy is chosen")
    _try(tasks, given.tasks)
    return tasks


def _try(tasks: TaskDistribution, name: str) -> None:
    """Make an environment for each value, and each size, that tasks have. Raises ValueError if one cannot be."""
    tried: set[Any] = set()
    for task in (*tasks.training, *tasks.validation):
        values = {*asdict(task).items(), tuple(getattr(task, field) for field in SIZING)}
        if not values <= tried:
            try:
                PruneEnv(**task.settings())
            except (TypeError, ValueError, OSError) as error:
                raise ValueError(f"--tasks {name}: {task}: {' '.join(str(error).split())}") from error
            tried |= values


def _zipped(model: BaseAlgorithm) -> bytes:
    buffer = BytesIO()
    model.save(buffer)
    return buffer.getvalue()


def folder_of(given: Arguments) -> Path:
    """Where all that a run leaves behind lies."""
    return given.out / (given.name or f"{Path(given.tasks).stem}-{given.algo}-{given.seed}")


def _moments(tasks: TaskDistribution, rule: NDArray, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Mean and deviation (D,) of summaries under rules around this one.

    Where they hardly vary the deviation is infinite, so that the policy does not read them: their weights would stay
    as they were drawn, and turn what other tasks have there into noise.
    """
    seen: list[NDArray] = []

    def around(summaries: NDArray, begun: NDArray[np.bool_]) -> NDArray:
        seen.append(summaries)
        return np.clip(rule + 0.3 * rng.standard_normal((len(summaries), len(RULE_PARAMETERS))), -1.0, 1.0)

    play(draw_pairs(tasks.training, PROBES, rng), around, tasks)
    every = np.concatenate(seen)
    scale = every.std(axis=0)
    return every.mean(axis=0), np.where(scale < SMALLEST_SCALE, np.inf, np.maximum(scale, 0.05))


def _over_full(accuracy: NDArray, full: Sequence[float] | NDArray) -> str:
    points = 100.0 * (accuracy - np.array(full))
    return f"{points.mean():+.2f} ± {points.std(ddof=1) / len(points) ** 0.5:.2f} points over full training"


@contextmanager
def _cluster(given: Arguments) -> Iterator[None]:
    """The cluster of the engine, as long as it is needed. Raises Unavailable."""
    if given.engine == "local":
        yield
        return
    with engines.module("ray", "ray").connected(given.address, given.processes) as resources:
        cpus = sum(node.get("CPU", 0) for node in resources)
        if cpus < given.processes:
            raise Unavailable(f"--processes is {given.processes}, but the Ray cluster has {cpus:g} CPUs, one for each")
        yield


def main(args: list[str] | None = None) -> int:
    """Run the program with `args` (else those of the command line); return its exit status."""
    given = tyro.cli(Arguments, args=args)
    if given.minutes is None and given.steps is None:
        given = replace(given, minutes=10.0)
    try:
        tasks = check(given)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    folder = folder_of(given)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder), _cluster(given):
            io.sweep(folder)
            Learning(given, tasks, folder, Console()).run()
    except (Died, BrokenProcessPool) as error:
        print(f"error: {error}; the same command goes on from the last evaluation", file=sys.stderr)
        return 1
    except (Unavailable, Another) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Taken:
        print(f"error: another program is at {folder}; wait for its end, or choose --name", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: cannot go on in {folder}: {error}; what is there stays, and is gone on from", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last evaluation", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)  # the other cores have processes of their own
    sys.exit(main())
