"""The agent of a run: it lives in the process of the run, with its own generator, and its faults are reported."""

from __future__ import annotations

import copy
import faulthandler
import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

import agents
import prune_env
from agents import switches
from prune_env import selection, streams
from prune_env.memory import load_state, state_of
from prune_env.sampling import Action, Observation

YEAR = 3.2e7  # seconds; timers do not take much more
LINE = 1000  # characters of an error's line, of which an agent can make any number
NOT_AGENTS = (  # folders of code that no agent has written
    str(Path(prune_env.__file__).parent),
    str(Path(__file__).parent),
    str(Path(torch.__file__).parents[1]),
    str(Path(random.__file__).parent),
    "<",
)
GENERATORS: dict[str, Callable[[], Any]] = {
    "random": random.getstate,
    "numpy.random": lambda: [np.asarray(x).tobytes() for x in np.random.get_state()],  # noqa: NPY002  (to see a change)
    "torch": lambda: torch.random.get_rng_state().numpy().tobytes(),
}

T = TypeVar("T")
Given = Callable[..., Any]  # an agent of the calling program, or its class


class AgentError(Exception):
    """What went wrong with an agent: one line, and `traceback`."""

    def __init__(self, line: str, traceback: str = ""):
        super().__init__(line, traceback)
        self.traceback = traceback

    def __str__(self) -> str:
        return self.args[0]


class TimeLimit:
    """Ends this process when the agent takes too long, and leaves a note that says where it was.

    A timer of Python's own needs the interpreter, which an agent may hold for ever; faulthandler's timer does not.

    Args:
        seconds: that an agent may take for one answer.
        note: where the note is left, in a folder that exists; without one there is no limit.
    """

    def __init__(self, seconds: float = YEAR, note: Path | None = None):
        self._seconds, self._note = seconds, note
        if note is not None:
            self._file = open(note, "w")  # noqa: SIM115  (until `close`)

    @contextmanager
    def on(self, doing: str) -> Iterator[None]:
        """Limit the time of a block; `doing` ends the sentence "the agent took more than 1 s"."""
        if self._note is None:
            yield
            return
        self._file.seek(0)
        self._file.truncate()
        self._file.write(f"the agent took more than {self._seconds:g} s {doing}; --agent-timeout allows longer\n")
        self._file.flush()
        faulthandler.dump_traceback_later(min(self._seconds, YEAR), exit=True, file=self._file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()

    def close(self) -> None:
        """Remove the note: no limit was reached."""
        if self._note is not None:
            self._file.close()
            self._note.unlink(missing_ok=True)


def late(note: Path) -> AgentError | None:
    """Read the note of a process that a time limit has ended; None if no time limit ended it."""
    line, _, where = note.read_text(errors="replace").partition("\n") if note.exists() else ("", "", "")
    return AgentError(line, where) if where else None


class _Shown(dict[str, np.ndarray]):
    """An observation that remembers for which entry it was asked in vain."""

    missed: tuple[str, ...] = ("",)

    def __missing__(self, name: str) -> np.ndarray:
        self.missed = (name,)
        raise KeyError(name)


class Seat:
    """An agent with the generator of its run.

    Args:
        agent: its spec, or the agent itself, of which this run has a copy, or a class.
        seed: of the run.
        limit: on the time of each answer; none by default.

    Raises:
        AgentError: from here to the end, whatever the agent raises.
    """

    def __init__(self, agent: str | Given, seed: int, limit: TimeLimit | None = None):
        self._limit = limit or TimeLimit()
        self._step = 0
        self._shown = _Shown()
        self._agent = self._do("to be made", lambda: _made(agent))
        self._rng = np.random.default_rng([seed, streams.AGENT])

    def act(self, observation: Observation) -> Action:
        """Return a valid action. The arrays are the agent's own from now on; it must leave global generators be."""
        self._step += 1
        self._shown = _Shown(observation)
        n = len(observation["loss"])

        def decide() -> Action:
            before = {name: get() for name, get in GENERATORS.items()}
            action = self._agent(self._shown, self._rng)
            for name, get in GENERATORS.items():
                if get() != before[name]:
                    raise RuntimeError(
                        f"the agent drew from {name}'s global generator, or seeded it; it is given its own"
                    )
            return selection.check(action, n)

        threads = torch.get_num_threads()
        action = self._do("for one decision", decide)
        if torch.get_num_threads() != threads:  # another number changes the rounding of the student
            torch.set_num_threads(threads)
        return action

    def state(self) -> dict[str, Any] | None:
        """Return what another seat of the same agent needs to go on as this one; None if the agent cannot tell."""
        told = self._do("to tell its state", lambda: state_of(self._agent))
        return None if told is None else {"agent": told, "rng": self._rng.bit_generator.state, "step": self._step}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._do("to load its state", lambda: load_state(self._agent, state["agent"]))
        self._rng.bit_generator.state = state["rng"]
        self._step = state["step"]

    def _do(self, doing: str, what: Callable[[], T]) -> T:
        """Return the answer of the agent's code. Raises AgentError, which says where and in which step."""
        try:
            with self._limit.on(doing):
                return what()
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in frames if not frame.filename.startswith(NOT_AGENTS)]
            step = f"in step {self._step}" if self._step else "before the first step"
            place = f"at {Path(own[-1].filename).name}:{own[-1].lineno} {step}" if own else f"({step})"
            line = f"{line_of(error)} {place}"
            if isinstance(error, KeyError) and error.args == self._shown.missed:
                line += f"; entries are {', '.join(self._shown)}"
            raise AgentError(line, traceback.format_exc()) from error


def _made(agent: str | Given) -> agents.Agent:
    if isinstance(agent, str):
        made = agents.make(agent)
    else:  # an object may keep state, which must not pass from run to run
        made = agent() if isinstance(agent, type) else copy.deepcopy(agent)
    switches.reset(made)
    return made


def line_of(error: BaseException) -> str:
    """Return type and message in one line; unlike str(error), this never raises."""
    line = " ".join("".join(traceback.format_exception_only(type(error), error)).split())
    line = line.encode("utf-8", "backslashreplace").decode()  # an odd file name in it could not be written
    return line if len(line) <= LINE else f"{line[:LINE]}... ({len(line):,} characters)"
