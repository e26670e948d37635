"""Frames read back pixel by pixel, against selections, images and accuracies planted by hand."""

import importlib.util

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import ImageDraw

from prune_env import render, select
from prune_env.data import Data
from tests.helpers.runs import digits

NONE, HALF, ALL = (68, 1, 84), (33, 145, 140), (253, 231, 37)  # viridis at 0, 0.5 and 1


def planted(n=100, channels=3, size=8) -> Data:
    """Sample i is one flat colour, (i, 2 i % 256, 255 - i) or the grey i."""
    value = torch.arange(n) % 256
    colours = torch.stack([value, 2 * value % 256, 255 - value], dim=1)[:, :channels]
    images = colours.to(torch.uint8)[:, :, None, None].expand(n, channels, size, size).contiguous()
    labels, rows = torch.arange(n) % 2, torch.arange(n)
    return Data(images, labels, ("cat", "a class of a very long name"), rows, torch.zeros(n, dtype=torch.bool), False)


def history_of(*steps) -> render.History:
    """Steps of (difficulty (n,), weight (n,), spent in all, accuracy after) from accuracy 0.1."""
    history = render.History()
    history.record(0.0, 0.1)
    for difficulty, weight, spent, accuracy in steps:
        history.choose(np.asarray(difficulty, np.float32), np.asarray(weight) > 0)
        history.record(spent, accuracy)
    assert all(len(row) == render.BINS for row in history.kept_by_rank)
    return history


def half_then_all() -> render.History:
    """Hardest half, half an epoch of compute; then everything, a whole one. Sample 99 is the easiest."""
    difficulty = np.arange(100)[::-1]
    return history_of((difficulty, np.arange(100) < 50, 0.5, 0.6), (difficulty, np.ones(100), 1.5, 0.8))


def strip_of(frame: np.ndarray) -> np.ndarray:
    left, top, right, bottom = render.STRIP
    return frame[top:bottom, left:right]


def image_at(frame: np.ndarray, kind: tuple[int, int], place: int) -> np.ndarray:
    x, y = kind[0] + place % 3 * render.PITCH[0], kind[1] + place // 3 * render.PITCH[1]
    return frame[y : y + render.THUMB, x : x + render.THUMB]


@pytest.fixture
def words_of(monkeypatch):
    """What is written into a frame: a function of a history and a budget."""
    words: list[str] = []
    original = ImageDraw.ImageDraw.text

    def text(self, xy, text, *args, **kwargs):
        words.append(text)
        return original(self, xy, text, *args, **kwargs)

    def of(history: render.History, budget: float = 2.0) -> list[str]:
        words.clear()
        render.frame(history, planted(), budget)
        return list(words)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return of


# ---------------------------------------------------------------- shares kept


@pytest.mark.parametrize(
    ("difficulty", "kept", "expected"),
    [
        (np.arange(200), np.arange(200) % 4 == 0, np.full(50, 0.25)),  # four samples to a bin
        (np.arange(75), np.arange(75) < 2, [1.0, 1 / 3, *np.zeros(48)]),  # 1.5 samples to a bin weigh by their part
        (np.arange(10), np.arange(10) >= 7, np.repeat([0.0, 1.0], [35, 15])),  # fewer samples than bins
        (np.zeros(100), np.arange(100) < 25, np.full(50, 0.25)),  # equals count in equal parts
    ],
)
def test_shares_kept_are_counted_by_rank(difficulty, kept, expected):
    order = np.random.default_rng(0).permutation(len(difficulty))
    history = history_of((difficulty[order], kept[order], 1.0, 0.5))
    np.testing.assert_allclose(history.kept_by_rank[0], expected, atol=1e-6)
    for part, mask in ((history.kept, kept), (history.dropped, ~kept)):
        assert difficulty[order][part].tolist() == sorted(difficulty[mask].tolist())


def test_strip_shows_each_step_over_its_compute():
    strip = strip_of(render.frame(half_then_all(), planted(), 2.0))
    assert strip.shape == (150, 376, 3)
    assert (strip[:75, :94] == ALL).all()  # 0.5 of 2.0: a quarter of 376 columns; hardest on top
    assert (strip[75:, :94] == NONE).all()
    assert (strip[:, 94:282] == ALL).all()  # up to 1.5 of 2.0
    assert (strip[:, 282:] == render.EMPTY).all()


def test_columns_average_steps_narrower_than_they_are():
    """3,760 steps over 376 columns: of every ten one keeps all, and four keep half of each bin."""
    plan = [np.ones(100)] + 4 * [np.arange(100) % 2] + 5 * [np.zeros(100)]
    steps = [(np.arange(100), plan[t % 10], (t + 1) / 3760, 0.5) for t in range(3760)]
    strip = strip_of(render.frame(history_of(*steps), planted(), 1.0)).astype(int)
    low, high = np.array([59, 82, 139]), np.array(HALF)  # at 0.25 and 0.5
    assert np.abs(strip - np.rint(low + (high - low) * 0.2)).max() <= 1  # at 0.3


# ---------------------------------------------------------------- the curve, images, words


@pytest.mark.parametrize(("spent", "accuracy"), [(0.5, 0.25), (2.0, 1.0)])
def test_curve_ends_at_the_last_accuracy(spent, accuracy):
    frame = render.frame(history_of((np.arange(100), np.ones(100), spent, accuracy)), planted(), 2.0)
    left, top, right, bottom = render.CURVE
    x, y = left + spent / 2 * (right - 1 - left), bottom - accuracy * (bottom - top)
    assert (frame[round(y), round(x)] == render.LINE).all()
    blue = (frame == render.LINE).all(axis=-1)[top - 3 : bottom + 4, left - 3 : right + 3]
    columns = np.flatnonzero(blue.any(axis=0)) + left - 3
    assert columns.max() == pytest.approx(x, abs=3)  # nothing beyond it
    middle = blue[:, round((left + x) / 2) - left + 3]
    height = bottom - (0.1 + accuracy) / 2 * (bottom - top)  # half way from the start, at 0.1
    assert np.flatnonzero(middle).mean() + top - 3 == pytest.approx(height, abs=1.5)


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 72), (3, 224)])
def test_images_of_the_last_step_are_shown_easiest_first(channels, size):
    n, weight = 40, np.zeros(40)
    weight[10:30] = 2.0
    history = history_of((np.arange(n), np.ones(n), 1.0, 0.4), (np.arange(n)[::-1], weight, 1.5, 0.5))
    data = planted(n, channels, size)
    frame = render.frame(history, data, 2.0)
    kept = [29, 25, 21, 18, 14, 10]  # 20 samples from 29 down, six of them: ranks 0, 3.8, 7.6, 11.4, 15.2, 19
    dropped = [39, 35, 31, 8, 4, 0]
    for kind, samples in ((render.KEPT, kept), (render.DROPPED, dropped)):
        for place, sample in enumerate(samples):
            assert (image_at(frame, kind, place) == data.images[sample, :, 0, 0].numpy()).all(), (kind, place)


def test_images_are_the_right_way_up():
    data = planted(2, 3, 8)
    data.images[0] = torch.arange(192).reshape(3, 8, 8)
    frame = render.frame(history_of(([0, 1], [1, 0], 0.5, 0.5)), data, 1.0)
    expected = data.images[0].permute(1, 2, 0).numpy().repeat(9, axis=0).repeat(9, axis=1)  # 8 x 9 = 72
    assert (image_at(frame, render.KEPT, 0) == expected).all()


def test_nothing_stands_where_no_image_is(words_of):
    history = history_of((np.arange(100), np.ones(100), 1.0, 0.5))
    frame = render.frame(history, planted(), 2.0)
    assert all((image_at(frame, render.DROPPED, place) == render.PAPER).all() for place in range(6))
    assert {"Last step kept 100 of 100 (100%)", "Last step dropped 0 of 100 (0%)"} <= set(words_of(history))


def test_words_and_names_that_are_cut_to_their_room(words_of):
    words = words_of(half_then_all())
    assert {"Step 2: 1.50 of 2 full epochs spent (75%)", "80.0%", "cat", "0.5", "2"} <= set(words)
    cut = [word for word in words if word.startswith("a class")]
    assert cut
    assert len(cut[0]) < 20


@pytest.mark.parametrize("budget", [0.05, 1.0, 1.5, 9.99, 140.0])
def test_compute_axis_has_a_few_round_ticks(budget, words_of):
    words = words_of(history_of(), budget)
    ticks = sorted({float(word) for word in words if word.replace(".", "").isdigit()})
    assert 3 <= len(ticks) <= 7
    assert ticks[0] == 0.0
    assert budget - ticks[1] < ticks[-1] <= budget * 1.001
    assert f"{ticks[1]:e}"[0] in "125"


def test_text():
    history = history_of()
    assert render.text(history, 10.0) == "Step 0: 0.00 of 10 full epochs spent (0%)\nValidation accuracy 10.0% ▂"
    weight = np.arange(100) >= 25  # of ten bins, two and a half dropped
    history = history_of((np.arange(100), np.ones(100), 1.0, 0.5), (np.arange(100), weight, 1.75, 0.987))
    assert render.text(history, 2.0).splitlines() == [
        "Step 2: 1.75 of 2 full epochs spent (88%)",
        "Validation accuracy 98.7% ▂▅█",
        "Last step kept 75 of 100 (75%): easiest ▁▁▅███████ hardest",
    ]
    steps = [(np.arange(100), np.ones(100), t + 1.0, t / 299) for t in range(300)]
    curve = render.text(history_of(*steps), 300.0).splitlines()[1].split()[-1]
    assert len(curve) == 60  # it fits a terminal
    assert list(curve[1:]) == sorted(curve[1:])


# ---------------------------------------------------------------- the environment


@pytest.mark.parametrize("train_size", [10, 200])
def test_environment_renders_through_an_episode(train_size):
    env = digits(render_mode="rgb_array", train_size=train_size, budget=2.0, batch_size=8)

    def picture() -> np.ndarray:
        frame = env.render()
        assert isinstance(frame, np.ndarray)
        return frame

    with pytest.raises(gym.error.ResetNeeded):
        env.render()
    observation, _ = env.reset(seed=0)
    frames, finished = [picture()], False
    assert (strip_of(frames[0]) == render.EMPTY).all()
    while not finished:
        hardest = np.argsort(observation["loss_mean"])[train_size // 2 :]
        observation, _, finished, _, _ = env.step(select(hardest, n=train_size))
        frames.append(picture())
    assert {(frame.shape, frame.dtype.name) for frame in frames} == {((480, 720, 3), "uint8")}
    assert len({frame.tobytes() for frame in frames}) == len(frames) > 3
    frames[-1][:] = 0
    assert picture().any()  # each frame has its own memory
    env.reset(seed=0)
    assert (picture() == frames[0]).all()


def test_environment_shows_what_was_trained_on_after_the_budgets_cut():
    env = digits(render_mode="ansi", budget=1.5)
    env.reset(seed=0)
    env.step(select(np.ones(100)))
    *_, info = env.step(select(np.ones(100)))
    assert str(env.render()).startswith("Step 2: 1.50 of 1.5 full epochs spent (100%)\n")
    assert f"Validation accuracy {info['val_accuracy']:.1%} " in str(env.render())
    assert "Last step kept 50 of 100 (50%)" in str(env.render())


@pytest.mark.skipif(importlib.util.find_spec("pygame") is None, reason="Gymnasium shows windows with pygame")
def test_human_mode_is_gymnasiums_window(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = gym.make("prune_env/Digits-v0", render_mode="human", train_size=100, budget=1.0)
    env.reset(seed=0)
    env.step(select(np.ones(100, bool)))
    env.close()
