"""`train.bench`: its loops train as they say, its restatements follow the formulas, its tables are complete."""

import copy
import functools
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import agents
from prune_env import PruneEnv
from prune_env.stats import COLUMNS
from tests.helpers import trees
from tests.helpers.reference import PlainSGD, normalized, plain_epoch, toy
from tests.helpers.runs import digits
from train.bench import __main__ as bench
from train.bench import loading, peers, pruner, scale, timing

CPU = torch.device("cpu")
SMALL = {"train_size": 48, "batch_size": 16, "model": "mlp:4"}


def started(**options) -> PruneEnv:
    env = digits(**{"budget": 6.0, **SMALL, "weight_decay": 0.01, "lr": 0.2, **options})
    env.reset(seed=0)
    return env


def assert_trained(env: PruneEnv, model: torch.nn.Module, before: torch.nn.Module, order: list[int]) -> None:
    """Assert that a model is what an epoch of plain SGD makes of the model before, in batches of 16 at a rate of 0.02.

    The model before is trained, too.
    """
    rows = [(i, 1.0, i, 0.0) for i in order]
    images, sgd = normalized(env.train_data), PlainSGD(before.parameters(), momentum=0.9, decay=0.01)
    sizes = [16] * (len(rows) // 16)
    plain_epoch(before, sgd, images, env.train_data.labels, rows, sizes, 16, rates=[0.02] * len(sizes))
    for name, values in before.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], values, atol=1e-5, rtol=1e-5)


def test_works_are_timed_in_turn_and_the_ratio_is_the_median_of_the_rounds():
    calls: list[str] = []
    assert timing.in_turn([lambda: calls.append("a"), lambda: calls.append("b")], 2).shape == (2, 2)
    assert calls == ["a", "b"] * 3  # the first round is not counted
    times = np.array([[1.0, 2.0], [1.0, 8.0], [2.0, 6.0]])
    assert (timing.ratio(times, 1), timing.ratio(times, 0, to=1)) == (3.0, pytest.approx(1 / 3))


def test_a_cuda_device_is_waited_for_before_and_after(monkeypatch):
    calls: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", calls.append)
    device = torch.device("cuda:1")
    timing.seconds(lambda: calls.append("work"), device)
    timing.seconds(lambda: calls.append("other"), CPU)
    assert calls == [device, "work", device, "other"]


def test_the_bare_epoch_is_an_epoch_of_plain_sgd():
    env = started(train_size=96)
    loop = peers.Loop(env)
    expected = copy.deepcopy(loop.model)
    trained, accuracy = loop.epoch(*peers.bare_batches(env, seed=3))
    order = torch.randperm(96, generator=torch.Generator().manual_seed(3)).tolist()
    assert_trained(env, loop.model, expected, order)
    pixels = env.train_data.images.double()
    held_out = ((env.val_data.images.double() - pixels.mean()) / pixels.std(correction=0)).float()
    with torch.no_grad():
        right = (expected(held_out).argmax(1) == env.val_data.labels).double().mean()
    assert (trained, accuracy) == (96, float(right))


def test_a_plain_loader_epoch_is_an_epoch_of_plain_sgd(monkeypatch):
    env = started()
    loop, loaded = peers.Loop(env), peers.loaders(env, None, workers=0)
    expected, order = copy.deepcopy(loop.model), []
    load = peers.Images.__getitem__
    monkeypatch.setattr(peers.Images, "__getitem__", lambda self, i: order.append(i) or load(self, i))
    assert loop.epoch(*loaded, reads=True)[0] == 48
    assert sorted(order[:48]) == list(range(48))
    assert_trained(env, loop.model, expected, order[:48])


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 60), keep=st.sampled_from([0.25, 0.5, 1.0]))
@settings(max_examples=30)
def test_the_published_selection_follows_its_formula(seed, n, keep):
    rng = np.random.default_rng(seed)
    published = peers.Published(n, keep)
    assert sorted(published) == list(range(n))  # no score is below the mean of equal ones
    scores = rng.integers(0, 4, n).astype(np.float32)
    published.scores.copy_(torch.from_numpy(scores))
    easy = {i for i in range(n) if scores[i] < sum(scores.tolist()) / n}
    for _ in range(3):  # weights start anew each time
        rows = list(published)
        assert len(set(rows)) == len(rows)
        assert set(range(n)) - easy <= set(rows)
        assert len(easy & set(rows)) == int(keep * len(easy))
        assert published.weights.tolist() == [1 / keep if i in easy & set(rows) else 1.0 for i in range(n)]


def test_a_pruned_loader_epoch_enters_every_loss_and_trains_what_prune_keeps():
    env, published = started(), peers.Published(48)
    loop, loaded = peers.Loop(env, published), peers.loaders(env, published, workers=0)
    assert loop.epoch(*loaded)[0] == 48
    scores = published.scores.clone()
    assert not (scores == peers.UNSEEN).any()
    easy = int((scores < scores.mean()).sum())
    assert loop.epoch(*loaded)[0] == 48 - easy + easy // 2 < 48
    assert (published.scores != scores).sum() == 48 - easy + easy // 2  # what is dropped keeps its score

    published.weights[:5] = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    loss = published.update(torch.tensor([3, 1]), torch.tensor([0.5, 1.5]))
    assert float(loss) == (4 * 0.5 + 2 * 1.5) / 2
    assert published.scores[[1, 3]].tolist() == [1.5, 0.5]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_the_loader_are_those_of_the_environment(channels):
    data = toy(n=6, channels=channels, size=8)
    plain, augmented = (peers.Images(data, flag, data.moments) for flag in (False, True))
    for i in range(6):
        index, image, label = plain[i]
        assert (index, label) == (i, int(data.labels[i]))
        torch.testing.assert_close(image, normalized(data)[i], atol=1e-4, rtol=1e-4)
    assert len({tuple(augmented[0][1].flatten().tolist()) for _ in range(8)}) > 1


@pytest.mark.parametrize("agent", ["full", "infobatch"])
def test_peers_train_on_as_many(agent):
    duel = peers.time_peers("prune_env/Digits-v0", agent, 2, workers=(0,), **SMALL)
    assert min(duel.ours, duel.peer, duel.ratio) > 0
    assert abs(duel.kept - duel.kept_by_peer) <= 1.5 / 48  # the half sample is rounded at random, or down
    assert (duel.kept == 1) == (agent == "full")


def test_many_students_train_on_both_sides_and_their_operations_are_counted():
    batched, looped, ratio, flops = peers.time_many(2, 1, **SMALL)
    assert min(looped, ratio) > 0
    forward = 2 * (64 * 4 + 4 * 10)  # operations a sample: a product and a sum for each weight
    backward = forward + 2 * 4 * 10  # by the weights, and by the hidden layer
    val = len(started().val_data)
    assert flops / batched == pytest.approx(48 * (forward + backward) + val * forward)


def test_observations_of_any_size_look_like_the_environments():
    seen = scale.observation(100, np.random.default_rng(0))
    env = digits(budget=100.0)
    real, _ = env.reset(seed=0)
    assert {name: (v.shape, v.dtype) for name, v in seen.items()} == {n: (v.shape, v.dtype) for n, v in real.items()}
    assert env.observation_space.contains(seen)


def test_parts_of_an_epoch_are_timed_and_their_memory_is_counted():
    parts = scale.time_parts(40_000, 1, 3, CPU)
    assert min(seconds for seconds, _ in parts.values()) > 0
    assert parts["observation"][1] == pytest.approx(4 * len(COLUMNS) + 8 + 4, rel=0.2)  # with a copy of the ages
    assert parts["check of an action"][1] == pytest.approx(12, rel=0.2)


def test_every_section_prints_its_tables(capsys, monkeypatch):
    # epochs of all digits take many seconds
    monkeypatch.setattr(bench, "time_step", functools.partial(peers.time_step, **SMALL))

    def duel(env_id, agent, rounds, workers, epochs, **task):
        return peers.time_peers(env_id, agent, rounds, workers, 1, **task, **SMALL)

    monkeypatch.setattr(bench, "time_peers", duel)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # on a busy machine they wait for each other
    args = bench.Args(rounds=1, samples=(300, 600), classes=7, members=(2,), conv_members=(), workers=(0,))
    args.only = args.only[:-1]  # the last one has a test of its own
    bench.main(args)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    assert re.search(r"digits, mlp +│( +[\d.,]+ │){3}$", out, re.M)
    assert re.search(r"digits, mlp +│ +full │ +1\.00 │( +[\d.,]+ │){2} +0 │ +[\d.,]+ │$", out, re.M)
    assert re.search(r"digits, mlp +│ +infobatch │ +0\.\d\d │( +[\d.,]+ │){2} +0 │ +[\d.,]+ │$", out, re.M)
    assert re.search(r"│ mlp +│ +2 │( +[\d.,]+ │){4}$", out, re.M)
    assert len(re.findall(r"^│ [\w' ]+ │(?: +[\d.]+ │){3} +\d+ │$", out, re.M)) == 7
    assert len(re.findall(r"^│ [36]00 +│(?: +[\d.]+ │){5}$", out, re.M)) == 2
    assert sorted(re.findall(r"^│ (\w+) +│(?: +[\d.]+ │){3}$", out, re.M)) == sorted(agents.AGENTS)
    assert f"{4 * len(COLUMNS)} bytes a sample; an observation on the host: {4 * len(COLUMNS) + 8}." in out


def test_the_tables_of_a_pruner_have_a_step_and_every_part(capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    bench.main(bench.Args(("pruner",), rounds=1, samples=(300, 600), steps=1, rows=64))
    out = capsys.readouterr().out
    assert re.search(r"│ step │( +[\d.,]+ │){3}$", out, re.M)
    assert all(re.search(rf"│ {part} +│( +[\d.]+ │){{3}}$", out, re.M) for part in pruner.PARTS)


def test_the_table_of_loading_has_a_row_for_each_source_and_share(tmp_path, monkeypatch, capsys, one_thread):
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(tmp_path / "cache"))
    trees.imagefolder(tmp_path / "tree", per_class=30, size=16)
    args = loading.Args(str(tmp_path / "tree"), 50, 16, "mlp:8", (1.0, 0.3), rounds=2, device="cpu")
    loading.main(args)
    lines = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    rows = [[cell.strip() for cell in line] for line in lines]
    assert [row[:2] for row in rows] == [["mapped", keep] for keep in ("100%", "30%")]
    assert all(float(cell) >= 0 for row in rows for cell in row[2:6])
