"""The eight ways to turn an image: all different, all reversible."""

import pytest
import torch

from restoration_env.turning import WAYS, turned, turned_back, turned_each

IMAGES = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)


@pytest.mark.parametrize("way", range(WAYS))
def test_every_way_can_be_undone(way: int) -> None:
    oblong = torch.rand(2, 3, 4, 7)
    assert torch.equal(turned_back(turned(oblong, way), way), oblong)
    assert turned(oblong, way).shape[-2:] == ((7, 4) if way & 1 else (4, 7))


def test_the_ways_are_the_symmetries_of_a_square() -> None:
    made = [turned(IMAGES, way) for way in range(WAYS)]
    assert torch.equal(made[0], IMAGES)
    symmetries = [torch.rot90(part, quarters, (-2, -1)) for part in (IMAGES, IMAGES.mT) for quarters in range(4)]
    assert all(sum(torch.equal(one, other) for other in made) == 1 for one in symmetries)


def test_each_of_a_batch_may_have_its_own_way() -> None:
    squares = torch.rand(WAYS, 3, 5, 5)
    each = turned_each(squares, torch.arange(WAYS))
    for way in range(WAYS):
        assert torch.equal(each[way], turned(squares[way], way))
