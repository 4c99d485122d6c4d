"""What the README shows works as it stands there."""

import re
from pathlib import Path

import pytest
import skimage.data
from PIL import Image

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


@pytest.mark.long
def test_the_first_lines_train_and_restore(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(skimage.data.chelsea()[:150, :200]).save("old.jpg", quality=20)
    exec(BLOCKS[0], {})
    assert capsys.readouterr().out.strip().endswith(")")


def test_the_vector_environment_steps_as_shown():
    names = {}
    exec("import gymnasium as gym, restoration_env\n" + BLOCKS[1].replace("num_envs=64", "num_envs=3"), names)
    assert names["rewards"].shape == (3,) and names["observations"]["image"].shape == (3, 63, 63, 3)


def test_the_parts_are_where_they_are_said_to_be():
    exec(BLOCKS[2], {})


def test_every_link_and_picture_leads_somewhere():
    root = Path(__file__).resolve().parent.parent
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    assert [t for t in targets if "://" not in t and not (root / t).exists()] == []
