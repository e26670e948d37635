"""The parts of rules against sorting, enumeration and the laws they promise; the draws are fixed."""

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prune_env import sampling
from tests.helpers.observations import observe

# every score that the evenly spaced sample of `kth_largest` sees is the largest, or the smallest
STEP = 20_000 // sampling.SAMPLE
SCORES = {
    "different": lambda rng, n: rng.permutation(n),
    "three values": lambda rng, n: rng.integers(0, 3, n),
    "constant": lambda rng, n: np.full(n, 0.7),
    "infinite": lambda rng, n: rng.choice([-np.inf, 0.0, 1.0, np.inf], n),
    "high where looked at": lambda rng, n: rng.random(n) + 9.0 * (np.arange(n) % STEP == 0),
    "low where looked at": lambda rng, n: rng.random(n) - 9.0 * (np.arange(n) % STEP == 0),
}


def assert_frequencies(masks: np.ndarray, expected: np.ndarray | float) -> None:
    """Assert that each sample is in as many of the masks (draws, N) as is probable, within 6 standard errors."""
    error = np.sqrt(expected * (1.0 - np.asarray(expected)) / len(masks))
    np.testing.assert_array_less(np.abs(masks.mean(axis=0) - expected), 6 * error + 1e-9)


@settings(max_examples=50)
@given(st.sampled_from(sorted(SCORES)), st.sampled_from([1, 2, 40, 16_384, 20_000]), st.floats(0, 1))
def test_top_k_is_what_sorting_gives(name, n, share):
    scores, k = SCORES[name](np.random.default_rng(n), n).astype(np.float32), round(share * n)
    mask = sampling.top_k_mask(scores, k, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(scores[mask]), np.sort(scores)[n - k :])


@pytest.mark.parametrize("k", [0, 2, 4, 6])
def test_equals_at_the_border_are_drawn_with_equal_probability(k):
    scores, rng = np.array([0.5, 2.0, 0.5, -np.inf, 0.5, 1e38], np.float32), np.random.default_rng(0)
    masks = np.array([sampling.top_k_mask(scores, k, rng) for _ in range(1000)])
    assert (masks.sum(axis=1) == k).all()
    above, equal = (scores > scores[:, None]).sum(axis=1), (scores == scores[:, None]).sum(axis=1)
    assert_frequencies(masks, np.clip((k - above) / equal, 0.0, 1.0))


@given(st.lists(st.sampled_from([0.01, 1.0, 2.5, 40.0, 1e6]), min_size=1, max_size=40), st.floats(0, 1))
def test_probabilities_are_proportional_until_a_sample_is_certain(size, share):
    k = max(1, round(share * len(size)))
    certain: set[int] = set()
    while True:  # from the definition
        others = [x for i, x in enumerate(size) if i not in certain]
        part = {i: (k - len(certain)) * x / sum(others) for i, x in enumerate(size) if i not in certain}
        above = {i for i, p in part.items() if p > 1 + 1e-9}
        if not above:
            break
        certain |= above
    expected = [1.0 if i in certain else part[i] for i in range(len(size))]
    found = sampling.proportional(np.array(size), k)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.sum() == pytest.approx(k)


@given(st.integers(1, 200), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
def test_uniform_and_fill_have_their_size(n, share, more, seed):
    rng = np.random.default_rng(seed)
    mask = sampling.uniform(n, round(share * n), rng)
    assert mask.sum() == round(share * n)
    k = round(mask.sum() + more * (n - mask.sum()))
    filled = sampling.fill(mask, k, rng)
    assert filled.sum() == k
    assert filled[mask].all()


def test_fill_draws_the_others_uniformly():
    rng, mask = np.random.default_rng(0), np.arange(6) < 2
    assert_frequencies(np.array([sampling.fill(mask, 3, rng) for _ in range(1000)]), np.where(mask, 1.0, 1 / 4))


@pytest.mark.parametrize("draw", [sampling.uniform, lambda n, k, rng: sampling.systematic(np.full(n, k / n), k, rng)])
def test_every_subset_is_drawn_alike(draw):
    rng = np.random.default_rng(0)
    counts = Counter(tuple(np.flatnonzero(draw(6, 3, rng)).tolist()) for _ in range(4000))
    assert stats.chisquare([counts[subset] for subset in itertools.combinations(range(6), 3)]).pvalue > 1e-4


@given(seed=st.integers(0, 2**32 - 1), data=st.data())
@settings(max_examples=20)
def test_systematic_has_any_probabilities(seed, data):
    part = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 1e-300, 1e-12, 1 - 1e-12, 0.5]))
    free = data.draw(st.lists(part, min_size=1, max_size=9))
    k = -int(-sum(free) // 1)  # rounded up; the last one takes what is missing
    pi = np.append(free, min(max(k - sum(free), 0.0), 1.0))
    rng = np.random.default_rng(seed)
    masks = np.array([sampling.systematic(pi, k, rng) for _ in range(400)])
    assert (masks.sum(axis=1) == k).all()
    assert_frequencies(masks, np.where(pi < 1e-6, 0.0, np.where(pi > 1 - 1e-6, 1.0, pi)))


@pytest.mark.parametrize("u", [0.0, np.nextafter(1, 0)])
@pytest.mark.parametrize("pi", [[0.1] * 10, [0.2, 0.4, 0.3, 0.1, 0.0]])
def test_systematic_counts_right_where_the_sum_is_rounded(pi, u):
    class Fixed:
        """A generator that leaves the order and draws an end of [0, 1)."""

        def permutation(self, order):
            return order

        def random(self):
            return u

    assert np.cumsum(pi)[-1] != 1  # the first sum ends below 1, the second above
    fixed: Any = Fixed()
    assert sampling.systematic(np.array(pi), 1, fixed).sum() == 1


@given(st.lists(st.sampled_from([0.0, 1e-30, 0.5, 1.0, 2.0, 100.0]) | st.floats(-9, 9, width=32), min_size=1))
def test_ranks_are_those_of_scipy(values):
    expected = (stats.rankdata(np.array(values, np.float32)) - 0.5) / len(values)
    np.testing.assert_allclose(sampling.ranks(np.array(values, np.float32)), expected, rtol=1e-12)


def test_only_what_is_kept_is_blended():
    mask, rng = np.arange(8) < 5, np.random.default_rng(0)
    shares = np.array([sampling.mixup_shares(mask, 0.3, rng) for _ in range(2000)])
    assert_frequencies(shares > 0, np.where(mask, 0.3, 0.0))
    # of min(λ, 1-λ), λ ~ Beta(0.4, 0.4), which is symmetric
    assert stats.kstest(shares[shares > 0], lambda x: 2 * stats.beta.cdf(x, 0.4, 0.4)).pvalue > 0.001


def test_the_example_of_the_module_keeps_what_it_says():
    names: dict[str, Any] = {}
    example = (sampling.__doc__ or "").split("project:\n\n")[1].split("\n\nN is")[0]
    exec("\n".join(line[4:] for line in example.splitlines()), names)
    observation = observe(0, n=100)
    weight = names["HardHalf"]()(observation, np.random.default_rng(0))["weight"]
    assert weight.sum() == 50
    assert observation["loss"][weight > 0].mean() > observation["loss"][weight == 0].mean()


def test_latest_holds_the_last_rows_oldest_first():
    rows, history = np.arange(15, dtype=np.float32).reshape(5, 3), np.empty((0, 3), np.float32)
    for t in range(5):
        history = sampling.latest(history, rows[t], 3)
        np.testing.assert_array_equal(history, rows[max(0, t - 2) : t + 1])
        assert history.dtype == np.float32
