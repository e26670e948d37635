"""Many students in one: against the same students trained one after another, and against loops over samples."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from prune_env import trainer
from prune_env.data import Data, load
from prune_env.selection import Selection, select
from prune_env.students import batched_mlp as together
from prune_env.students.batched_mlp import run_epochs
from prune_env.students.recipes import Recipe
from prune_env.trainer import EpochResult, Trainer
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


def assert_same(ours: Trainer, theirs: Trainer) -> None:
    """Weights, momenta and what is counted, to the bit: training amplifies the smallest difference."""
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())
        momentum = theirs.optimizer.state.get(b, {}).get("momentum_buffer")
        if momentum is not None and theirs.recipe.momentum:
            assert torch.equal(ours.optimizer.state[a]["momentum_buffer"].nan_to_num(), momentum.nan_to_num())
    torch.testing.assert_close(ours.stats.table, theirs.stats.table, atol=2e-6, rtol=2e-6)  # of equal logits
    assert counted(ours) == counted(theirs)
    assert ours.optimizer.param_groups[0]["lr"] == theirs.optimizer.param_groups[0]["lr"]


def counted(student: Trainer) -> dict:
    return {**student.ledger.state_dict(), "seconds": None, "step": student.step, "batches": student.batches}


def assert_same_results(ours: list[EpochResult], theirs: list[EpochResult]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert vars(one) == pytest.approx(vars(other), abs=1e-5, nan_ok=True)


def compare(students: list[Trainer], steps: int, rng: np.random.Generator) -> None:
    """Train all both ways; whoever has finished leaves."""
    alone = copy.deepcopy(students)
    for _ in range(steps):
        chosen = [random_selection(s, rng) for s in students]
        results = run_epochs(students, chosen)
        assert_same_results(results, [s.run_epoch(c) for s, c in zip(alone, chosen, strict=True)])
        for a, b in zip(students, alone, strict=True):
            assert_same(a, b)
        going = [i for i, result in enumerate(results) if not result.finished]
        students, alone = [students[i] for i in going], [alone[i] for i in going]


@pytest.mark.parametrize("case", range(16))
def test_students_of_any_kind_learn_what_they_learn_alone(case):
    rng = np.random.default_rng(case)
    channels, size, augment = [(1, 4, False), (3, 8, True)][case % 2]

    def any_student(seed: int) -> Trainer:
        n = int(rng.integers(6, 30))
        train, val = toy(n, 3, channels, size, augment, seed), toy(9, 3, channels, size, seed=100 + case % 3 * seed)
        return student(
            model=str(rng.choice(["mlp:5", "mlp:2", "mlp:9", "mlp:4-3", "mlp:2-6"])),
            train=train,
            val=val,
            budget=float(rng.choice([1.5, 2.2, 6.0])),
            seed=seed,
            batch_size=int(rng.choice([5, 5, 8])),
            lr=float(rng.uniform(0.02, 0.2)),
            momentum=float(rng.choice([0.0, 0.9, 0.5])),
            weight_decay=float(rng.choice([0.0, 0.01])),
            label_smoothing=float(rng.choice([0.0, 0.2])),
            ema=float(rng.choice([0.3, 1.0])),
            warmup=float(rng.choice([0.0, 0.3])),
        )

    compare([any_student(seed) for seed in range(7)], 4, rng)


def test_they_are_trained_together(monkeypatch):
    """Else the comparisons would say nothing: alone are only those of another shape."""
    alone: list[Trainer] = []
    run_epoch = Trainer.run_epoch
    monkeypatch.setattr(Trainer, "run_epoch", lambda self, chosen: (alone.append(self), run_epoch(self, chosen))[1])
    image = toy(24, channels=3, size=16)
    kinds = {
        "a": {},
        "b": {"seed": 1, "budget": 2.0, "lr": 0.3, "momentum": 0.5, "weight_decay": 0.01},
        "convolutional": {"model": "convnet:2-2-2", "train": image},
        "convolutional too": {"model": "convnet:2-2-2", "train": image, "seed": 1},
        "wider": {"model": "mlp:6"},
        "smoothed": {"label_smoothing": 0.1},
        "deeper": {"model": "mlp:5-5"},
        "of fewer samples": {"train": toy(9)},
        "of another batch": {"batch_size": 7},
        "of more pixels": {"train": toy(24, size=5)},
        "of more classes": {"train": toy(24, classes=4)},
        "in half precision": {"precision": "bfloat16"},
    }
    students = {name: student(**kind) for name, kind in kinds.items()}
    chosen = [s.select(select(np.ones(s.ledger.n, bool))) for s in students.values()]
    results = run_epochs(list(students.values()), chosen)
    together_ = {"a", "b", "of fewer samples"}
    assert {name for name, s in students.items() if s in alone} == set(students) - together_
    assert [r.trained for r in results] == [s.ledger.n for s in students.values()]


@pytest.mark.parametrize("fetched", [1, 8 * 3 * 64, 3 * 2 * 8 * 3 * 64, 2**22])
def test_how_much_is_gathered_at_a_time_changes_nothing(monkeypatch, fetched):
    monkeypatch.setattr(together, "FETCHED", fetched)
    monkeypatch.setattr(trainer, "EVALUATION_BATCH", 5)
    monkeypatch.setattr(together, "EVALUATION_BATCH", 5)
    students = [student(train=toy(n, 3, 3, 8, True), seed=n, budget=6.0) for n in (29, 24, 9)]
    alone = copy.deepcopy(students)
    for mixup in (0.2, 0.0):
        chosen = [s.select(select(np.arange(s.ledger.n) < 27, mixup)) for s in students]
        ours = run_epochs(students, chosen)
        assert_same_results(ours, [s.run_epoch(c) for s, c in zip(alone, chosen, strict=True)])
        assert [result.trained for result in ours] == [27, 24, 9]
    for a, b in zip(students, alone, strict=True):
        assert_same(a, b)


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
        run_epochs(students, chosen)
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
    results = run_epochs(students, scored)
    assert [(r.trained, r.scored, r.finished) for r in results] == [(0, 0, True), (0, 4, False), (0, 8, False)]
    for s, weights in zip(students, before, strict=True):
        for a, b in zip(s.model.state_dict().values(), weights.values(), strict=True):
            assert torch.equal(a, b)
    assert run_epochs([], []) == []


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("model", "lr", "batch_size", "task"),
    [
        ("mlp:64-64", 0.4, 32, {}),
        ("mlp:5-7-3", 0.1, 32, {"train_size": 300}),
        ("mlp:10-10", 0.2, 32, {"train_size": 66, "image_size": 3}),  # matrices that begin anywhere
        ("mlp:16", 0.4, 31, {"train_size": 130, "image_size": 3}),  # batches that do
        ("mlp:24", 0.4, 48, {"train_size": 130, "image_size": 5}),
    ],
)
def test_whole_episodes_are_the_same_to_the_bit(model, lr, batch_size, task, threads):
    """Many batches at rates that amplify a difference of 1e-7 to one of the weights' own size."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        train, val = load("digits", **task)
        recipes = [Recipe(model, batch_size, rate) for rate in (lr, lr / 2, lr)]
        students = [Trainer(train, val, recipe, 12.0, seed) for seed, recipe in enumerate(recipes)]
        rng = np.random.default_rng(0)
        compare(students, 40, rng)
        assert task or max(s.ledger.share for s in students) > 0.95  # small ones may select nothing, and end
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
def test_products_are_those_of_single_pairs_to_the_bit(threads):
    """Also of forms whose batched products round otherwise, of which there are some on most machines."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    try:
        forms = itertools.product((1, 2, 3, 9), (1, 2, 7, 31, 32), (3, 9, 10, 64), (1, 5, 10, 16, 64))
        for count, n, m, p in forms:
            for _ in range(4):
                a, b, c = (torch.randn(count, *shape, generator=generator) for shape in ((n, m), (p, m), (n, p)))
                bias = torch.randn(count, p, generator=generator)
                own = [[x.clone() for x in one] for one in zip(a, b, c, bias, strict=True)]  # where tensors begin
                forward = together.product(a, b.transpose(1, 2), bias)
                assert torch.equal(forward, torch.stack([nn.functional.linear(x, y, z) for x, y, _, z in own]))
                assert torch.equal(together.product(c, b), torch.stack([z @ y for _, y, z, _ in own]))
                back = together.product(c.transpose(1, 2), a)
                assert torch.equal(back, torch.stack([z.t() @ x for x, _, z, _ in own]))
    finally:
        torch.set_num_threads(before)


def test_padding_is_charged_to_nobody():
    """By hand: three students of 24, 9 and 24 samples that train on 20, 1 and none, with a batch of 8."""
    students = [student(train=toy(n), seed=i) for i, n in enumerate((24, 9, 24))]
    chosen = [
        s.select(select(np.arange(s.ledger.n) < k, score=np.arange(s.ledger.n) < 3))
        for s, k in zip(students, (20, 1, 0), strict=True)
    ]
    results = run_epochs(students, chosen)
    assert [(s.ledger.train, s.ledger.score, s.ledger.evaluate) for s in students] == [
        (20, 3, 24),  # 12 at the start and 12 after the epoch
        (1, 3, 24),
        (0, 3, 24),
    ]
    assert [r.spent for r in results] == pytest.approx([(60 + 3) / 72, 6 / 27, 3 / 72])
    assert [s.batches for s in students] == [3, 0, 0]
    for s, k in zip(students, (20, 1, 0), strict=True):
        np.testing.assert_array_equal(s.stats.observe(1.0)["visits"], np.arange(s.ledger.n) < k)


def test_one_that_diverges_leaves_the_others_alone():
    def some() -> list[Trainer]:
        return [student(seed=k, lr=lr, budget=9.0) for k, lr in enumerate((0.1, 1e30, 0.05))]

    students, alone = some(), some()
    everything = select(np.ones(24), score=np.ones(24))
    finished = []
    for _ in range(2):
        results = run_epochs(students, [s.select(everything) for s in students])
        finished.append([(r.diverged, r.finished) for r in results])
        for k in (0, 2):
            alone[k].run_epoch(alone[k].select(everything))
            assert_same(students[k], alone[k])
    assert finished == [[(False, False), (True, True), (False, False)]] * 2
    assert not all(torch.isfinite(p).all() for p in students[1].model.parameters())


def test_the_order_of_the_students_changes_nothing():
    def some() -> list[Trainer]:
        return [student(train=toy(n), seed=n, lr=lr) for n, lr in ((24, 0.1), (9, 0.2), (17, 0.05), (24, 0.02))]

    forth, back = some(), some()[::-1]
    for step in range(3):
        chosen = [random_selection(s, np.random.default_rng([step, s.seed])) for s in forth]
        one, other = run_epochs(forth, chosen), run_epochs(back, chosen[::-1])
        assert_same_results(one, other[::-1])
    for a, b in zip(forth, back[::-1], strict=True):
        assert_same(a, b)


def test_twice_is_the_same_bit_for_bit_and_the_global_generator_is_left_alone():
    def run() -> list[torch.Tensor]:
        students = [student(train=toy(n, 3, 3, 8, True), seed=n) for n in (24, 9)]
        rng = np.random.default_rng(0)
        for _ in range(3):
            run_epochs(students, [random_selection(s, rng) for s in students])
        return [t.detach().clone() for s in students for t in (*s.model.parameters(), s.stats.table)]

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = run()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_a_state_goes_on_alone_where_it_was_trained_together():
    together_, alone = ([student(seed=k) for k in range(2)] for _ in range(2))
    everything = select(np.ones(24), 0.1)
    run_epochs(together_, [s.select(everything) for s in together_])
    for s, other in zip(together_, alone, strict=True):
        other.load_state_dict(s.state_dict())
        for p in s.model.parameters():  # live tensors of its own, not views into what was shared
            assert p.untyped_storage().nbytes() == p.numel() * 4
            assert s.optimizer.state[p]["momentum_buffer"].untyped_storage().nbytes() == p.numel() * 4
    results = run_epochs(together_, [s.select(everything) for s in together_])
    assert_same_results(results, [s.run_epoch(s.select(everything)) for s in alone])
    for a, b in zip(together_, alone, strict=True):
        assert_same(a, b)


def test_seconds_are_shared_out():
    students = [student(seed=k) for k in range(2)]
    run_epochs(students, [s.select(select(np.ones(24), score=np.ones(24))) for s in students])
    assert students[0].ledger.seconds == students[1].ledger.seconds
    assert all(passed > 0.0 for passed in students[0].ledger.seconds.values())
