"""`train.bench`: its bare loop trains as one written out, its table is complete, its bytes are those of arrays."""

import copy
import re

import gymnasium as gym
import numpy as np
import torch

import agents
from prune_env import PruneEnv
from tests.reference import PlainSGD, normalized, plain_epoch
from train import bench


def test_the_bare_epoch_is_an_epoch_of_plain_sgd():
    env = PruneEnv(train_size=96, batch_size=16, budget=3.0, weight_decay=0.01, lr=0.2)
    env.reset(seed=0)
    assert env.trainer is not None
    model = copy.deepcopy(env.trainer.model)
    expected = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=0.01, nesterov=True)
    accuracy = bench.bare_epoch(env, model, optimizer, seed=3)

    order = torch.randperm(96, generator=torch.Generator().manual_seed(3)).tolist()
    rows = [(i, 1.0, i, 0.0) for i in order]
    images, sgd = normalized(env.train_data), PlainSGD(expected.parameters(), momentum=0.9, decay=0.01)
    plain_epoch(expected, sgd, images, env.train_data.labels, rows, [16] * 6, 16, rates=[0.2] * 6)
    for name, values in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], values, atol=1e-5, rtol=1e-5)

    pixels = env.train_data.images.double()
    held_out = ((env.val_data.images.double() - pixels.mean()) / pixels.std(correction=0)).float()
    with torch.no_grad():
        right = [int(expected(image[None]).argmax()) for image in held_out] == env.val_data.labels.numpy()
    assert accuracy == np.mean(right) > 0.2


def test_every_agent_has_a_row_and_bytes_are_those_of_the_arrays(capsys):
    bench.main(bench.Args(rounds=1, samples=(500,), members=(2,)))
    out = capsys.readouterr().out
    assert re.search(r"digits, mlp +│( +\d+\.\d+ │){3}", out)
    assert re.search(r"│ +2 │ +\d+ │ +\d+ │ +\d+\.\d\d │", out)
    assert "500 samples" in out
    assert sorted(re.findall(r"^│ (\w+) +│ +\d+\.\d │$", out, re.M)) == sorted(agents.AGENTS)

    env = PruneEnv(train_size=100, budget=3.0)
    observation, _ = env.reset(seed=0)
    observed = sum(values.nbytes for values in observation.values() if len(values) == 100) // 100
    assert env.trainer is not None
    assert env.trainer.stats.table.nbytes == 100 * 4 * 11
    assert f"{4 * 11} bytes a sample" in out
    assert f"on the host: {observed}." in out


def test_many_students_train_on_both_sides(monkeypatch):
    made: list = []
    for name in ("make", "make_vec"):
        build = getattr(gym, name)
        monkeypatch.setattr(
            gym, name, lambda *args, build=build, **kwargs: made.append(build(*args, **kwargs)) or made[-1]
        )
    threads = torch.get_num_threads()
    speeds = bench.time_many(3, 2, train_size=48, batch_size=16, model="mlp:4")
    assert torch.get_num_threads() == threads
    assert len(speeds) == 3
    assert min(speeds) > 0

    members, *singles = [getattr(env.unwrapped, "envs", env.unwrapped) for env in made]
    assert len(members) == len(singles) == 3
    weights = []
    for env in (*members, *singles):
        assert env.trainer.ledger.spent == 3  # the rounds, and one to warm up
        assert (env.trainer.stats.table.shape[0], float(env.trainer.observe()["visits"].min())) == (48, 3)
        weights.append(next(env.trainer.model.parameters()).detach())
    for member, single in zip(weights[:3], weights[3:], strict=True):  # of the same seeds
        torch.testing.assert_close(member, single, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(weights[0], weights[1])


def test_made_up_observations_look_like_the_environments():
    seen = bench.observation(100, np.random.default_rng(0))
    env = PruneEnv(train_size=100, budget=100.0)
    real, _ = env.reset(seed=0)
    assert {name: (v.shape, v.dtype) for name, v in seen.items()} == {n: (v.shape, v.dtype) for n, v in real.items()}
    assert env.observation_space.contains(seen)
