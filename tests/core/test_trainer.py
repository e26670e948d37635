"""Training against loops written out in plain PyTorch; the budget against counting."""

import copy
import io
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prune_env import data
from prune_env.selection import Selection, select
from prune_env.students import models
from prune_env.students.recipes import Recipe, tuned
from prune_env.trainer import EpochResult, Trainer
from tests.helpers import reference
from tests.helpers.reference import PlainSGD, SlowStats, normalized, plain_epoch, schedule, toy


def recipe(model: str = "mlp:5", batch_size: int = 8, lr: float = 0.1, **kwargs) -> Recipe:
    return Recipe(model, batch_size, lr, **{"precision": "float32", "weight_decay": 0.0, **kwargs})


def trainer(train=None, budget: float = 3.0, seed: int = 0, **kwargs) -> Trainer:
    train = train or toy()
    _, channels, size, _ = train.images.shape
    val = toy(12, len(train.classes), channels, size, seed=1)
    return Trainer(train, val, recipe(**kwargs), budget, seed)


def run(student: Trainer, *args, **kwargs) -> EpochResult:
    return student.train_epoch(student.select(select(*args, **kwargs)))


def rates_of(student: Trainer) -> list[float]:
    """Grows by the learning rate of every batch."""
    rates: list[float] = []

    step = student.optimizer.step

    def noted() -> None:
        rates.append(student.optimizer.param_groups[0]["lr"])
        step()

    student.optimizer.step = noted
    return rates


def rows(selection: Selection) -> list[tuple[int, float, int, float]]:
    columns = (selection.indices, selection.weights, selection.partners, selection.shares)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def assert_weights(student: Trainer, model: torch.nn.Module, tolerance: float = 1e-6) -> None:
    expected = model.state_dict()
    for name, values in student.model.state_dict().items():
        torch.testing.assert_close(values, expected[name], atol=tolerance, rtol=tolerance)


# ---------------------------------------------------------------- one update


def test_weight_2_is_the_gradient_counted_twice():
    student = trainer(toy(8), momentum=0.0, warmup=0.0)
    model = copy.deepcopy(student.model)
    selection = student.select(select([1, 2, 1, 1, 0.5, 1, 0, 1]))
    rates = rates_of(student)
    student.train_epoch(selection)
    images, labels = normalized(student.train_data), student.train_data.labels
    # sample 1 stands twice in the sum and sample 4 once in two copies of the rest
    twice = [0, 1, 1, 2, 3, 5, 7] * 2 + [4]
    loss = -model(images[twice]).log_softmax(1)[range(len(twice)), labels[twice]].sum() / 2 / 8
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for p, g in zip(model.parameters(), gradients, strict=True):
            assert g.abs().max() > 1e-4
            p -= rates[0] * g
    assert_weights(student, model)


@pytest.mark.parametrize(("keep", "sizes"), [(13, [5, 5, 3]), (11, [5, 5, 1]), (1, [1])])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("mixup", [0.0, 0.35])
@pytest.mark.parametrize("model", ["mlp:5", "convnet:3-4-5"])
def test_epochs_agree_with_loops_over_samples(model, mixup, smoothing, keep, sizes):
    # batches of 5: the last has 3 rows, or 1, and its sum is still divided by 5
    if model.startswith("convnet") and sizes == [5, 5, 1]:
        sizes = [5, 6]  # batch norm makes nothing of one row
    train = toy(24, channels=3, size=16)
    settings_ = {"momentum": 0.9, "weight_decay": 0.01, "label_smoothing": smoothing}
    student = Trainer(train, train, recipe(model, 5, **settings_), 3.0, 1)
    network = models.build(model, 3, 16, 3, student._seed(0)).train()
    for a, b in zip(network.parameters(), student.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain mean over the batches, of which there are fewer than 10
    sgd = PlainSGD(network.parameters(), 0.9, 0.01)
    images, labels = normalized(train), train.labels
    done = 0
    rng = np.random.default_rng(0)
    for _ in range(2):
        weight = rng.uniform(0.2, 3, 24) * (rng.permutation(24) < keep)
        shares = np.where(rng.random(24) < 0.7, mixup, 0.0)
        selection = student.select(select(weight, shares))
        assert student.train_epoch(selection).mixed == np.count_nonzero(shares[weight > 0])
        rates = [schedule((done + sum(sizes[:i]) + size / 2) / 72, 0.1, 0.1) for i, size in enumerate(sizes)]
        plain_epoch(network, sgd, images, labels, rows(selection), sizes, 5, rates, smoothing)
        done += keep
    assert_weights(student, network, 1e-5)


def test_how_many_batches_are_fetched_at_a_time_changes_nothing(monkeypatch):
    pixels = 5 * 3 * 16 * 16  # of a batch
    weights, shapes = [], []
    for fetched in (1, 2 * pixels, 100 * pixels):  # one batch, two, all five
        monkeypatch.setattr("prune_env.trainer.FETCHED_PIXELS", fetched)
        train = toy(24, channels=3, size=16, augment=True)
        student = Trainer(train, train, recipe("convnet:3-4-5", 5), 3.0, 1)
        seen: list[int] = []

        def note(module: torch.nn.Module, args: tuple[torch.Tensor], seen: list[int] = seen) -> None:
            if module.training:
                seen.append(len(args[0]))

        student.model.register_forward_pre_hook(note)
        run(student, np.arange(24) < 22, 0.3)
        run(student, np.arange(24) >= 3)
        weights.append(torch.cat([p.detach().flatten() for p in student.model.parameters()]))
        shapes.append(seen)
    assert shapes == [[5, 5, 5, 5, 2, 5, 5, 5, 6]] * 3
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def test_mixed_images_go_through_the_network_as_the_formula_says():
    train = toy(10)
    student = trainer(train, batch_size=4, budget=2.0)
    seen: list[torch.Tensor] = []
    student.model.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].clone()) if module.training else None
    )
    selection = student.select(select(np.arange(10) < 6, np.linspace(0, 0.5, 10)))
    student.train_epoch(selection)
    images = normalized(train).double()
    for row, (i, _, j, m) in zip(torch.cat(seen), rows(selection), strict=True):
        assert (j >= 6) == (i > 0)
        torch.testing.assert_close(row.double(), (1 - m) * images[i] + m * images[j], atol=1e-5, rtol=1e-5)


def test_each_visit_is_augmented_by_its_own_draw():
    train = toy(12, channels=3, size=16, augment=True)
    student = trainer(train, batch_size=5, model="mlp:2", budget=4.0)
    seen: list[torch.Tensor] = []
    student.model.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].clone()) if module.training else None
    )
    images, visits, seed = normalized(train).numpy(), np.zeros(12, int), student._seed(2)
    for mask, mixup in [(np.arange(12) < 9, 0.0), (np.arange(12) > 2, 0.25), (np.arange(12) < 9, 0.0)]:
        seen.clear()
        selection = student.select(select(mask, mixup))
        student.train_epoch(selection)
        for image, (i, _, j, m) in zip(torch.cat(seen), rows(selection), strict=True):
            mine, other = (reference.crop_flip(images[k], seed, k, int(visits[k])) for k in (i, j))
            np.testing.assert_allclose(image.numpy(), (1 - m) * mine + m * other, atol=1e-5)
        visits[mask] += 1
    np.testing.assert_array_equal(student.observe()["visits"], visits)


def test_validation_images_are_not_augmented():
    val = toy(12, channels=3, size=16, augment=True, seed=1)
    student = Trainer(toy(12, channels=3, size=16, augment=True), val, recipe("mlp:2"), 2.0, 0)
    seen: list[torch.Tensor] = []
    student.model.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    student.evaluate(val)
    train = normalized(student.train_data)
    pixels = student.train_data.images.double()
    mean, std = pixels.mean((0, 2, 3), keepdim=True), pixels.std((0, 2, 3), keepdim=True, correction=0)
    torch.testing.assert_close(torch.cat(seen), ((val.images - mean) / std).float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(train.mean(), torch.zeros(()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("model", ["convnet:3-4-5", "resnet9:2-3-4-5", "torchvision:mobilenet_v3_small"])
def test_a_single_row_can_be_trained_on(model):
    # its image is a single pixel in the last layers, where a batch of one has no variance
    size = 32 if model.startswith("torchvision") else 8
    student = trainer(toy(24, channels=3, size=size), model=model, budget=3.0, lr=1e-3)
    before = copy.deepcopy(dict(student.model.named_parameters()))
    assert not run(student, np.arange(24) < 17).diverged
    assert not run(student, np.arange(24) == 3).diverged
    assert student.observe()["visits"].tolist() == [1, 1, 1, 2] + [1] * 13 + [0] * 7
    assert any(not torch.equal(p, before[name]) for name, p in student.model.named_parameters())


def test_batch_norm_averages_the_first_batches_evenly_and_forgets_later():
    student = trainer(toy(24, channels=3, size=16), model="convnet:3-4-5", budget=6.0)
    first = next(module for module in student.model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    means: list[np.ndarray] = []
    first.register_forward_pre_hook(
        lambda module, args: (
            means.append(args[0].detach().double().mean((0, 2, 3)).numpy()) if module.training else None
        )
    )
    for keep in (1, 24, 9, 24, 16, 24, 3):  # a single row has no statistics; nine make one batch, not eight and one
        run(student, np.arange(24) < keep)
        if not means:
            continue
        running = np.mean(means[:10], axis=0)
        for mean in means[10:]:
            running = 0.9 * running + 0.1 * mean
        np.testing.assert_allclose(first.get_buffer("running_mean"), running, rtol=1e-4, atol=1e-5)
    assert len(means) == 0 + 3 + 1 + 3 + 2 + 3 + 1


# ---------------------------------------------------------------- statistics of the pass


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_statistics_are_those_of_the_training_logits(smoothing):
    student = trainer(batch_size=5, budget=6.0, lr=0.5, label_smoothing=smoothing)
    labels = student.train_data.labels.numpy()
    slow = SlowStats(24, 3, student.recipe.ema)
    logits: list[torch.Tensor] = []
    student.model.register_forward_hook(
        lambda module, args, out: logits.append(out.detach().clone()) if module.training else None
    )
    rng = np.random.default_rng(0)
    spent = 0.0
    for _ in range(6):
        logits.clear()
        selection = student.select(select(rng.random(24) < 0.6, np.where(rng.random(24) < 0.3, 0.4, 0)))
        result = student.train_epoch(selection)
        spent += len(selection) / 24
        counts = np.sum(
            [
                slow.visit(i, z.numpy(), labels[i], m == 0, spent)
                for z, (i, _, _, m) in zip(torch.cat(logits), rows(selection), strict=True)
            ],
            axis=0,
        )
        assert result.train_accuracy == pytest.approx(counts[2] / counts[1])
        seen = student.observe()
        for name, values in slow.observe(spent).items():
            np.testing.assert_allclose(seen[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_statistics_do_not_depend_on_how_often_they_are_entered(monkeypatch):
    observed = []
    for pending in (2**24, 1, 30):
        monkeypatch.setattr("prune_env.trainer.PENDING_LOGITS", pending)
        student = trainer(batch_size=5, budget=3.0)
        for keep in (20, 24):
            run(student, np.arange(24) < keep, 0.25)
            run(student, np.arange(24) >= 24 - keep // 4)
        observed.append(student.observe())
    for other in observed[1:]:
        for name, values in observed[0].items():
            np.testing.assert_array_equal(values, other[name], err_msg=name)


def test_training_accuracy_stays_where_nothing_was_measured():
    student = trainer(budget=4.0)
    before = run(student, np.ones(24, bool)).train_accuracy
    assert 0 < before <= 1
    result = run(student, np.ones(24, bool), 0.5)
    assert (result.mixed, result.train_accuracy) == (24, before)


def test_evaluation_agrees_with_predictions_one_by_one():
    val = toy(700, classes=3, seed=1)  # more than one batch of evaluation
    student = Trainer(toy(), val, recipe(lr=0.3), 4.0, 0)
    run(student, np.ones(24, bool))
    result = run(student, np.ones(24, bool))
    pixels = student.train_data.images.double()
    images = ((val.images - pixels.mean()) / pixels.std(correction=0)).float()
    student.model.eval()
    with torch.no_grad():
        logits = student.model(images)
    right = logits.argmax(1) == val.labels
    evaluation = student.evaluate(val)
    assert evaluation.accuracy == result.val_accuracy == pytest.approx(int(right.sum()) / 700)
    losses = [float(reference.smoothed_loss(z, int(y), 0.0)) for z, y in zip(logits, val.labels, strict=True)]
    assert evaluation.loss == pytest.approx(np.mean(losses), rel=1e-4)
    for c, accuracy in enumerate(evaluation.class_accuracy):
        assert accuracy == pytest.approx(float(right[val.labels == c].float().mean()))


def test_a_class_without_validation_samples_has_no_accuracy():
    val = toy(6, classes=2)
    three = data.Data(val.images, val.labels, ("a", "b", "c"), val.source, val.wrong, augment=False)
    accuracies = Trainer(toy(classes=3), three, recipe(), 2.0, 0).evaluate(three).class_accuracy
    assert [math.isnan(x) for x in accuracies] == [False, False, True]


# ---------------------------------------------------------------- a whole run


def test_a_run_on_digits_agrees_with_a_plain_loop():
    train, val = data.load("digits", train_size=200)
    chosen = tuned("digits", "mlp", 4.0).values
    student = Trainer(train, val, Recipe(**chosen, precision="float32"), 4.0, seed=11)
    network = models.build("mlp", 1, 8, 10, student._seed(0))
    optimizer = torch.optim.SGD(
        network.parameters(), lr=1.0, momentum=0.9, nesterov=True, weight_decay=chosen["weight_decay"]
    )
    images, labels, size = normalized(train), train.labels, chosen["batch_size"]
    rng = np.random.default_rng(0)
    done = 0
    while True:
        selection = student.select(select(rng.random(200) < 0.8))
        result = student.train_epoch(selection)
        order = selection.indices[: result.trained]
        end = 800 if 800 - done - len(order) >= size else done + len(order)
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            optimizer.param_groups[0]["lr"] = schedule((done + start + len(batch) / 2) / end, chosen["lr"], warmup=0.1)
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(network(images[batch]), labels[batch], reduction="sum") / size
            loss.backward()
            optimizer.step()
        done += len(order)
        assert_weights(student, network)
        val_images = ((val.images - train.images.double().mean()) / train.images.double().std(correction=0)).float()
        accuracy = (network(val_images).argmax(1) == val.labels).double().mean()
        assert result.val_accuracy == pytest.approx(float(accuracy))
        if result.finished:
            break
    assert done > 700
    assert result.val_accuracy > 0.8  # it learned


def test_every_step_and_every_seed_has_an_order_and_partners_of_its_own():
    action = select(np.arange(24) < 12, 0.5)
    drawn = []
    for seed in (0, 1):
        student = trainer(seed=seed, budget=5.0)
        for _ in range(3):
            selection = student.select(action)
            assert rows(student.select(action)) == rows(selection)  # asking draws nothing
            drawn.append(selection)
            student.train_epoch(selection)
    for a, b in itertools.combinations(drawn, 2):
        assert a.indices.tolist() != b.indices.tolist()
        assert a.partners[np.argsort(a.indices)].tolist() != b.partners[np.argsort(b.indices)].tolist()


# ---------------------------------------------------------------- schedule and budget


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.4])
def test_the_rate_of_every_batch_is_that_of_its_middle(warmup):
    student = trainer(budget=4.0, warmup=warmup, batch_size=10)
    rates = rates_of(student)
    middles, done = [], 0
    for keep in (24, 11, 3, 24, 24):  # 86 of 96: a batch of 10 still fits, then all is spent
        run(student, np.arange(24) < keep)
        sizes = [10] * (keep // 10) + [keep % 10] * (keep % 10 > 0)
        middles += [done + sum(sizes[:b]) + sizes[b] / 2 for b in range(len(sizes))]
        done += keep
    assert run(student, np.ones(24, bool)).lr == 0.0
    expected = [schedule(x / 96, 0.1, warmup) for x in [*middles, 91]]
    assert rates == pytest.approx(expected, rel=1e-6)


def test_the_rate_ends_at_zero_though_a_part_of_a_batch_is_left():
    student = trainer(budget=2.0, batch_size=10, warmup=0.0)
    rates = rates_of(student)
    run(student, np.ones(24, bool))
    result = run(student, np.arange(24) < 17)  # 41 of 48: the 7 left are no batch
    assert (result.finished, result.cut, result.lr, student.ledger.affordable) == (True, False, 0.0, 7)
    expected = [schedule(x / 48, 0.1, 0) for x in (5, 15, 22)] + [schedule(x / 41, 0.1, 0) for x in (29, 37.5)]
    assert rates == pytest.approx(expected, rel=1e-6)


@given(
    n=st.integers(2, 40),
    batch_size=st.integers(1, 50),
    budget=st.integers(10, 35),
    warmup=st.sampled_from([0.0, 0.1, 0.6]),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
)
@settings(max_examples=50, deadline=None)
def test_whatever_is_selected_the_budget_holds_and_the_rate_ends_at_zero(n, batch_size, budget, warmup, sizes):
    student = Trainer(
        toy(n, 2), toy(4, 2), recipe("mlp:2", batch_size, warmup=warmup, lr=0.01), budget=budget / 10, seed=n
    )
    rates = rates_of(student)
    through: list[int] = []
    student.model.register_forward_pre_hook(
        lambda module, args: through.append(len(args[0])) if module.training else None
    )
    total, batch = n * budget // 10, min(batch_size, n)
    done = 0
    cycle = itertools.cycle(sizes)
    while True:
        k = min(next(cycle), n)
        through.clear()
        result = run(student, np.random.default_rng(done).permutation(n) < k)
        fits = min(k, total - done)
        done += fits
        assert result.trained == sum(through) == fits
        assert set(through[:-1]) <= {batch}
        assert result.cut == (fits < k)
        assert result.spent == pytest.approx(fits / n)
        assert student.ledger.spent == pytest.approx(done / n)
        assert result.finished == (total - done < batch)
        if result.finished:
            break
        assert result.lr > 0
    assert done <= total
    assert result.lr == 0.0
    assert student.observe()["visits"].sum() == done
    # the first phase rises, the second falls, and nothing is negative
    assert all(0 < rate <= 0.01 * (1 + 1e-9) for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_a_cut_step_trains_on_a_uniformly_random_part_that_just_fits():
    runs, kept = 400, 12
    counts = np.zeros(24)
    pairs = 0
    for seed in range(runs):
        student = trainer(toy(24, 3, size=3), budget=1.2, batch_size=4, seed=seed, model="mlp:1")
        run(student, np.ones(24, bool))
        result = run(student, np.arange(24) >= 24 - kept)  # 28 fit, 4 are left
        assert (result.trained, result.cut, result.finished) == (4, True, True)
        again = student.observe()["visits"] == 2
        assert again.sum() == 4
        counts += again
        pairs += bool(again[12] and again[13])
    assert not counts[:12].any()
    share = 4 / kept
    # inclusion counts of draws without replacement: variance share (1 - share) runs, correlation -1 / 11
    chi2 = ((counts[12:] - runs * share) ** 2).sum() / (runs * share * (1 - share)) * (kept - 1) / kept
    assert stats.chi2(kept - 1).sf(chi2) > 1e-4
    assert stats.binomtest(pairs, runs, share * 3 / 11).pvalue > 1e-4


@pytest.mark.parametrize("seed", range(3))
def test_a_cut_step_counts_the_mixed_rows_that_were_trained_only(seed):
    student = trainer(budget=1.5, batch_size=4, seed=seed)  # 36 samples
    run(student, np.ones(24, bool))
    mixes = np.arange(24) % 2 == 0
    result = run(student, np.ones(24, bool), np.where(mixes, 0.25, 0.0))
    again = student.observe()["visits"] == 2
    assert (result.trained, result.cut, int(again.sum())) == (12, True, 12)
    assert result.mixed == np.count_nonzero(again & mixes)
    assert 0 < result.mixed < 12


def test_dropping_everything_ends_the_run_and_changes_nothing():
    student = trainer()
    run(student, np.ones(24, bool))
    before = {name: values.copy() for name, values in student.observe().items()}
    weights = copy.deepcopy(student.model.state_dict())
    rates = rates_of(student)
    result = run(student, np.zeros(24, bool), 0.5)
    assert (result.trained, result.spent, result.gained, result.mixed) == (0, 0.0, 0.0, 0)
    assert (result.finished, result.diverged, result.cut) == (True, False, False)
    assert rates == []
    for name, values in student.observe().items():
        np.testing.assert_array_equal(values, before[name])
    for name, values in student.model.state_dict().items():
        assert torch.equal(values, weights[name])


def test_dropping_everything_at_once_is_allowed():
    result = run(trainer(), np.zeros(24, bool))
    assert (result.finished, result.diverged, result.train_accuracy) == (True, False, 0.0)


@pytest.mark.parametrize(("budget", "fine"), [(0.32, False), (8 / 24, True), (0.35, True)])
def test_the_budget_must_allow_one_batch(budget, fine):
    if fine:
        assert trainer(budget=budget).ledger.affordable == 8
    else:
        with pytest.raises(ValueError, match=r"budget is 0\.32.*8"):
            trainer(budget=budget)


def test_a_batch_is_never_larger_than_the_data():
    student = trainer(batch_size=1000, budget=1.0)
    assert student.batch_size == 24
    assert run(student, np.ones(24, bool)).finished


# ---------------------------------------------------------------- divergence


@pytest.mark.parametrize("lr", [1e4, 1e30])
def test_divergence_ends_the_run_with_finite_figures(lr):
    student = trainer(lr=lr, budget=20.0, momentum=0.9)
    result = run(student, np.ones(24, bool))
    while not result.finished:
        result = run(student, np.ones(24, bool))
    assert result.diverged
    assert student.ledger.affordable > 0
    figures = [getattr(result, name) for name in ("train_accuracy", "val_accuracy", "val_loss", "gained", "lr")]
    assert all(map(math.isfinite, figures))
    for name, values in student.observe().items():
        assert np.isfinite(values).all(), name
    assert 0 <= result.val_loss <= 100


def test_one_training_row_that_is_not_finite_is_divergence():
    student = trainer(budget=3.0)

    def spoil(module, args, out):
        """The first row of each batch becomes NaN, and passes no gradient on."""
        first = torch.arange(len(out))[:, None] == 0
        return torch.where(first, math.nan, out) if module.training else None

    student.model.register_forward_hook(spoil)
    result = run(student, np.arange(24) < 6)
    assert (result.diverged, result.finished) == (True, True)
    assert math.isfinite(result.val_loss)
    assert all(torch.isfinite(p).all() for p in student.model.parameters())
    assert (student.observe()["loss"] != np.float32(math.log(3))).sum() == 5  # the other rows are measured


def test_rows_that_are_not_finite_count_as_wrong_and_as_divergence():
    student = trainer(budget=3.0)
    with torch.no_grad():
        student.model.get_parameter("3.bias")[0] = math.nan  # class 0 would win every argmax
    result = run(student, np.ones(24, bool))
    assert (result.diverged, result.val_accuracy, result.val_loss, result.train_accuracy) == (True, 0.0, 100.0, 0.0)
    assert student.evaluate(student.val_data).nonfinite == 12
    seen = student.observe()
    assert seen["visits"].tolist() == [1.0] * 24
    np.testing.assert_allclose(seen["loss"], math.log(3), rtol=1e-6)


# ---------------------------------------------------------------- saving


DROPOUT = "torchvision:mobilenet_v3_small"


@pytest.mark.parametrize(
    ("model", "channels", "size", "augment"),
    [("mlp", 1, 8, False), ("convnet:3-4-5", 3, 16, True), (DROPOUT, 3, 32, True)],
)
def test_a_saved_run_goes_on_bit_for_bit(model, channels, size, augment):
    train, val = toy(24, 3, channels, size, augment), toy(12, 3, channels, size, seed=1)

    def start() -> Trainer:
        return Trainer(train, val, recipe(model, 8, weight_decay=0.01), 4.0, 5)

    straight = start()
    masks = [np.arange(24) < 16, np.arange(24) >= 8, np.arange(24) % 3 > 0, np.ones(24, bool)]
    results = []
    file = io.BytesIO()
    for step, mask in enumerate(masks):
        if step == 2:
            torch.save(straight.state_dict(), file)
        results.append(run(straight, mask, 0.25 * (step % 2)))
    file.seek(0)
    resumed = start()
    run(resumed, np.ones(24, bool))  # whatever was there is replaced
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert [run(resumed, mask, 0.25 * (s % 2)) for s, mask in list(enumerate(masks))[2:]] == results[2:]
    for name, values in straight.model.state_dict().items():
        assert torch.equal(values, resumed.model.state_dict()[name]), name
    for name, values in straight.observe().items():
        np.testing.assert_array_equal(values, resumed.observe()[name], err_msg=name)
    for name in ("train", "score", "evaluate", "used", "budget", "n"):
        assert getattr(straight.ledger, name) == getattr(resumed.ledger, name), name
    assert (resumed.step, resumed.val_accuracy) == (straight.step, straight.val_accuracy)
    if straight.masks is not None and resumed.masks is not None:
        assert torch.equal(straight.masks.get_state(), resumed.masks.get_state())
    assert (straight.masks is not None) == (model == DROPOUT)


def test_one_state_starts_several_runs():
    mask = np.arange(24) < 16
    first = trainer(batch_size=8, budget=6.0)
    run(first, mask)
    state = copy.deepcopy(first.state_dict())
    outcomes = []
    for _ in range(2):
        resumed = trainer(batch_size=8, budget=6.0)
        resumed.load_state_dict(state)
        outcomes.append([run(resumed, mask) for _ in range(2)])
    assert outcomes[0] == outcomes[1]
    assert state["ledger"]["seconds"]["train"] == first.ledger.seconds["train"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"seed": 1}, "seed"),
        ({"budget": 2.0}, "budget"),
        ({"train": toy(30)}, "data"),
        ({"train": toy(24, seed=1)}, "data"),
        ({"model": "mlp:6"}, "model='mlp:6'.*mlp:5"),
        ({"model": "mlp:5-5"}, "model='mlp:5-5'.*mlp:5"),
        ({"batch_size": 4}, "batch_size=4.*8"),
        ({"lr": 0.2}, r"lr=0\.2.*0\.1"),
        ({"momentum": 0.5}, r"momentum=0\.5.*0\.9"),
        ({"weight_decay": 0.1}, "weight_decay"),
        ({"ema": 0.5}, "ema"),
    ],
)
def test_a_state_of_another_run_is_refused_and_changes_nothing(other, words):
    mask = np.arange(24) < 16
    disturbed, calm, stranger = trainer(), trainer(), trainer(**other)
    for each in (disturbed, calm):
        run(each, mask, 0.25)
    run(stranger, np.ones(len(stranger.train_data), bool))
    with pytest.raises(ValueError, match=words):
        disturbed.load_state_dict(stranger.state_dict())
    assert disturbed.ledger.used == calm.ledger.used == 16 * 3
    for name, values in disturbed.observe().items():
        np.testing.assert_array_equal(values, calm.observe()[name])
    assert [run(disturbed, ~mask), run(disturbed, mask)] == [run(calm, ~mask), run(calm, mask)]
    for name, values in disturbed.model.state_dict().items():
        assert torch.equal(values, calm.model.state_dict()[name]), name
