"""`train.learn --engine ray`: actors collect what processes collect. Skipped where Ray is not installed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.learning.test_rollouts import TASKS, Refusing, Steps, pairs_of, poles
from train import learn
from train.learning.rollouts import FULL, play

pytest.importorskip("ray")
pytestmark = pytest.mark.slow  # a cluster of its own
HERE = SimpleNamespace(address=None, processes=2)


def test_actors_and_tasks_give_the_numbers_of_this_process():
    from train.learning import ray_env

    with ray_env.cluster(HERE):
        actors, whole = ray_env.RayVecEnv([partial(poles, 2), partial(poles, 1)]), poles(3)
        for env in (actors, whole):
            env.seed(5)
        np.testing.assert_array_equal(actors.reset(), whole.reset())
        rng = np.random.default_rng(0)
        for _ in range(30):
            actions = rng.integers(2, size=3)
            for ours, theirs in zip(actors.step(actions)[:3], whole.step(actions)[:3], strict=True):
                np.testing.assert_array_equal(ours, theirs)
        with pytest.raises(AssertionError, match="9"):
            actors.step(np.array([0, 1, 9]))
        actors.close()
        players = ray_env.RayPlayers(TASKS, 2)
        pairs = pairs_of(3)
        np.testing.assert_array_equal(players.play(pairs, Steps()), play(pairs, Steps(), TASKS))
        np.testing.assert_array_equal(players.play(pairs, FULL), play(pairs, FULL, TASKS))
        with pytest.raises(ArithmeticError, match="no numbers today"):
            players.play(pairs, Refusing())


def test_no_cluster_is_said_in_one_line(tmp_path: Path, capsys, monkeypatch):
    import ray

    def refused(*_, **__):
        raise ConnectionError("refused")

    monkeypatch.setattr(ray, "init", refused)  # its own attempts take minutes
    options = ["--engine", "ray", "--address", "127.0.0.1:1", "--members", "2", "--processes", "2"]
    assert learn.main([*options, "--steps", "1", "--out", str(tmp_path)]) == 2
    assert "error: no Ray cluster at --address 127.0.0.1:1: refused" in capsys.readouterr().err
