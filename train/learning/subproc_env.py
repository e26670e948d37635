"""A Stable-Baselines3 environment whose members live in several processes, many in each.

SB3's own `SubprocVecEnv` has one member a process, and these members train in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Protocol

import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvObs, VecEnvStepReturn

from train.execution.process import CONTEXT, start

DIED = "a process of the training environment died: out of memory, or ended"


class Died(RuntimeError):
    """A process is gone."""


class Pipe(Protocol):
    """Our end of a connection to a process."""

    def send(self, obj: Any, /) -> None: ...

    def recv(self) -> Any: ...

    def close(self) -> None: ...


class ProcessVecEnv(VecEnv):
    """Several vector environments as one, each in its own process. Exceptions in a process are raised here.

    Args:
        makers: build each environment; they have to be pickled.

    Attributes:
        episodes: how many have ended.
    """

    def __init__(self, makers: Sequence[Callable[[], VecEnv]]):
        self.episodes = 0
        self._processes: list[SpawnProcess] = []
        self._pipes = [self._start(make) for make in makers]
        try:
            sizes, observations, actions = zip(*(self._receive(pipe) for pipe in self._pipes), strict=True)
        except BaseException:
            self.close()
            raise
        self._ends = np.cumsum(sizes)[:-1]
        super().__init__(sum(sizes), observations[0], actions[0])

    def _start(self, make: Callable[[], VecEnv]) -> Pipe:
        """Start a process that serves the environment."""
        ours, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(target=_serve, args=(theirs, make), daemon=True)
        process.start()
        theirs.close()
        self._processes.append(process)
        return ours

    def _send(self, pipe: Pipe, command: str, argument: Any) -> None:
        try:
            pipe.send((command, argument))
        except ConnectionError:
            raise Died(DIED) from None

    def _receive(self, pipe: Pipe) -> Any:
        try:
            answer = pipe.recv()
        except (EOFError, ConnectionError):
            raise Died(DIED) from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def reset(self) -> VecEnvObs:
        """Start an episode in every member, with the seeds that `seed` gave."""
        for pipe, seed in zip(self._pipes, np.split(np.array(self._seeds, object), self._ends), strict=True):
            self._send(pipe, "reset", seed[0])
        self._reset_seeds()
        return np.concatenate([self._receive(pipe) for pipe in self._pipes])

    def step_async(self, actions: np.ndarray) -> None:
        for pipe, part in zip(self._pipes, np.split(actions, self._ends), strict=True):
            self._send(pipe, "step", part)

    def step_wait(self) -> VecEnvStepReturn:
        seen, rewards, dones, infos = zip(*(self._receive(pipe) for pipe in self._pipes), strict=True)
        self.episodes += sum(int(np.count_nonzero(part)) for part in dones)
        return np.concatenate(seen), np.concatenate(rewards), np.concatenate(dones), [i for part in infos for i in part]

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()  # the process ends when nobody listens
        for process in self._processes:
            process.join()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return None for every member: SB3 asks for the render mode alone."""
        return [None for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError("members are in other processes")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError("members are in other processes")

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]


class Server:
    """One of the vector environments, in its process."""

    def __init__(self, make: Callable[[], VecEnv]):
        self._make = make

    def answer(self, command: str, argument: Any) -> Any:
        """Return size and spaces for `build`, and for `reset` and `step` what these return."""
        if command == "build":
            self._env = self._make()
            return self._env.num_envs, self._env.observation_space, self._env.action_space
        if command == "reset":
            if argument is not None:  # without a number, seed() draws one from a generator that nobody seeded
                self._env.seed(argument)
            return self._env.reset()
        return self._env.step(argument)


def _serve(pipe: Connection, make: Callable[[], VecEnv]) -> None:
    start()
    server = Server(make)
    message: tuple[str, Any] = "build", None
    try:
        while True:
            pipe.send(server.answer(*message))
            message = pipe.recv()
    except (EOFError, ConnectionError):  # nobody listens any more
        return
    except Exception as error:
        pipe.send(error)
