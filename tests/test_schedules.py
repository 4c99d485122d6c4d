"""The share of the peak learning rate over a training."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restoration_env.schedules import cosine


@given(st.integers(1, 5000), st.integers(0, 300), st.floats(0, 1))
def test_it_warms_up_to_the_peak_and_falls_to_the_floor(iterations, warmup, floor):
    shares = [cosine(i, iterations, warmup=warmup, floor=floor) for i in range(iterations + 1)]
    top = min(warmup, iterations // 10)
    assert all(a < b for a, b in pairwise(shares[:top]))
    assert shares[top] == pytest.approx(1.0) and shares[-1] == pytest.approx(floor)
    assert all(a >= b - 1e-12 for a, b in pairwise(shares[top:]))
    assert cosine(2 * iterations, iterations, warmup=warmup, floor=floor) == pytest.approx(floor)
