"""Learning rate and refresh times."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infnerf_tiles.training.schedule import GROWTH_FRACTIONS, PRIOR_STEPS, learning_rate, refresh_due

progress = st.floats(0.0, 1.0)


@given(progress, progress)
def test_the_learning_rate_only_falls_after_the_warm_up(a: float, b: float) -> None:
    low, high = sorted((max(a, 0.01), max(b, 0.01)))
    assert learning_rate(low, 1e-2, 3e-4) >= learning_rate(high, 1e-2, 3e-4) >= 3e-4


def test_the_learning_rate_ends_where_it_should_and_halves_evenly() -> None:
    assert learning_rate(1.0, 1e-2, 3e-4) == pytest.approx(3e-4)
    assert learning_rate(0.5, 1e-2, 1e-4) == pytest.approx(1e-3)
    assert learning_rate(7.0, 1e-2, 3e-4) == learning_rate(1.0, 1e-2, 3e-4)
    assert learning_rate(-1.0, 1e-2, 3e-4, warmup=0.0) == 1e-2


def test_the_warm_up_starts_at_a_tenth_and_is_continuous() -> None:
    assert learning_rate(0.0, 1e-2, 3e-4) == pytest.approx(1e-3)
    rates = [learning_rate(p, 1e-2, 3e-4) for p in np.linspace(0.0, 0.02, 2001)]
    assert np.abs(np.diff(rates)).max() < 2e-5
    assert all(rate > 0 for rate in rates)


@given(st.integers(1, 500), st.integers(0, 4000))
def test_refreshes_come_at_their_interval_and_never_during_the_prior(every: int, first: int) -> None:
    due = [step for step in range(first, first + 2 * every + 2) if refresh_due(step, every)]
    assert all(step >= PRIOR_STEPS for step in due)
    gaps = np.diff(due)
    assert (gaps < 1.5 * every + 1).all()  # where the interval doubles, one may fall between
    if first >= 1024:
        assert len(due) >= 2
        assert (gaps == every).all()


def test_refreshes_are_more_frequent_up_to_step_1024() -> None:
    due = np.array([s for s in range(1, 2049) if refresh_due(s, 256)])
    assert due[due >= 1024].tolist() == [1024, 1280, 1536, 1792, 2048]
    early = np.diff(due[due <= 1024])
    assert len(set(early.tolist())) == 1
    assert early[0] < 256


def test_growth_leaves_half_of_the_training_to_what_has_grown() -> None:
    assert list(GROWTH_FRACTIONS) == sorted(set(GROWTH_FRACTIONS))
    assert GROWTH_FRACTIONS[0] > 0
    assert GROWTH_FRACTIONS[-1] <= 0.5
