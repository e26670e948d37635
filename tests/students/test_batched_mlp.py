"""Many students in one: against the same students trained one after another, and against loops over samples."""

import copy
from dataclasses import asdict, dataclass

import numpy as np
import pytest
import torch

from prune_env import trainer as trainer_of_one
from prune_env.data import Data
from prune_env.selection import Selection, select
from prune_env.students import batched_mlp
from prune_env.students.batched_mlp import Students, train_epochs
from prune_env.students.recipes import Recipe
from prune_env.trainer import Trainer
from tests.helpers.reference import PlainSGD, normalized, plain_epoch, schedule, toy


def student(
    model: str = "mlp:5",
    train: Data | None = None,
    val: Data | None = None,
    budget: float = 4.0,
    seed: int = 0,
    batch_size: int = 8,
    **recipe,
) -> Trainer:
    train = train or toy()
    _, channels, size, _ = train.images.shape
    val = val or toy(12, len(train.classes), channels, size, seed=1)
    return Trainer(train, val, Recipe(model, batch_size, **{"lr": 0.1, "precision": "float32", **recipe}), budget, seed)


def random_selection(student: Trainer, rng: np.random.Generator) -> Selection:
    """Of any kind: some, all, a single row, none; with and without weights, mixup and scoring."""
    n = student.ledger.n
    share = rng.choice([0.0, 1 / n, 0.3, 0.7, 1.0])
    kept = rng.permutation(n) < round(share * n)
    weight = kept * (rng.uniform(0.2, 4, n) if rng.random() < 0.7 else 1.0)
    mixup = 0.5 * rng.random(n) * (rng.random(n) < rng.choice([0.0, 0.5, 1.0]))
    return student.select(select(weight, mixup, rng.random(n) < rng.choice([0.0, 0.3, 1.0])))


def assert_close(ours: Trainer, theirs: Trainer) -> None:
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, equal_nan=True)
        momentum = theirs.optimizer.state.get(b, {}).get("momentum_buffer")
        if momentum is not None and theirs.recipe.momentum:
            torch.testing.assert_close(ours.optimizer.state[a]["momentum_buffer"], momentum, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.stats.table, theirs.stats.table, atol=1e-4, rtol=1e-4)
    assert counted(ours) == counted(theirs)
    assert ours.optimizer.param_groups[0]["lr"] == pytest.approx(theirs.optimizer.param_groups[0]["lr"])


def counted(student: Trainer) -> dict:
    return {**student.ledger.state_dict(), "seconds": None, "step": student.step, "batches": student.batches}


def unlike() -> list[Trainer]:
    """Students of every width, image, batch, validation part and recipe, of two depths; one trains by itself."""
    return [
        student("mlp:5", seed=0),
        student("mlp:9", train=toy(17), seed=1, lr=0.2, momentum=0.0),
        student("mlp:3", train=toy(30, size=8), val=toy(700, size=8), seed=2, batch_size=7, weight_decay=0.01),
        student("mlp:6", train=toy(24, channels=3, size=8, augment=True), seed=3, label_smoothing=0.2, ema=0.5),
        student("mlp:4-5", seed=4),
        student("mlp:5-4", seed=5, budget=2.0),
        student("convnet:2-2-2", train=toy(12, size=8), seed=6),
    ]


def test_students_of_any_kind_learn_in_an_epoch_what_they_learn_alone():
    rng = np.random.default_rng(0)
    students = unlike()
    for _ in range(4):
        alone = copy.deepcopy(students)
        chosen = [random_selection(s, rng) for s in students]
        ours = train_epochs(students, chosen)
        theirs = [s.train_epoch(c) for s, c in zip(alone, chosen, strict=True)]
        for s, a, one, other in zip(students, alone, ours, theirs, strict=True):
            assert vars(one) == pytest.approx(vars(other), abs=1e-4, nan_ok=True)
            assert_close(s, a)
        students = [s for s, result in zip(students, ours, strict=True) if not result.finished]
    assert len(students) > 1


def test_an_episode_of_many_learns_as_much_as_one_of_each():
    data, val = toy(60, size=8), toy(300, size=8, seed=1)
    students = [student("mlp:16", train=data, val=val, budget=8.0, seed=seed, lr=0.02) for seed in range(16)]
    alone = copy.deepcopy(students)
    for _ in range(8):
        chosen = [s.select(select(np.ones(60))) for s in students]
        train_epochs(students, chosen)
        for s, c in zip(alone, chosen, strict=True):
            s.train_epoch(c)
    ours, theirs = (np.array([s.val_accuracy for s in each]) for each in (students, alone))
    assert ours.mean() == pytest.approx(theirs.mean(), abs=0.01)
    assert theirs.mean() > 0.5


def test_padded_weights_stay_zero_exactly():
    students = [student("mlp:9"), student("mlp:3", train=toy(24, size=2), seed=1)]
    stack = Students(students)
    epochs = [s.ledger.plan(s.select(select(np.ones(24))), s.batch_size) for s in students]
    stack.train(epochs)
    for stacked, own in zip(stack.weights, students[1].model.parameters(), strict=True):
        inside = torch.zeros_like(stacked[1], dtype=torch.bool)
        inside[tuple(map(slice, own.shape))] = True
        assert not stacked[1][~inside].any()
        assert stacked[1][inside].any()


def test_epochs_agree_with_loops_over_samples():
    """Two students of 24 and 17 samples in batches of 5, whose last batches have 4 rows and 1."""
    students = [
        student(train=toy(24), batch_size=5, momentum=0.9, weight_decay=0.01, label_smoothing=0.2, budget=3.0),
        student(train=toy(17), batch_size=5, momentum=0.5, weight_decay=0.0, lr=0.2, budget=2.0, seed=1),
    ]
    networks = [copy.deepcopy(s.model) for s in students]
    sgds = [
        PlainSGD(net.parameters(), s.recipe.momentum, s.recipe.weight_decay)
        for net, s in zip(networks, students, strict=True)
    ]
    rng = np.random.default_rng(0)
    done = [0, 0]
    for _ in range(2):
        chosen = []
        for s, keep in zip(students, (24, 11), strict=True):
            n = s.ledger.n
            weight = rng.uniform(0.2, 3, n) * (rng.permutation(n) < keep)
            chosen.append(s.select(select(weight, 0.3 * (rng.random(n) < 0.5))))
        train_epochs(students, chosen)
        for k, (s, net, sizes) in enumerate(zip(students, networks, ([5, 5, 5, 5, 4], [5, 5, 1]), strict=True)):
            total = s.ledger.n * s.ledger.budget
            middles = [done[k] + sum(sizes[:i]) + size / 2 for i, size in enumerate(sizes)]
            rates = [schedule(middle / total, s.recipe.lr, 0.1) for middle in middles]
            columns = (chosen[k].indices, chosen[k].weights, chosen[k].partners, chosen[k].shares)
            rows = list(zip(*(column.tolist() for column in columns), strict=True))
            images, labels = normalized(s.train_data), s.train_data.labels
            plain_epoch(net, sgds[k], images, labels, rows, sizes, 5, rates, s.recipe.label_smoothing)
            done[k] += sum(sizes)
    for s, net in zip(students, networks, strict=True):
        for a, b in zip(s.model.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_nobody_trains_where_nothing_is_selected():
    students = [student(seed=seed) for seed in range(3)]
    before = copy.deepcopy([s.model.state_dict() for s in students])
    nothing = np.zeros(24)
    scored = [s.select(select(nothing, score=np.arange(24) < 4 * k)) for k, s in enumerate(students)]
    results = train_epochs(students, scored)
    assert [(r.trained, r.scored, r.finished) for r in results] == [(0, 0, True), (0, 4, False), (0, 8, False)]
    for s, weights in zip(students, before, strict=True):
        for a, b in zip(s.model.state_dict().values(), weights.values(), strict=True):
            assert torch.equal(a, b)
    assert train_epochs([], []) == []


@dataclass(frozen=True)
class Clipped(Recipe):
    clip: float | None = None


@pytest.mark.parametrize(("clip", "by_itself"), [(None, False), (1.0, True)])
def test_a_student_with_an_option_that_batches_do_not_know_trains_by_itself(clip, by_itself, monkeypatch):
    students = [student(seed=k) for k in range(3)]
    students[0].recipe = Clipped(**asdict(students[0].recipe), clip=clip)
    sizes, run = [], batched_mlp.run_batched
    monkeypatch.setattr(batched_mlp, "run_batched", lambda some, epochs: sizes.append(len(some)) or run(some, epochs))
    train_epochs(students, [s.select(select(np.ones(24))) for s in students])
    assert sorted(sizes) == ([1, 2] if by_itself else [3])


def test_one_that_diverges_leaves_the_others_alone():
    def some() -> list[Trainer]:
        return [student(seed=k, lr=lr, budget=9.0) for k, lr in enumerate((0.1, 1e30, 0.05))]

    students, alone = some(), some()
    everything = select(np.ones(24), score=np.ones(24))
    finished = []
    for _ in range(2):
        results = train_epochs(students, [s.select(everything) for s in students])
        finished.append([(r.diverged, r.finished) for r in results])
        for k in (0, 2):
            alone[k].train_epoch(alone[k].select(everything))
            assert_close(students[k], alone[k])
    assert finished == [[(False, False), (True, True), (False, False)]] * 2
    assert not all(torch.isfinite(p).all() for p in students[1].model.parameters())


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("where", ["while it trains", "while it waits"])
def test_an_epoch_that_is_interrupted_changes_no_student(members, where, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    students = [student(seed=seed) for seed in range(members)]
    everything = select(np.ones(24), 0.1)
    train_epochs(students, [s.select(everything) for s in students])
    before = copy.deepcopy(students)
    with monkeypatch.context() as patch:
        if where == "while it waits":
            patch.setattr(batched_mlp if members > 1 else trainer_of_one, "total", interrupt)
        else:
            patch.setattr(Trainer, "_fetch", interrupt)
            patch.setattr(Students, "_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_epochs(students, [s.select(everything) for s in students])
    for s, other in zip(students, before, strict=True):
        assert counted(s) == counted(other)
        for a, b in zip(s.model.state_dict().values(), other.model.state_dict().values(), strict=True):
            assert torch.equal(a, b)
        assert torch.equal(s.stats.table, other.stats.table)
        for a, b in zip(s.optimizer.momenta(), other.optimizer.momenta(), strict=True):
            assert torch.equal(a, b)


def test_a_state_goes_on_alone_where_it_was_trained_together():
    together_, alone = ([student(seed=k) for k in range(2)] for _ in range(2))
    everything = select(np.ones(24), 0.1)
    train_epochs(together_, [s.select(everything) for s in together_])
    for s, other in zip(together_, alone, strict=True):
        other.load_state_dict(s.state_dict())
        for p in s.model.parameters():  # live tensors of its own, not views into what was shared
            assert p.untyped_storage().nbytes() == p.numel() * 4
            assert s.optimizer.state[p]["momentum_buffer"].untyped_storage().nbytes() == p.numel() * 4
    results = train_epochs(together_, [s.select(everything) for s in together_])
    assert [r.trained for r in results] == [s.train_epoch(s.select(everything)).trained for s in alone]
    for a, b in zip(together_, alone, strict=True):
        assert_close(a, b)
