"""Files are whole or not there, and weights are those their card describes."""

import json

import pytest
import torch

from restoration_env.errors import InvalidArgument
from restoration_env.files import (
    load_checkpoint,
    read_weights,
    replacing,
    save_checkpoint,
    save_weights,
    write_json,
)

TENSORS = {"a": torch.arange(12.0).view(3, 4), "b.c": torch.ones(2, dtype=torch.int64)}


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "new" / "net.safetensors"
    save_weights(path, TENSORS, {"licence": "MIT", "sha256": "overwritten"})
    return path


def test_weights_come_back_with_their_card(weights) -> None:
    tensors, card = read_weights(weights)
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert card["licence"] == "MIT" and len(card["sha256"]) == 64
    assert sorted(p.name for p in weights.parent.iterdir()) == ["net.json", "net.safetensors"]


def test_views_and_trainable_tensors_can_be_saved(tmp_path) -> None:
    tensor = torch.arange(12.0).view(3, 4).requires_grad_()
    save_weights(tmp_path / "net.safetensors", {"t": tensor.T}, {})
    assert torch.equal(read_weights(tmp_path / "net.safetensors")[0]["t"], tensor.T)


def test_a_changed_byte_is_refused(weights) -> None:
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InvalidArgument, match="another sha256"):
        read_weights(weights)


@pytest.mark.parametrize("ending", [".json", ".safetensors"])
def test_a_missing_file_is_named(weights, ending: str) -> None:
    missing = weights.with_suffix(ending)
    missing.unlink()
    with pytest.raises(InvalidArgument, match=f"no .*net{ending}"):
        read_weights(weights)


@pytest.mark.parametrize("card", ["{", "", "[]", "{}", '"sha256"', '{"sha256": null}'])
def test_a_card_that_is_none_is_refused(weights, card: str) -> None:
    weights.with_suffix(".json").write_text(card)
    with pytest.raises(InvalidArgument, match="weights"):
        read_weights(weights)


def test_a_failing_write_leaves_the_old_file_alone(tmp_path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_takes_the_old_ones_place(tmp_path) -> None:
    path = tmp_path / "deep" / "results.json"
    write_json(path, {"old": 1})
    write_json(path, {"new": [1, 2.5, "ä"]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"new": [1, 2.5, "ä"]}
    assert list(path.parent.iterdir()) == [path]


def test_a_checkpoint_comes_back(tmp_path) -> None:
    state = {"iteration": 3, "rate": 0.1, "name": "x", "nested": {"weights": [torch.ones(2)]}}
    save_checkpoint(tmp_path / "run.pt", state)
    loaded = load_checkpoint(tmp_path / "run.pt")
    assert torch.equal(loaded["nested"].pop("weights")[0], state["nested"].pop("weights")[0])
    assert loaded == state


class Runs:
    """An object whose unpickling would run code."""

    def __reduce__(self):
        return (print, ("executed",))


def test_what_is_not_a_checkpoint_is_refused(tmp_path, capsys) -> None:
    path = tmp_path / "run.pt"
    with pytest.raises(InvalidArgument, match=r"checkpoint must be .*run\.pt"):
        load_checkpoint(path)
    for content in (b"", b"junk", b"PK\x03\x04 not a zip"):
        path.write_bytes(content)
        with pytest.raises(InvalidArgument, match=r"run\.pt"):
            load_checkpoint(path)
    for other in ([1, 2], torch.ones(2), {"a": Runs()}):
        torch.save(other, path)
        with pytest.raises(InvalidArgument, match=r"run\.pt"):
            load_checkpoint(path)
    assert "executed" not in capsys.readouterr().out
