"""Kriging recovers what rows share, ignores what they do not, and trusts no lone outlier."""

import numpy as np
import pytest

from fit.kriging import Group, Site, choose, tell


def rows(count, seed, bend=0.2, noise=0.02, versions=1, level=0.1):
    """Residuals that bend with the first number; the second says nothing."""
    random = np.random.default_rng(seed)
    numbers = random.uniform(0.0, 4.0, (count, 2))
    which = random.integers(0, versions, count)
    residuals = level + bend * np.sin(numbers[:, 0]) + 0.1 * which + noise * random.normal(size=count)
    return Group(Site(numbers, which), residuals)


def split(group, at):
    seen, unseen = np.arange(at), np.arange(at, len(group.residuals))
    return Group(group.site.some(seen), group.residuals[seen]), group.site.some(unseen), group.residuals[unseen]


@pytest.fixture(scope="module")
def kernel():
    return choose([rows(40, seed) for seed in range(6)])


def test_a_smooth_residual_is_told_to_within_its_noise(kernel):
    known, asked, truth = split(rows(80, 99), 40)
    off = tell(kernel, known)(asked) - truth
    assert np.median(np.abs(off)) < 0.025
    assert np.median(np.abs(off)) < 0.3 * np.median(np.abs(truth - np.median(known.residuals)))


def test_the_kernel_finds_which_number_matters(kernel):
    assert kernel[4] < kernel[5] - 0.5  # a shorter scale for the number that bends


def test_pure_noise_is_drawn_to_its_mean():
    groups = [rows(40, seed, bend=0.0, noise=0.1, level=0.0) for seed in range(6)]
    known, asked, _ = split(rows(80, 7, bend=0.0, noise=0.1, level=0.0), 40)
    assert np.abs(tell(choose(groups), known)(asked)).max() < 0.06


def test_one_row_far_out_moves_little(kernel):
    known, asked, _ = split(rows(60, 5), 40)
    spoilt = Group(known.site, known.residuals.copy())
    spoilt.residuals[3] += 2.0
    moved = np.abs(tell(kernel, spoilt)(asked) - tell(kernel, known)(asked))
    assert np.median(moved) < 0.02


def test_far_from_every_row_only_the_level_is_told(kernel):
    known, _, _ = split(rows(60, 3), 50)
    near, away = (Site(np.full((1, 2), place), np.zeros(1, dtype=np.int64)) for place in (2.0, 1e6))
    assert abs(tell(kernel, known)(away)[0]) < 0.5 * abs(tell(kernel, known)(near)[0])
    assert tell(kernel, known)(away)[0] == pytest.approx(tell(kernel, known)(Site(away.numbers * 2, away.versions))[0])


def test_versions_have_levels_of_their_own():
    groups = [rows(60, seed, versions=2) for seed in range(6)]
    known, asked, truth = split(rows(100, 11, versions=2), 60)
    assert np.median(np.abs(tell(choose(groups), known)(asked) - truth)) < 0.03
