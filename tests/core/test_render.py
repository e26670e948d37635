"""Frames read back pixel by pixel, against selections, images and accuracies planted by hand."""

import importlib.util

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import ImageDraw

from prune_env import render, select
from prune_env.data import Data

NONE, HALF, ALL = (68, 1, 84), (33, 145, 140), (253, 231, 37)  # viridis at 0, 0.5 and 1
SHAPE = (480, 720, 3)


def planted(n=100, channels=3, size=8):
    """Sample i is one flat colour, (i, 2 i % 256, 255 - i) or the grey i."""
    value = torch.arange(n) % 256
    colours = torch.stack([value, 2 * value % 256, 255 - value], dim=1)[:, :channels]
    images = colours.to(torch.uint8)[:, :, None, None].expand(n, channels, size, size).contiguous()
    labels = torch.arange(n) % 2
    rows = torch.arange(n)
    return Data(images, labels, ("cat", "a class of a very long name"), rows, torch.zeros(n, dtype=torch.bool), False)


def history_of(steps, n=100):
    """Steps of (difficulty (n,), weight (n,), spent in all, accuracy after) from accuracy 0.1."""
    history = render.History()
    history.record(0.0, 0.1)
    for difficulty, weight, spent, accuracy in steps:
        history.choose(np.asarray(difficulty, np.float32), np.asarray(weight) > 0)
        history.record(spent, accuracy)
    assert all(len(row) == render.BINS for row in history.kept_by_rank)
    return history


def half_then_all(n=100):
    """Hardest half, half an epoch of compute; then everything, a whole one. Sample n - 1 is the easiest."""
    difficulty = np.arange(n)[::-1]
    return history_of([(difficulty, np.arange(n) < n // 2, 0.5, 0.6), (difficulty, np.ones(n), 1.5, 0.8)], n)


def strip_of(frame):
    left, top, right, bottom = render.STRIP
    return frame[top:bottom, left:right]


def corner_of(kind, place):
    left, top = kind
    return left + place % 3 * render.PITCH[0], top + place // 3 * render.PITCH[1]


def image_at(frame, kind, place):
    x, y = corner_of(kind, place)
    return frame[y : y + render.THUMB, x : x + render.THUMB]


def words_of(monkeypatch, history, data, budget=2.0):
    """What is written into a frame."""
    words = []
    original = ImageDraw.ImageDraw.text

    def text(self, xy, text, *args, **kwargs):
        words.append(text)
        return original(self, xy, text, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    render.frame(history, data, budget)
    return words


def test_shares_kept_are_counted_by_rank():
    rng = np.random.default_rng(0)
    difficulty, weight = rng.permutation(200).astype(np.float32), rng.choice([0.0, 0.5, 3.0], 200)
    history = history_of([(difficulty, weight, 1.0, 0.5)], 200)
    expected = [np.mean([weight[difficulty == rank][0] > 0 for rank in range(4 * b, 4 * b + 4)]) for b in range(50)]
    np.testing.assert_allclose(history.kept_by_rank[0], expected, rtol=0, atol=1e-6)
    assert difficulty[history.kept].tolist() == sorted(difficulty[weight > 0].tolist())
    assert difficulty[history.dropped].tolist() == sorted(difficulty[weight == 0].tolist())


def test_bins_that_samples_straddle_weigh_them_by_their_part():
    kept = np.zeros(75)  # 1.5 samples to a bin
    kept[[0, 1]] = 1.0
    (shares,) = history_of([(np.arange(75), kept, 1.0, 0.5)], 75).kept_by_rank
    np.testing.assert_allclose(shares[:3], [1.0, 1 / 3, 0.0], atol=1e-6)
    assert shares.sum() * 1.5 == pytest.approx(2.0)


def test_fewer_samples_than_bins_fill_them_all():
    (shares,) = history_of([(np.arange(10), np.arange(10) >= 7, 0.3, 0.5)], 10).kept_by_rank
    np.testing.assert_allclose(shares, np.repeat([0.0, 1.0], [35, 15]), atol=1e-6)


def test_samples_of_equal_difficulty_count_in_equal_parts():
    history = history_of([(np.zeros(100), np.arange(100) < 25, 0.25, 0.5)])
    np.testing.assert_allclose(history.kept_by_rank[0], 0.25, atol=1e-6)


def test_strip_shows_each_step_over_its_compute():
    strip = strip_of(render.frame(half_then_all(), planted(), 2.0))
    assert strip.shape == (150, 376, 3)
    assert (strip[:75, :94] == ALL).all()  # 0.5 of 2.0: a quarter of 376 columns; hardest on top
    assert (strip[75:, :94] == NONE).all()
    assert (strip[:, 94:282] == ALL).all()  # up to 1.5 of 2.0
    assert (strip[:, 282:] == render.EMPTY).all()


def test_strip_colours_are_shares():
    weight = np.ones(100)
    weight[50:] = np.arange(50) % 2  # of ranks 50 to 99, every second one; bins hold two samples
    strip = strip_of(render.frame(history_of([(np.arange(100), weight, 1.0, 0.5)]), planted(), 1.0))
    assert (strip[:75] == HALF).all()
    assert (strip[75:] == ALL).all()


def test_columns_average_steps_narrower_than_they_are():
    # 3,760 steps over 376 columns: of every ten one keeps all, and four keep half of each bin
    plan = [np.ones(100)] + 4 * [np.arange(100) % 2] + 5 * [np.zeros(100)]
    steps = [(np.arange(100), plan[t % 10], (t + 1) / 3760, 0.5) for t in range(3760)]
    strip = strip_of(render.frame(history_of(steps), planted(), 1.0)).astype(int)
    low, high = np.array([59, 82, 139]), np.array([33, 145, 140])  # at 0.25 and 0.5
    expected = np.rint(low + (high - low) * 0.2)  # at 0.3
    assert np.abs(strip - expected).max() <= 1


@pytest.mark.parametrize(("spent", "accuracy"), [(0.5, 0.25), (1.0, 0.9), (2.0, 1.0), (1.37, 0.0)])
def test_curve_ends_at_the_last_accuracy(spent, accuracy):
    frame = render.frame(history_of([(np.arange(100), np.ones(100), spent, accuracy)]), planted(), 2.0)
    left, top, right, bottom = render.CURVE
    x, y = left + spent / 2 * (right - 1 - left), bottom - accuracy * (bottom - top)
    assert (frame[round(y), round(x)] == render.LINE).all()
    blue = (frame == render.LINE).all(axis=-1)[top - 3 : bottom + 4, left - 3 : right + 3]
    columns = np.flatnonzero(blue.any(axis=0)) + left - 3
    assert columns.max() == pytest.approx(x, abs=3)  # nothing beyond it
    middle = blue[:, round((left + x) / 2) - left + 3]
    height = bottom - (0.1 + accuracy) / 2 * (bottom - top)  # half way from the start, at 0.1
    assert np.flatnonzero(middle).mean() + top - 3 == pytest.approx(height, abs=1.5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 32, 72, 100, 224])
def test_images_of_the_last_step_are_shown_easiest_first(channels, size):
    n = 40
    weight = np.zeros(n)
    weight[10:30] = 2.0
    history = history_of([(np.arange(n), np.ones(n), 1.0, 0.4), (np.arange(n)[::-1], weight, 1.5, 0.5)], n)
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
    frame = render.frame(history_of([([0, 1], [1, 0], 0.5, 0.5)], 2), data, 1.0)
    expected = data.images[0].permute(1, 2, 0).numpy().repeat(9, axis=0).repeat(9, axis=1)  # 8 x 9 = 72
    assert (image_at(frame, render.KEPT, 0) == expected).all()


@pytest.mark.parametrize(("weight", "empty"), [(1.0, render.DROPPED), (0.0, render.KEPT)])
def test_nothing_stands_where_no_image_is(weight, empty, monkeypatch):
    history = history_of([(np.arange(100), np.full(100, weight), weight, 0.5)])
    frame = render.frame(history, planted(), 2.0)
    assert all((image_at(frame, empty, place) == render.PAPER).all() for place in range(6))
    words = words_of(monkeypatch, history, planted())
    assert ("Last step kept 100 of 100 (100%)" in words) == (weight > 0)
    assert ("Last step dropped 0 of 100 (0%)" in words) == (weight > 0)


def test_words(monkeypatch):
    words = words_of(monkeypatch, half_then_all(), planted())
    assert {"Step 2: 1.50 of 2 full epochs spent (75%)", "80.0%", "cat", "0.5", "2"} <= set(words)
    longest = [word for word in words if word.startswith("a class")]
    assert longest
    assert "a class of a very long name".startswith(longest[0])
    assert len(longest[0]) < 20


@pytest.mark.parametrize("budget", [0.05, 0.3, 1.0, 1.5, 7.0, 9.99, 10.0, 140.0, 1000.0])
def test_compute_axis_has_a_few_round_ticks(budget, monkeypatch):
    history = render.History()
    history.record(0.0, 0.1)
    words = words_of(monkeypatch, history, planted(), budget)
    ticks = sorted({float(word) for word in words if word.replace(".", "").isdigit()})
    assert 3 <= len(ticks) <= 7
    assert ticks[0] == 0.0
    assert budget - ticks[1] < ticks[-1] <= budget * 1.001
    assert f"{ticks[1]:e}"[0] in "125"


def test_before_the_first_step():
    history = render.History()
    history.record(0.0, 0.1)
    frame = render.frame(history, planted(), 10.0)
    assert frame.shape == SHAPE
    assert (strip_of(frame) == render.EMPTY).all()
    assert render.text(history, 10.0) == "Step 0: 0.00 of 10 full epochs spent (0%)\nValidation accuracy 10.0% ▂"


def test_text():
    weight = (np.arange(100) >= 25).astype(float)  # of ten bins, two and a half dropped
    history = history_of([(np.arange(100), np.ones(100), 1.0, 0.5), (np.arange(100), weight, 1.75, 0.987)])
    assert render.text(history, 2.0).splitlines() == [
        "Step 2: 1.75 of 2 full epochs spent (88%)",
        "Validation accuracy 98.7% ▂▅█",
        "Last step kept 75 of 100 (75%): easiest ▁▁▅███████ hardest",
    ]


def test_text_fits_a_terminal_after_many_steps():
    steps = [(np.arange(100), np.ones(100), t + 1.0, t / 299) for t in range(300)]
    lines = render.text(history_of(steps), 300.0).splitlines()
    assert max(map(len, lines)) <= 100
    curve = lines[1].split()[-1]
    assert len(curve) == 60
    assert list(curve[1:]) == sorted(curve[1:])
    assert set(curve) == set(render.BLOCKS)


@pytest.mark.parametrize(("n", "steps"), [(10, 1), (10, 40), (100, 300)])
def test_frames_keep_their_shape_and_share_no_memory(n, steps):
    rng = np.random.default_rng(0)
    data = planted(n, 1)
    images = data.images.clone()
    history = history_of([], n)
    frames = []
    for t in range(steps):
        history.choose(rng.random(n, np.float32), rng.random(n) < 0.5)
        history.record((t + 1) / steps, rng.random())
        if t % 60 == 0 or t == steps - 1:
            frames.append(render.frame(history, data, 1.0))
    assert {frame.shape for frame in frames} == {SHAPE}
    assert {frame.dtype for frame in frames} == {np.dtype(np.uint8)}
    again = render.frame(history, data, 1.0)
    assert (again == frames[-1]).all()
    again[:] = 0
    assert not any(np.shares_memory(again, frame) for frame in frames)
    assert (render.frame(history, data, 1.0) == frames[-1]).all()
    assert (data.images == images).all()


@pytest.mark.parametrize("train_size", [10, 200])
def test_environment_renders_through_an_episode(train_size):
    env = gym.make("prune_env/Digits-v0", render_mode="rgb_array", train_size=train_size, budget=2.0)
    observation, _ = env.reset(seed=0)

    def picture():
        frame = env.render()
        assert isinstance(frame, np.ndarray)
        return frame

    frames, finished = [picture()], False
    while not finished:
        hardest = np.argsort(observation["loss_mean"])[train_size // 2 :]
        observation, _, finished, _, _ = env.step(select(hardest, n=train_size))
        frames.append(picture())
    assert all(frame.shape == SHAPE for frame in frames)
    assert len({frame.tobytes() for frame in frames}) == len(frames) > 3
    env.reset(seed=0)
    assert (picture() == frames[0]).all()


def test_environment_tells_its_state_in_text():
    env = gym.make("prune_env/Digits-v0", render_mode="ansi", train_size=100, budget=2.0)
    env.reset(seed=0)
    _, _, _, _, info = env.step(select(np.arange(50), n=100))
    words = env.render()
    assert isinstance(words, str)
    assert words.startswith("Step 1: 0.50 of 2 full epochs spent (25%)\n")
    assert f"Validation accuracy {info['val_accuracy']:.1%} " in words
    assert "Last step kept 50 of 100 (50%): easiest ▅▅▅▅▅▅▅▅▅▅ hardest" in words  # all are equally difficult yet


@pytest.mark.skipif(importlib.util.find_spec("pygame") is None, reason="Gymnasium shows windows with pygame")
def test_human_mode_is_gymnasiums_window(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = gym.make("prune_env/Digits-v0", render_mode="human", train_size=100, budget=1.0)
    env.reset(seed=0)
    env.step(select(np.ones(100, bool)))
    env.close()
