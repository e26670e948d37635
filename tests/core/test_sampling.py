"""The parts of rules against sorting, enumeration and the laws they promise."""

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prune_env import sampling
from tests.agents.test_agents import assert_frequencies, observe

# every score that the evenly spaced sample of `kth_largest` sees is the largest, or the smallest
STEP = 20_000 // sampling.SAMPLE
SCORES = {
    "different": lambda rng, n: rng.permutation(n),
    "three values": lambda rng, n: rng.integers(0, 3, n),
    "constant": lambda rng, n: np.full(n, 0.7),
    "infinite": lambda rng, n: rng.choice([-np.inf, 0.0, 1.0, np.inf], n),
    "falling": lambda rng, n: -np.arange(n),
    "high where looked at": lambda rng, n: rng.random(n) + 9.0 * (np.arange(n) % STEP == 0),
    "low where looked at": lambda rng, n: rng.random(n) - 9.0 * (np.arange(n) % STEP == 0),
}


@settings(deadline=None)
@given(st.sampled_from(sorted(SCORES)), st.sampled_from([1, 2, 40, 16_383, 16_384, 20_000]), st.floats(0, 1))
def test_top_k_is_what_sorting_gives(name, n, share):
    scores, k = SCORES[name](np.random.default_rng(n), n).astype(np.float32), round(share * n)
    mask = sampling.top_k_mask(scores, k, np.random.default_rng(0))
    ordered = np.sort(scores)
    np.testing.assert_array_equal(np.sort(scores[mask]), ordered[n - k :])
    if k:
        assert sampling.kth_largest(scores, k) == ordered[n - k]


@given(st.integers(1, 200), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
def test_uniform_and_fill_have_their_size(n, share, more, seed):
    rng = np.random.default_rng(seed)
    mask = sampling.uniform(n, round(share * n), rng)
    assert mask.sum() == round(share * n)
    k = round(mask.sum() + more * (n - mask.sum()))
    filled = sampling.fill(mask, k, rng)
    assert filled.sum() == k
    assert filled[mask].all()


@pytest.mark.parametrize("draw", [sampling.uniform, lambda n, k, rng: sampling.systematic(np.full(n, k / n), k, rng)])
def test_every_subset_is_drawn_alike(draw):
    rng, draws = np.random.default_rng(0), 4000
    counts = Counter(tuple(np.flatnonzero(draw(6, 3, rng)).tolist()) for _ in range(draws))
    subsets = list(itertools.combinations(range(6), 3))
    assert_frequencies(np.array([counts[subset] for subset in subsets]), draws, np.full(20, 1 / 20))


@pytest.mark.parametrize(
    "pi", [[0.1, 0.9, 0.35, 0.65, 0.5, 0.5], [1.0, 0.0, 1.0, 0.25, 0.5, 0.25], [1.0, 1.0], [1 / 3] * 6]
)
def test_systematic_has_its_probabilities(pi):
    pi, rng, draws = np.array(pi), np.random.default_rng(0), 4000
    masks = np.array([sampling.systematic(pi, round(pi.sum()), rng) for _ in range(draws)])
    assert np.all(masks.sum(axis=1) == round(pi.sum()))
    assert_frequencies(masks.sum(axis=0), draws, pi)


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
def test_ranks(values):
    expected = (stats.rankdata(np.array(values, np.float32)) - 0.5) / len(values)
    np.testing.assert_allclose(sampling.ranks(np.array(values, np.float32)), expected, rtol=1e-12)


def test_mixup_shares():
    mask, rng, draws = np.arange(8) < 5, np.random.default_rng(0), 2000
    shares = np.array([sampling.mixup_shares(mask, 0.3, rng) for _ in range(draws)])
    assert_frequencies((shares > 0).sum(axis=0), draws, np.where(mask, 0.3, 0.0))
    # of min(λ, 1-λ), λ ~ Beta(0.4, 0.4), which is symmetric
    assert stats.kstest(shares[shares > 0], lambda x: 2 * stats.beta.cdf(x, 0.4, 0.4)).pvalue > 0.001


def test_the_example_of_the_module_keeps_what_it_says():
    names: dict[str, Any] = {}
    example = (sampling.__doc__ or "").split("project:\n\n")[1].split("\n\nN is")[0]
    exec("\n".join(line[4:] for line in example.splitlines()), names)
    observation = observe(100)
    weight = names["HardHalf"]()(observation, np.random.default_rng(0))["weight"]
    assert weight.sum() == 50
    assert observation["loss"][weight > 0].mean() > observation["loss"][weight == 0].mean()
