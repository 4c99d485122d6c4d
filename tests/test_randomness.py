"""Random numbers are a pure function of the key: pinned, uniform, normal, independent."""

import math

import numpy as np
import pytest
import torch

from restoration_env.randomness import draw_keys, generator, hashed, normal, uniform

KEYS = torch.from_numpy(np.random.default_rng(0).integers(0, 2**63 - 1, 2000))


def reference(key: int, counter: int) -> int:
    """SplitMix64 in Python's unbounded integers."""
    z = (key + counter * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


@pytest.mark.parametrize("key", [0, 1, 1234567, 2**63 - 1, -5])
@pytest.mark.parametrize("stream", [0, 3])
def test_words_are_splitmix64(key: int, stream: int) -> None:
    words = hashed(torch.tensor([key]), 5, stream)[0].tolist()
    assert [w % 2**64 for w in words] == [reference(key, stream * 2**32 + i) for i in range(1, 6)]


def test_words_are_those_of_the_published_generator() -> None:
    # The first outputs of Vigna's splitmix64.c for the seed 1234567.
    assert [w % 2**64 for w in hashed(torch.tensor([1234567]), 3, 0)[0].tolist()] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_golden_values() -> None:
    # Another number here is another environment: what was published could no longer be made again.
    keys = torch.tensor([0, 4242424242])
    assert uniform(keys, 3).tolist() == [
        [0.8833108082136426, 0.43152799704850997, 0.026433771592597743],
        [0.6239735847292394, 0.13164887932048797, 0.33772844436300065],
    ]
    expected = [[-1.5919422, 0.3316911, -0.2409428], [-0.7771240, -0.7183622, -0.0218002]]
    torch.testing.assert_close(normal(keys, (3,)), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_uniform_moments() -> None:
    u = uniform(KEYS, 50)
    assert u.dtype == torch.float64 and u.shape == (2000, 50)
    assert u.min() >= 0 and u.max() < 1
    assert u.mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / u.numel()))
    assert u.var().item() == pytest.approx(1 / 12, abs=0.001)
    counts = torch.histc(u.float(), 20, 0, 1)
    assert (((counts - 5000) ** 2 / 5000).sum()) < 44  # chi-squared with 19 degrees of freedom, p = 0.001


def test_normal_moments_and_tails() -> None:
    z = normal(KEYS, (10, 11))
    assert z.dtype == torch.float32 and z.shape == (2000, 10, 11) and torch.isfinite(z).all()
    z = z.double().flatten()
    n = len(z)
    assert z.mean().item() == pytest.approx(0, abs=4 / math.sqrt(n))
    assert z.var().item() == pytest.approx(1, abs=4 * math.sqrt(2 / n))
    assert (z**3).mean().item() == pytest.approx(0, abs=4 * math.sqrt(15 / n))
    assert (z**4).mean().item() == pytest.approx(3, abs=4 * math.sqrt(96 / n))
    for border in (1, 2, 3):
        p = math.erfc(border / math.sqrt(2))
        assert (z.abs() > border).double().mean().item() == pytest.approx(p, abs=4 * math.sqrt(p / n))


def test_a_radius_never_becomes_infinite() -> None:
    # The smallest and the largest word that Box-Muller can meet.
    for high in (0, 2**32 - 1):
        radius = torch.sqrt(-2.0 * torch.log((torch.tensor([high]).float() + 1.0) * 2.0**-32))
        assert torch.isfinite(radius).all()


@pytest.mark.parametrize("streams", [(0, 1), (1, 2), (0, 3)])
def test_streams_are_independent(streams: tuple[int, int]) -> None:
    a, b = (uniform(KEYS, 20, stream).flatten() - 0.5 for stream in streams)
    assert abs(torch.corrcoef(torch.stack((a, b)))[0, 1]) < 4 / math.sqrt(len(a))
    assert not torch.equal(a, b)


def test_neighbours_are_independent() -> None:
    u = uniform(torch.arange(4000), 9) - 0.5  # neighbouring keys too
    for a, b in ((u[1:], u[:-1]), (u[:, 1:], u[:, :-1])):
        assert abs(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1]) < 4 / math.sqrt(a.numel())
    z = normal(KEYS, (2, 8)).flatten(1)  # the two halves of Box-Muller
    assert abs(torch.corrcoef(torch.stack((z[:, :8].flatten(), z[:, 8:].flatten())))[0, 1]) < 0.03


def test_numbers_do_not_depend_on_the_batch() -> None:
    keys, shape = KEYS[:17], (3, 7, 5)
    u, z = uniform(keys, 5, 2), normal(keys, shape, 3)
    for rows in ([4], [16, 0], list(range(16, -1, -1)), [3, 3, 3]):
        assert torch.equal(uniform(keys[rows], 5, 2), u[rows])
        assert torch.equal(normal(keys[rows], shape, 3), z[rows])


def test_more_numbers_begin_with_the_same_ones() -> None:
    assert torch.equal(uniform(KEYS, 9)[:, :4], uniform(KEYS, 4))


def test_no_keys_no_numbers() -> None:
    none = torch.empty(0, dtype=torch.int64)
    assert uniform(none, 4).shape == (0, 4) and normal(none, (3, 2)).shape == (0, 3, 2)


def test_drawn_keys_follow_the_generator() -> None:
    first, again = (draw_keys(np.random.default_rng(7), 4) for _ in range(2))
    assert first.dtype == np.int64 and (first >= 0).all() and len(set(first.tolist())) == 4
    np.testing.assert_array_equal(first, again)
    one_by_one = np.random.default_rng(7)
    np.testing.assert_array_equal(np.concatenate([draw_keys(one_by_one, 1) for _ in range(4)]), first)


def test_every_number_of_a_generator_matters() -> None:
    numbers = [(0, 0), (0, 1), (1, 0), (2**33, 0), (0, 2**33), (1 << 40, 1)]
    drawn = {torch.rand(1, generator=generator(*pair)).item() for pair in numbers}
    assert len(drawn) == len(numbers)
    assert torch.equal(torch.rand(5, generator=generator(3, 7)), torch.rand(5, generator=generator(3, 7)))
