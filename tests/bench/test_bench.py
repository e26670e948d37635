"""`train.bench`: its loops train as they say, its restatements follow the formulas, its tables are complete."""

import copy
import os
import re

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import agents
from agents import infobatch
from prune_env import PruneEnv
from prune_env.stats import COLUMNS
from tests.helpers.reference import PlainSGD, normalized, plain_epoch, toy
from train.bench import __main__ as bench
from train.bench import peers as bench_peers
from train.bench import scale as bench_scale
from train.bench import timing

CPU = torch.device("cpu")
SMALL = {"train_size": 48, "batch_size": 16, "model": "mlp:4"}


def begun(**settings) -> PruneEnv:
    env = PruneEnv(**{"budget": 6.0, **SMALL, **settings})
    env.reset(seed=0)
    return env


# Timing


def test_works_are_timed_in_turn_and_the_first_round_is_not_counted():
    calls: list[str] = []
    times = timing.in_turn([lambda: calls.append("a"), lambda: calls.append("b")], 2)
    assert calls == ["a", "b"] * 3
    assert times.shape == (2, 2)
    assert times.min() >= 0


def test_a_ratio_is_the_median_of_the_rounds():
    times = np.array([[1.0, 2.0], [1.0, 8.0], [2.0, 6.0]])
    assert timing.ratio(times, 1) == 3.0
    assert timing.ratio(times, 0, to=1) == pytest.approx(1 / 3)


def test_a_cuda_device_is_waited_for_before_and_after(monkeypatch):
    calls: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", calls.append)
    device = torch.device("cuda:1")
    timing.seconds(lambda: calls.append("work"), device)
    timing.seconds(lambda: calls.append("other"), CPU)
    assert calls == [device, "work", device, "other"]


# Peers


def test_the_bare_epoch_is_an_epoch_of_plain_sgd():
    env = PruneEnv(train_size=96, batch_size=16, budget=3.0, weight_decay=0.01, lr=0.2)
    env.reset(seed=0)
    model = copy.deepcopy(env.running.model)
    expected = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=0.01, nesterov=True)
    accuracy = bench_peers.bare_epoch(env, bench_peers.Student(model, optimizer, CPU), seed=3)

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


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 60), keep=st.sampled_from([0.25, 0.5, 1.0]))
@settings(max_examples=50, deadline=None)
def test_the_published_selection_follows_its_formula(seed, n, keep):
    rng = np.random.default_rng(seed)
    published = bench_peers.Published(n, keep)
    assert sorted(published) == list(range(n))  # no score is below the mean of equal ones
    assert published.weights.tolist() == [1.0] * n
    scores = rng.integers(0, 4, n).astype(np.float32)
    published.scores.copy_(torch.from_numpy(scores))
    easy = {i for i in range(n) if scores[i] < sum(scores.tolist()) / n}
    for _ in range(3):  # weights start anew each time
        rows = list(published)
        assert len(set(rows)) == len(rows)
        assert set(range(n)) - easy <= set(rows)
        assert len(easy & set(rows)) == int(keep * len(easy))
        for i in range(n):
            assert published.weights[i] == (1 / keep if i in easy & set(rows) else 1.0)


def test_losses_are_written_back_and_weighted():
    published = bench_peers.Published(5)
    published.weights[:] = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    losses = torch.tensor([0.5, 1.5], requires_grad=True)
    loss = published.update(torch.tensor([3, 1]), losses)
    assert float(loss.detach()) == (4 * 0.5 + 2 * 1.5) / 2
    loss.backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == [2.0, 1.0]
    assert published.scores.tolist() == [3.0, 1.5, 3.0, 0.5, 3.0]


@pytest.mark.parametrize(("channels", "augment"), [(1, False), (3, True)])
def test_images_of_the_loader_are_those_of_the_environment(channels, augment):
    data = toy(n=6, channels=channels, size=8, augment=augment)
    plain, augmented = (bench_peers.Images(data, flag, data.moments) for flag in (False, True))
    assert len(plain) == 6
    for i in range(6):
        index, image, label = plain[i]
        assert (index, label) == (i, int(data.labels[i]))
        torch.testing.assert_close(image, normalized(data)[i], atol=1e-4, rtol=1e-4)
    seen = [tuple(augmented[0][1].flatten().tolist()) for _ in range(8)]
    assert (len(set(seen)) > 1) == augment  # where the data suits it


def test_a_plain_loader_epoch_is_an_epoch_of_plain_sgd(monkeypatch):
    env = begun(weight_decay=0.01, lr=0.2)
    loop = bench_peers.LoaderLoop(env, pruned=False, workers=0)
    expected = copy.deepcopy(loop.student.model)
    order: list[int] = []
    load = bench_peers.Images.__getitem__
    monkeypatch.setattr(bench_peers.Images, "__getitem__", lambda self, i: order.append(i) or load(self, i))
    trained, accuracy = loop.epoch()
    assert trained == 48
    assert sorted(order[:48]) == list(range(48))

    rows = [(i, 1.0, i, 0.0) for i in order[:48]]
    images, sgd = normalized(env.train_data), PlainSGD(expected.parameters(), momentum=0.9, decay=0.01)
    plain_epoch(expected, sgd, images, env.train_data.labels, rows, [16] * 3, 16, rates=[0.02] * 3)
    for name, values in expected.state_dict().items():
        torch.testing.assert_close(loop.student.model.state_dict()[name], values, atol=1e-5, rtol=1e-5)
    assert 0 <= accuracy <= 1


def test_a_pruned_loader_epoch_enters_every_loss_and_trains_what_prune_keeps():
    loop = bench_peers.LoaderLoop(begun(), pruned=True, workers=0)
    assert loop.published is not None
    assert loop.epoch()[0] == 48
    scores = loop.published.scores.clone()
    assert not (scores == bench_peers.UNSEEN).any()
    easy = int((scores < scores.mean()).sum())
    assert loop.epoch()[0] == 48 - easy + easy // 2 < 48
    changed = loop.published.scores != scores
    assert changed.sum() == 48 - easy + easy // 2  # what is dropped keeps its score


@pytest.mark.parametrize("agent", ["full", "infobatch"])
def test_peers_train_on_as_many(agent):
    duel = bench_peers.time_peers("prune_env/Digits-v0", agent, 2, workers=(0,), **SMALL)
    assert min(duel.ours, duel.peer, duel.ratio) > 0
    assert duel.workers == 0
    assert abs(duel.kept - duel.kept_by_peer) <= 1.5 / 48  # the half sample is rounded at random, or down
    assert (duel.kept == 1) == (agent == "full")


@pytest.mark.parametrize("model", ["mlp:4", "convnet:4-4-4"])
def test_many_students_train_on_both_sides(model, monkeypatch):
    made: list = []
    for name in ("make", "make_vec"):
        build = getattr(gym, name)
        monkeypatch.setattr(
            gym, name, lambda *args, build=build, **kwargs: made.append(build(*args, **kwargs)) or made[-1]
        )
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    speeds = bench_peers.time_many(3, 2, **{**SMALL, "model": model})
    assert threads == [os.cpu_count(), 1]
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


# Scale


def test_made_up_observations_look_like_the_environments():
    seen = bench_scale.observation(100, np.random.default_rng(0))
    env = PruneEnv(train_size=100, budget=100.0)
    real, _ = env.reset(seed=0)
    assert {name: (v.shape, v.dtype) for name, v in seen.items()} == {n: (v.shape, v.dtype) for n, v in real.items()}
    assert env.observation_space.contains(seen)


def test_rounds_fall_where_each_takes_long():
    assert [bench_scale.turns(15, n) for n in (500, 1_281_167, 10_000_000, 10**9)] == [15, 15, 2, 1]


@pytest.mark.parametrize("n", [10, 5000, 40_000])
def test_parts_of_an_epoch_are_timed_at_any_size(n):
    parts = bench_scale.time_parts(n, 1, 3, CPU)
    assert [part.epoch for part in parts] == [True] * 5 + [False] * 2
    assert min(part.seconds for part in parts) > 0
    bytes_of = {part.name: part.host for part in parts}
    if n > 1000:  # else what Python itself holds is more
        assert bytes_of["observation"] == pytest.approx(4 * len(COLUMNS) + 8 + 4, rel=0.2)  # a copy of the ages
        assert bytes_of["check of an action"] == pytest.approx(12, rel=0.2)
        assert bytes_of["statistics of all samples"] < 1


def test_the_peak_is_what_is_held_at_once():
    def work() -> np.ndarray:
        np.ones(1_000_000)
        first = np.ones(1_000_000, np.float32)
        return first + np.float32(1)

    assert bench_scale.peak(work) == pytest.approx(8_000_000, rel=0.01)


def test_selections_are_timed_on_the_same_losses(monkeypatch):
    seen: list[int] = []
    prune, decide = bench_peers.Published.prune, infobatch.InfoBatch.__call__
    monkeypatch.setattr(bench_peers.Published, "prune", lambda self: seen.append(len(rows := prune(self))) or rows)
    monkeypatch.setattr(
        infobatch.InfoBatch,
        "__call__",
        lambda self, *given: seen.append(int(np.count_nonzero((action := decide(self, *given))["weight"]))) or action,
    )
    found = bench_scale.time_selecting(20_000, 2)
    assert min(found.published, found.decision, found.decision_ratio, found.whole, found.whole_ratio) > 0
    assert len(seen) == 9  # three works in three rounds
    assert max(seen) - min(seen) < 0.005 * 20_000  # unseen samples are no matter to the published rule


# The program


def test_every_section_prints_its_tables_and_bytes_are_those_of_the_arrays(capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # on a busy machine they wait for each other
    bench.main(bench.Args(rounds=1, samples=(300, 600), classes=7, members=(2,), conv_members=(), workers=(0,)))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    assert re.search(r"digits, mlp +│( +[\d.,]+ │){3}$", out, re.M)
    assert re.search(r"digits, mlp +│ +full │ +1\.00 │( +[\d.,]+ │){2} +0 │ +[\d.,]+ │$", out, re.M)
    assert re.search(r"digits, mlp +│ +infobatch │ +0\.\d\d │( +[\d.,]+ │){2} +0 │ +[\d.,]+ │$", out, re.M)
    assert re.search(r"│ mlp +│ +2 │( +[\d.,]+ │){3}$", out, re.M)
    assert "7 classes" in out
    assert len(re.findall(r"^│ [\w' ]+ │(?: +[\d.]+ │){3} +\d+ │$", out, re.M)) == 7
    assert len(re.findall(r"^│ [36]00 +│(?: +[\d.]+ │){5}$", out, re.M)) == 2
    assert sorted(re.findall(r"^│ (\w+) +│(?: +[\d.]+ │){3}$", out, re.M)) == sorted(agents.AGENTS)

    env = PruneEnv(train_size=100, budget=3.0)
    observation, _ = env.reset(seed=0)
    observed = sum(values.nbytes for values in observation.values() if len(values) == 100) // 100
    assert env.running.stats.table.nbytes == 100 * 4 * len(COLUMNS)
    assert f"{4 * len(COLUMNS)} bytes a sample" in out
    assert f"on the host: {observed}." in out


def test_sections_can_be_chosen(capsys):
    bench.main(bench.Args(only=("decisions",), rounds=1, samples=(50,)))
    out = capsys.readouterr().out
    assert "decision" in out
    assert "students" not in out
    assert "digits" not in out
