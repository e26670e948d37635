"""Training against loops written out in plain PyTorch; the budget and the schedule against counting."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch

from prune_env import data
from prune_env.selection import select
from prune_env.students import models
from prune_env.students.recipes import Recipe, tuned
from prune_env.trainer import Trainer
from tests.helpers import reference
from tests.helpers.reference import PlainSGD, normalized, plain_epoch, schedule, toy
from tests.helpers.runs import Watched, rows, run, same, trainer


def assert_weights(student: Trainer, model: torch.nn.Module, tolerance: float = 1e-6) -> None:
    expected = model.state_dict()
    for name, values in student.model.state_dict().items():
        torch.testing.assert_close(values, expected[name], atol=tolerance, rtol=tolerance)


# ---------------------------------------------------------------- one epoch


@pytest.mark.parametrize(("keep", "sizes"), [(13, [5, 5, 3]), (11, [5, 5, 1]), (1, [1])])
@pytest.mark.parametrize("model", ["mlp:5", "convnet:3-4-5"])
def test_epochs_agree_with_loops_over_samples(model, keep, sizes):
    """Weights, mixup, smoothing, momentum, decay; the last batch has 3 rows, or 1, and its sum is divided by 5 too."""
    if model.startswith("convnet") and sizes == [5, 5, 1]:
        sizes = [5, 6]  # batch norm makes nothing of one row
    train = toy(24, channels=3, size=16)
    student = trainer(train, model=model, batch_size=5, weight_decay=0.01, label_smoothing=0.3, seed=1)
    network = copy.deepcopy(student.model).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain mean over the batches, of which there are fewer than 10
    sgd = PlainSGD(network.parameters(), 0.9, 0.01)
    images, labels = normalized(train), train.labels
    rng, done = np.random.default_rng(0), 0
    for mixup in (0.0, 0.35):
        weight = rng.uniform(0.2, 3, 24) * (rng.permutation(24) < keep)
        shares = np.where(rng.random(24) < 0.7, mixup, 0.0)
        selection = student.select(select(weight, shares))
        assert student.train_epoch(selection).mixed == np.count_nonzero(shares[weight > 0])
        rates = [schedule((done + sum(sizes[:i]) + size / 2) / 72, 0.1, 0.1) for i, size in enumerate(sizes)]
        plain_epoch(network, sgd, images, labels, rows(selection), sizes, 5, rates, smoothing=0.3)
        done += keep
    # processors round products of convolutions unlike, and a maximum that flips moves a weight by some 1e-4
    assert_weights(student, network, 1e-3 if model.startswith("convnet") else 1e-5)


def test_how_much_is_held_in_memory_changes_nothing(monkeypatch):
    """Images of one batch or of all are fetched at a time; statistics are entered after each batch or once."""
    found = []
    for limit in (1, 2**24):
        monkeypatch.setattr("prune_env.trainer.FETCHED_PIXELS", limit)
        monkeypatch.setattr("prune_env.trainer.PENDING_LOGITS", limit)
        student = trainer(toy(24, channels=3, size=16, augment=True), model="convnet:3-4-5", batch_size=5)
        results = [run(student, np.arange(24) < 22, 0.3), run(student, np.arange(24) >= 3)]
        found.append((results, student.observe(), student.model.state_dict()))
    assert same(*found)


def test_each_visit_is_augmented_by_its_own_draw_and_blended_with_its_partner():
    train = toy(12, channels=3, size=16, augment=True)
    student = trainer(train, batch_size=5, model="mlp:2", budget=4.0, seed=3)
    seed = int(np.random.SeedSequence([3, 2]).generate_state(1)[0])  # the stream of augmentation
    watched = Watched(student)
    images, visits = normalized(train).numpy(), np.zeros(12, int)
    for mask, mixup in [(np.arange(12) < 9, 0.0), (np.arange(12) > 2, 0.25), (np.arange(12) < 9, 0.0)]:
        watched.clear()
        selection = student.select(select(mask, mixup))
        student.train_epoch(selection)
        for image, (i, _, j, m) in zip(watched.images("trained"), rows(selection), strict=True):
            mine, other = (reference.crop_flip(images[k], seed, k, int(visits[k])) for k in (i, j))
            np.testing.assert_allclose(image, (1 - m) * mine + m * other, atol=1e-5)
        visits[mask] += 1
    np.testing.assert_array_equal(student.observe()["visits"], visits)


@pytest.mark.parametrize("model", ["convnet:3-4-5", "resnet9:2-3-4-5"])
def test_a_single_row_can_be_trained_on(model):
    """Its image is a single pixel in the last layers, where a batch of one has no variance."""
    student = trainer(toy(24, channels=3, size=8), model=model, lr=1e-3)
    before = copy.deepcopy(dict(student.model.named_parameters()))
    assert not run(student, np.arange(24) < 17).diverged
    assert not run(student, np.arange(24) == 3).diverged
    assert student.observe()["visits"].tolist() == [1, 1, 1, 2] + [1] * 13 + [0] * 7
    assert any(not torch.equal(p, before[name]) for name, p in student.model.named_parameters())


def test_batch_norm_averages_the_first_batches_evenly_and_forgets_later():
    student = trainer(toy(24, channels=3, size=16), model="convnet:3-4-5", budget=6.0)
    first = next(module for module in student.model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    means: list[np.ndarray] = []

    def note(module: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        if module.training:
            means.append(args[0].detach().double().mean((0, 2, 3)).numpy())

    first.register_forward_pre_hook(note)
    for keep in (1, 24, 9, 24, 16, 24, 3):  # a single row has no statistics; nine make one batch, not eight and one
        run(student, np.arange(24) < keep)
        if means:
            running = np.mean(means[:10], axis=0)
            for mean in means[10:]:
                running = 0.9 * running + 0.1 * mean
            np.testing.assert_allclose(first.get_buffer("running_mean"), running, rtol=1e-4, atol=1e-5)
    assert len(means) == 0 + 3 + 1 + 3 + 2 + 3 + 1


# ---------------------------------------------------------------- accuracy


def test_evaluation_agrees_with_predictions_one_by_one():
    """Of more than one batch, of images that are not augmented; the statistics of what is scored, too."""
    train, val = (toy(n, 3, 3, 16, augment=True, seed=n) for n in (600, 700))
    student = trainer(train, val, lr=0.3, batch_size=100)
    run(student, np.ones(600, bool))
    result = run(student, np.ones(600, bool), score=np.ones(600, bool))
    pixels = train.images.double()
    mean, std = pixels.mean((0, 2, 3), keepdim=True), pixels.std((0, 2, 3), keepdim=True, correction=0)
    network = copy.deepcopy(student.model).eval()
    with torch.no_grad():
        logits, scored = (network(((split.images - mean) / std).float()) for split in (val, train))
    right = logits.argmax(1) == val.labels
    evaluation = student.evaluate(val)
    assert evaluation.accuracy == result.val_accuracy == int(right.sum()) / 700
    losses = [float(reference.smoothed_loss(z, int(y), 0.0)) for z, y in zip(logits, val.labels, strict=True)]
    assert evaluation.loss == pytest.approx(np.mean(losses), rel=1e-4)
    assert evaluation.class_accuracy == pytest.approx([float(right[val.labels == c].float().mean()) for c in range(3)])
    confidence = scored.softmax(1)[torch.arange(600), train.labels]
    np.testing.assert_allclose(student.observe()["confidence"], confidence, rtol=1e-4, atol=1e-5)


def test_a_class_without_validation_samples_has_no_accuracy():
    val = toy(6, classes=2)
    three = data.Data(val.images, val.labels, ("a", "b", "c"), val.source, val.wrong, augment=False)
    accuracies = trainer(toy(classes=3), three).evaluate(three).class_accuracy
    assert [math.isnan(x) for x in accuracies] == [False, False, True]


# ---------------------------------------------------------------- a whole run


@pytest.mark.parametrize(("optimizer", "lr", "tolerance"), [("sgd", 0.2, 1e-6), ("adamw", 0.02, 1e-5)])
def test_a_run_on_digits_agrees_with_a_plain_loop(optimizer, lr, tolerance):
    train, val = data.load("digits", train_size=200)
    chosen = {**tuned("digits", "mlp", 4.0, optimizer=optimizer).values, "optimizer": optimizer, "lr": lr}
    student = Trainer(train, val, Recipe(**chosen, precision="float32"), 4.0, seed=11)
    weights_seed = int(np.random.SeedSequence([11, 0]).generate_state(1)[0])
    network, decay, size = models.build("mlp", 1, 8, 10, weights_seed), chosen["weight_decay"], chosen["batch_size"]
    if chosen["optimizer"] == "sgd":
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0, momentum=0.9, nesterov=True, weight_decay=decay)
    else:
        optimizer = torch.optim.AdamW(network.parameters(), lr=1.0, weight_decay=decay)
    images, labels = normalized(train), train.labels
    val_images = ((val.images - train.images.double().mean()) / train.images.double().std(correction=0)).float()
    rng, done, finished = np.random.default_rng(0), 0, False
    while not finished:
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
        assert_weights(student, network, tolerance)
        assert result.val_accuracy == float((network(val_images).argmax(1) == val.labels).double().mean())
        finished = result.finished
    assert done > 700
    assert student.val_accuracy > 0.8  # it learned


def test_every_step_and_every_seed_has_its_own_order_and_partners():
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


# ---------------------------------------------------------------- schedule and budget; with scoring in test_score


def test_a_cut_step_takes_the_first_of_its_random_order():
    """It trains on what just fits, counts the mixed rows of these only, and scores with the rest."""
    student = trainer(budget=1.5 + 5 / 72, batch_size=4)  # 36 samples and 5 thirds
    run(student, np.ones(24, bool))
    mixes = np.arange(24) % 2 == 0
    selection = student.select(select(np.arange(24) < 20, 0.25 * mixes, np.ones(24, bool)))
    watched = Watched(student, scored=2)
    result = student.train_epoch(selection)
    trained, scored = selection.indices[:13], selection.scored[:2]
    assert (result.trained, result.scored, result.cut, result.finished) == (13, 2, True, True)
    assert student.ledger.used == 3 * 37 + 2 == student.ledger.total
    assert np.flatnonzero(student.observe()["visits"] == 2).tolist() == sorted(trained)
    assert 0 < result.mixed == np.count_nonzero(mixes[trained]) < 13
    np.testing.assert_allclose(watched.images("scored"), normalized(student.train_data)[scored], atol=1e-5)


def test_dropping_everything_ends_the_run_and_changes_nothing():
    student = trainer()
    for _ in range(2):  # at once, and later
        seen, weights = student.observe(), copy.deepcopy(student.model.state_dict())
        result = run(student, np.zeros(24, bool), 0.5)
        assert (result.trained, result.spent, result.gained, result.mixed) == (0, 0.0, 0.0, 0)
        assert (result.finished, result.diverged, result.cut) == (True, False, False)
        assert same(student.observe(), seen)
        assert same(student.model.state_dict(), weights)
        run(student, np.ones(24, bool))


def test_the_budget_must_allow_one_batch_which_is_never_larger_than_the_data():
    with pytest.raises(ValueError, match=r"budget is 0\.32.*8"):
        trainer(budget=0.32)
    assert trainer(budget=8 / 24).ledger.affordable == 8
    student = trainer(batch_size=1000, budget=1.0)
    assert student.batch_size == 24
    assert run(student, np.ones(24, bool)).finished
