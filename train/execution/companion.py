"""An agent in a process of its own: it gets observations and gives actions, and there is nothing else to get hold of.

What crosses the border are plain values and arrays, so nothing that an agent sends can run where the student is.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import random
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Sequence
from contextlib import closing, suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

import agents
from agents import state, switches
from prune_env import selection
from prune_env.plain import pack, unpack
from prune_env.sampling import Action, Observation
from train.execution.process import start
from train.execution.watch import Watch

# Forked from a process that has done nothing but import this: it takes milliseconds, so there is one for every run.
FORKS = "forkserver" in multiprocessing.get_all_start_methods()
CONTEXT = multiprocessing.get_context("forkserver") if FORKS else multiprocessing.get_context("spawn")
CONTEXT.set_forkserver_preload(["train.execution.runner"])  # which the programs import again in every process
AGENT_STREAM = 4  # of random numbers, beside the trainer's four
GRACE = 1.0  # seconds more, where the process has begun to answer in time
YEAR = 3.2e7  # seconds; timers do not take much more
LINE = 1000  # characters of an error's line, of which an agent can make any number
LARGEST = 2**32  # bytes of an answer: a memory can be large, but not all that the host has
DIGEST = re.compile("[0-9a-f]{64}")
POLL = 0.25  # seconds between looks whether the process is alive
DOING = {
    "look": "to be imported",
    "begin": "to be made",
    "act": "for one decision",
    "memory": "to tell what it remembers",
    "recall": "to go on from a checkpoint",
}
GENERATORS = {
    "random": random.getstate,
    "numpy.random": lambda: pack(np.random.get_state(legacy=False)),  # noqa: NPY002  (to see that nobody uses it)
    "torch": lambda: torch.random.get_rng_state().numpy().tobytes(),
}


class AgentError(Exception):
    """What went wrong with an agent: one line; where, in `traceback`."""

    def __init__(self, line: str, traceback: str = ""):
        super().__init__(line)
        self.traceback = traceback


class AgentDied(AgentError):
    """The agent's process is gone."""


class Player(Protocol):
    """An agent for one run, wherever it is."""

    digest: str  # of its code, see `agents.source_digest`

    def act(self, observation: Observation) -> Action:
        """A valid action."""
        ...

    def memory(self) -> bytes | None:
        """What another player of the same agent needs to go on as this one; None if that cannot be told."""
        ...

    def recall(self, memory: bytes) -> None:
        """Go on as the player whose memory that is."""
        ...


class Seat:
    """An agent in this process, with the generator of its run.

    Args:
        spec: of the agent.
        seed: of the run.

    Raises:
        whatever making the agent raises.
    """

    def __init__(self, spec: str, seed: int):
        self._spec = spec
        self._told = False  # that its memory cannot be told
        self._agent = agents.make(spec)
        switches.reset(self._agent)
        self._rng = np.random.default_rng([seed, AGENT_STREAM])
        self.digest = agents.source_digest(spec)

    def act(self, observation: Observation) -> Action:
        """As `Player`. Raises what the agent or `selection.check` does, RuntimeError if a global generator moved."""
        before = {name: get() for name, get in GENERATORS.items()}
        action = self._agent(observation, self._rng)
        for name, get in GENERATORS.items():
            if get() != before[name]:
                raise RuntimeError(f"the agent drew from {name}'s global generator, or seeded it; it is given its own")
        return selection.check(action, len(observation["loss"]))

    def memory(self) -> bytes | None:
        """As `Player`; whether a new agent can recall it is tried by `Companion.memory`."""
        try:
            return pack([state.capture(self._agent, self._rng), state.capture(self._rng)])
        except Exception as error:  # of the agent's own code too: it can do without, and the run goes on
            if not self._told:
                self._told = True
                _no_checkpoints(self._spec, f"{type(error).__name__}: {error}")
            return None

    def recall(self, memory: bytes) -> None:
        """As `Player`."""
        of_agent, of_rng = unpack(memory)
        state.restore(self._agent, of_agent, self._rng)
        state.restore(self._rng, of_rng)


def _no_checkpoints(spec: str, why: str) -> None:
    warnings.warn(f"no checkpoints of runs with agent {spec!r}: {why}", stacklevel=3)


class Companion:
    """Processes that agents live in, one for each run: what an agent does to its own does not reach the next.

    Args:
        timeout: seconds that an agent may take for one answer.
    """

    def __init__(self, timeout: float):
        self._timeout = timeout
        self._connection: Connection | None = None
        self._begun: tuple[str, int, Sequence[str]] = ("", 0, ())  # what the run began with
        self._lost = False  # a new agent could not recall a memory of this run
        self._memories = 0  # of this run
        self.digest = ""
        if FORKS:
            from multiprocessing.forkserver import ensure_running

            ensure_running()  # at once: its imports take seconds, which whoever makes one has other work for

    def begin(self, spec: str, seed: int, closed: Sequence[str]) -> None:
        """Let an agent begin a run, in a process of its own.

        Args:
            spec: of the agent.
            seed: of the run.
            closed: folders and files that its process must not open from now on; real paths.

        Raises:
            AgentError: from here to the end, whatever the agent raises; AgentDied if its process is gone.
        """
        self._start()
        self._begun, self._lost, self._memories = (spec, seed, closed), False, 0
        self.digest = self._digest(self._ask("begin", spec, seed, list(closed)))

    def look(self, spec: str, keep: float, closed: Sequence[str]) -> tuple[str, str]:
        """Import an agent's module in a process of its own, to plan with it.

        Args:
            spec: of the agent.
            keep: as for `agents.spec_with_keep`.
            closed: as for `begin`.

        Returns:
            The spec with `keep` if its agent takes one, checked, and the digest of its code.

        Raises:
            ValueError: as `agents.check`.
            AgentError: what else is raised, as by a module that is there and cannot be imported.
        """
        self._start()
        try:
            told = self._ask("look", spec, keep, list(closed))
        finally:
            self.close()
        if not isinstance(told, dict):
            raise AgentError("the agent's process told nothing of the agent")
        if "wrong" in told:
            raise ValueError(str(told["wrong"]))
        return str(told.get("spec")), self._digest(told.get("digest"))

    def act(self, observation: Observation) -> Action:
        """As `Player`; the arrays of the action cannot be written to."""
        return self._ask("act", dict(observation))

    def memory(self) -> bytes | None:
        """As `Player`; of a run's first, second, fourth, eighth ... it is tried whether a new agent can recall it.

        In a process of its own, as after a kill: what making or resetting an agent does to its class or its module
        must not reach the one that plays. One that was not tried is when it is recalled.
        """
        told = None if self._lost else self._ask("memory")
        if told is None:
            return None
        self._memories += 1
        if self._memories & (self._memories - 1):
            return told
        try:
            with closing(Companion(self._timeout)) as twin:
                twin.begin(*self._begun)
                twin.recall(told)
        except AgentDied:  # that says nothing of the memory; who recalls it tries it
            self._memories -= 1
        except AgentError as error:
            self._lost = True
            _no_checkpoints(self._begun[0], str(error))
            return None
        return told

    def recall(self, memory: bytes) -> None:
        """As `Player`. Raises AgentError if the agent does not have this memory then."""
        self._ask("recall", memory)
        if self._ask("memory") != memory:
            raise AgentError("Opaque: a new agent that is told this memory does not have it then")

    def close(self) -> None:
        """End the process, and those that its agent has forked."""
        if self._connection is not None:
            self._kill()
            _wake_server()
            self._process.join()
            self._connection.close()
            self._connection = None

    def _kill(self) -> None:
        assert self._process.pid is not None
        if hasattr(os, "killpg"):
            with suppress(OSError):  # nobody is left in the group, or the process has not come to make it
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()

    def _start(self) -> None:
        """Have a new process."""
        self.close()
        connection, other = CONTEXT.Pipe()
        process = CONTEXT.Process(target=_serve, args=(other, self._timeout))
        _wake_server()
        try:
            process.start()
        except (EOFError, OSError) as error:  # what it is forked from was killed just now; next time there is another
            connection.close()
            raise AgentDied("the agent's process could not start", "") from error
        finally:
            other.close()  # the process has its own: once that is closed, reading here ends
        self._connection, self._process = connection, process
        self._answer(None, "to start")

    def _ask(self, *message: Any) -> Any:
        assert self._connection is not None
        # sending and receiving wait for ever if the process does not go on, and only its end frees them
        late = threading.Timer(min(self._timeout + GRACE, YEAR), self._kill)
        late.daemon = True
        late.start()
        try:
            with suppress(OSError):  # it is gone, as waiting for the answer finds
                self._connection.send_bytes(pack(list(message)))
            return self._answer(self._timeout, DOING[message[0]])
        finally:
            late.cancel()

    def _digest(self, told: Any) -> str:
        """What the process told as the digest of the agent's code. Raises AgentError, and ends it, if it is none."""
        if not isinstance(told, str) or not DIGEST.fullmatch(told):
            self.close()
            raise AgentError("the agent's process told no digest of the agent's code")
        return told

    def _answer(self, timeout: float | None, doing: str) -> Any:
        """What the process says. Raises AgentError, and ends it, if it is an error, or nothing in time."""
        assert self._connection is not None
        end = None if timeout is None else time.monotonic() + timeout
        try:
            # the pipe says that the process is gone, but not while a child that the agent forked holds it
            while not self._connection.poll(POLL if end is None else max(0.0, min(POLL, end - time.monotonic()))):
                if not self._process.is_alive() and not self._connection.poll():
                    raise EOFError
                if end is not None and time.monotonic() >= end:
                    self.close()
                    raise AgentError(f"the agent took more than {timeout:g} s {doing}; --agent-timeout allows longer")
            answer = unpack(self._connection.recv_bytes(LARGEST))
        except (EOFError, OSError) as error:
            self._process.join(0.5)  # it is about to be dead: its own exit code tells more than that of our kill
            code = self._process.exitcode  # of a signal its negative number, None before our kill
            self.close()
            raise AgentDied("the agent's process died", "" if code is None else f"exit code {code}") from error
        except ValueError as error:  # an agent can find the pipe, and write there
            self.close()
            raise AgentError(f"the agent's process sent what is no answer: {error}") from error
        if not isinstance(answer, dict) or not answer.keys() & {"error", "value"}:
            self.close()
            raise AgentError("the agent's process sent what is no answer")
        if "error" in answer:
            self.close()
            raise AgentError(str(answer["error"]), str(answer.get("traceback")))
        return answer["value"]


def _wake_server() -> None:
    """Let the process that others are forked from go on: an agent could have stopped it, and all would wait for it."""
    pid = getattr(getattr(forkserver, "_forkserver", None), "_forkserver_pid", None)
    if pid is not None:
        with suppress(OSError):
            os.kill(pid, signal.SIGCONT)


def closed_to_agents(files: Sequence[Path]) -> list[str]:
    """Real paths that agents must not open, for the image files of a data set: their folders, caches, embedded images.

    So a decision rests on what is observed, and an agent that would look up labels fails. It keeps out mistakes and
    plain tricks: code that was written to get around it can.
    """
    from prune_env.data import cache, sources

    folders = {path.parent for path in files if not path.is_dir()}
    archives = {path for folder in folders for kind in ("*.tar.gz", "*.zip") for path in folder.parent.glob(kind)}
    embedded = Path(sources.__file__).with_name("digits.npz")
    return sorted({os.path.realpath(path) for path in (*folders, *archives, embedded, cache.folder())})


def _serve(connection: Connection, timeout: float) -> None:
    """The life of the process: one answer to each message until the connection ends."""
    start()
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # what an agent does to its own group, as ending its children, must not end the program
    nowhere = open(os.devnull, "w")  # noqa: SIM115  (as long as the process)
    watch = Watch()
    sys.addaudithook(watch)
    seat: Seat | None = None
    with suppress(EOFError, ConnectionError):
        connection.send_bytes(pack({"value": True}))
        while True:
            name, *arguments = unpack(connection.recv_bytes())
            # who asks may be gone, and an agent that never frees the interpreter lets no thread see that
            faulthandler.dump_traceback_later(min(timeout + 2 * GRACE, YEAR), exit=True, file=nowhere)
            try:
                if name == "begin":
                    spec, seed, paths = arguments
                    watch.close(paths)
                    seat = None  # the memory of one run is freed before the next
                    seat = Seat(spec, seed)
                    value: Any = seat.digest
                elif name == "look":
                    spec, keep, paths = arguments
                    watch.close(paths)
                    value = _looked(spec, keep)
                else:
                    value = getattr(seat, name)(*arguments)
                answer = pack({"value": value})
            except BaseException as error:  # Ctrl-C is ignored here: this too is the agent's
                answer = pack({"error": line_of(error), "traceback": traceback.format_exc()})
            faulthandler.cancel_dump_traceback_later()
            torch.set_num_threads(1)  # an agent may have set another number, and that changes rounding
            connection.send_bytes(answer)


def _looked(spec: str, keep: float) -> dict[str, str]:
    """What `Companion.look` is told; raises what is the fault of the agent's module, and not of the spec."""
    try:
        spec = agents.spec_with_keep(spec, keep)
        agents.check(spec)
        return {"spec": spec, "digest": agents.source_digest(spec)}
    except agents.Unimportable:
        raise
    except ValueError as error:
        return {"wrong": str(error)}


def printable(text: str) -> str:
    """Text that can be written as UTF-8: of names of files that are none, what is wrong is escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def line_of(error: BaseException) -> str:
    """Type and message in one line; unlike str(error), this never raises itself."""
    line = printable(" ".join("".join(traceback.format_exception_only(type(error), error)).split()))
    if isinstance(error, ValueError) and "read-only" in line:
        line += "; an agent must not change its observation: copy what it works on"
    return line if len(line) <= LINE else f"{line[:LINE]}... ({len(line):,} characters)"
