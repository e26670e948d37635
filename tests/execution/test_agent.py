"""The agent of a run: what it may do, how its errors are told, and what it remembers."""

import os
import random
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import agents
from prune_env import select, streams
from prune_env.memory import load_state, state_of
from tests.agents.test_learned import choosing
from tests.helpers.processes import fork, wait
from train.execution import provenance
from train.execution.agent import AgentError, Seat, TimeLimit, late, line_of
from train.execution.checkpoints import Checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
TASK = {"train_size": 100, "budget": 4.0, "device": "cpu", "model": "mlp:8", "batch_size": 25}


def seen(n: int = 5) -> dict[str, np.ndarray]:
    return {"loss": np.arange(n, dtype=np.float32), "spent": np.zeros(1, np.float32)}


def seat_of(monkeypatch: pytest.MonkeyPatch, agent: Any, limit: TimeLimit | None = None) -> Seat:
    monkeypatch.setattr(agents, "make", lambda spec: agent)
    monkeypatch.setattr(agents, "own_files", lambda spec: [])
    return Seat("mine", 0, limit)


def keeps_all(observation: Mapping[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"weight": np.ones(len(observation["loss"])), "mixup": np.zeros(len(observation["loss"]))}


def test_an_error_is_told_with_file_line_and_step(monkeypatch: pytest.MonkeyPatch):
    def raises(observation: Any, rng: Any) -> Any:
        if calls.append(0) or len(calls) < 3:
            return keeps_all(observation, rng)
        return observation["losses"]

    calls: list[int] = []
    seat = seat_of(monkeypatch, raises)
    seat.act(seen())
    seat.act(seen())
    line = raises.__code__.co_firstlineno + 3
    with pytest.raises(AgentError) as caught:
        seat.act(seen())
    where = f"KeyError: 'losses' at test_agent.py:{line} in step 3"
    assert str(caught.value) == f"{where}; entries are loss, spent"
    assert 'return observation["losses"]' in caught.value.traceback


FORBIDDEN = {
    "random's global": lambda obs: random.random(),
    "numpy.random's global": lambda obs: np.random.random(),  # noqa: NPY002  (what is forbidden)
    "torch's global": lambda obs: torch.rand(1),
}


@pytest.mark.parametrize("words", FORBIDDEN)
def test_what_an_agent_must_not_do(words: str, monkeypatch: pytest.MonkeyPatch):
    def agent(observation: Any, rng: Any) -> Any:
        FORBIDDEN[words](observation)
        return keeps_all(observation, rng)

    with pytest.raises(AgentError, match=words):
        seat_of(monkeypatch, agent).act(seen())


def test_an_agent_may_work_on_its_arrays_also_with_torch(monkeypatch: pytest.MonkeyPatch):
    def agent(observation: Any, rng: Any) -> Any:
        loss = torch.from_numpy(observation["loss"])
        loss -= loss.mean()
        return select((loss >= 0).numpy().astype(np.int64))

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of arrays that must not be written to
        assert seat_of(monkeypatch, agent).act(seen())["weight"].tolist() == [0, 0, 1, 1, 1]


def test_an_action_is_checked_and_threads_are_put_back(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(AgentError, match=r"the action is a int.* \(in step 1\)$"):
        seat_of(monkeypatch, lambda obs, rng: 3).act(seen())

    def many_threads(observation: Any, rng: Any) -> Any:
        torch.set_num_threads(2)
        return keeps_all(observation, rng)

    action = seat_of(monkeypatch, many_threads).act(seen())
    assert action["weight"].tolist() == [1.0] * 5
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("hangs", [lambda: time.sleep(60), lambda: __import__("re").match(r"(a+)+$", "a" * 40 + "b")])
def test_a_process_whose_agent_hangs_is_ended_and_leaves_a_note(hangs: Any, tmp_path: Path, monkeypatch: Any):
    """Also if the agent never frees the interpreter, as an endless regular expression does."""

    def agent(observation: Any, rng: Any) -> Any:
        hangs()

    def work() -> None:
        seat_of(monkeypatch, agent, TimeLimit(0.2, tmp_path / "late")).act(seen())

    assert late(tmp_path / "late") is None
    assert wait(fork(work)) == 1
    told = late(tmp_path / "late")
    assert str(told) == "the agent took more than 0.2 s for one decision; --agent-timeout allows longer"
    assert told is not None
    assert "test_agent.py" in told.traceback


def test_the_limit_is_on_one_answer_and_no_note_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def slow(observation: Any, rng: Any) -> Any:
        time.sleep(0.06)
        return keeps_all(observation, rng)

    limit = TimeLimit(5.0, tmp_path / "late")
    seat = seat_of(monkeypatch, slow, limit)
    for _ in range(2):
        seat.act(seen())
    assert late(tmp_path / "late") is None
    limit.close()
    assert not list(tmp_path.iterdir())


def test_a_line_for_any_error():
    class Odd(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert "Odd: <exception str() failed>" in line_of(Odd())
    assert line_of(ValueError("a\n b")) == "ValueError: a b"
    assert len(line_of(ValueError("x" * 10**6))) < 1100
    assert line_of(OSError("\udcff")) == "OSError: \\udcff"


# ---------------------------------------------------------------- what it remembers

SPECS = [*agents.AGENTS, "same_amounts:ucb", "random+mixup=0.3", "chooses"]


def played(seat: Seat, env: gym.Env, observation: Any) -> list[np.ndarray]:
    """What is chosen in the rest of a run."""
    chosen, over = [], False
    while not over:
        action = seat.act(observation)
        chosen += [action[name] for name in ("weight", "mixup")]
        observation, _, over, _, _ = env.step(action)
    return chosen


@pytest.mark.parametrize("spec", SPECS)
def test_who_loads_a_state_goes_on_as_if_nothing_had_happened(spec: str, tmp_path: Path):
    """After one step and after three; the state goes through a file, and shares nothing with who told it."""
    if spec == "chooses":
        spec = choosing(tmp_path / "policy.zip", 3) + ",agents=infobatch/swdpp/same_amounts:ucb"
    np.save(tmp_path / "reference.npy", np.arange(1300))  # for `rho_loss`
    task = {**TASK, "reference": str(tmp_path / "reference.npy")}
    env = gym.make("prune_env/Digits-v0", disable_env_checker=True, **task)
    plain: Any = env.unwrapped
    observation, _ = env.reset(seed=1)
    seat, checkpoint, kept = Seat(spec, 7), Checkpoint(tmp_path), []
    for step in range(3):
        observation, *_ = env.step(seat.act(observation))
        if step != 1:
            checkpoint.save({"agent": seat.state(), "env": plain.state_dict()})
            kept.append(checkpoint.load())
    straight = played(seat, env, observation)
    assert len(straight) > 0
    for state in kept:
        again = Seat(spec, 7)
        again.load_state(state["agent"])
        env.reset(seed=2)
        chosen = played(again, env, plain.load_state_dict(state["env"]))
        for one, two in zip(chosen[-len(straight) :], straight, strict=True):
            np.testing.assert_array_equal(one, two)


def test_agents_that_cannot_tell_their_state_start_over():
    class Counts:
        def __init__(self) -> None:
            self.count = 0

        def __call__(self, observation: Any, rng: Any) -> Any:
            self.count += 1

    assert state_of(Counts()) is None
    assert state_of(lambda observation, rng: None) is None
    assert agents.make("same_amounts:ucb").state_dict() is not None  # type: ignore[attr-defined]
    wrapped = agents.SameAmounts(agent=Counts())  # type: ignore[arg-type]
    assert wrapped.state_dict() is None
    assert state_of(agents.make("full")) == {}
    load_state(agents.make("full"), {})


def test_the_digest_is_of_ones_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / f"own_{os.getpid()}.py"
    module.write_text("from agents import make\n\nagent = make('full')\n")
    files = agents.own_files(f"same_amounts:{module.stem}:agent")
    before = provenance.files_digest(files)
    module.write_text(module.read_text() + "# changed\n")
    assert len(before) == 64
    assert provenance.files_digest(files) != before
    assert provenance.files_digest([]) == ""
    assert streams.AGENT == 4  # in every committed result
