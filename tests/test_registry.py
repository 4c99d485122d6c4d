"""Tools and toolboxes by name, from this package, a registration, or another package's entry point."""

import sys

import pytest
import torch
from helpers import TOOLS, needs_cnn12

from restoration_env import registry
from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.registry import (
    load_tool,
    load_toolbox,
    register_tool,
    register_toolbox,
    tool_names,
    toolbox_names,
)
from restoration_env.toolbox import Tool, Toolbox


@pytest.fixture(autouse=True)
def tables_of_their_own(monkeypatch) -> None:
    monkeypatch.setattr(registry, "_TOOLS", dict(registry._TOOLS))
    monkeypatch.setattr(registry, "_TOOLBOXES", dict(registry._TOOLBOXES))


def test_the_package_brings_its_toolboxes() -> None:
    assert {"cnn12", "classical"} <= set(toolbox_names())


def test_classical_loads() -> None:
    toolbox = load_toolbox("classical")
    assert toolbox.name == "classical" and all(isinstance(tool, Tool) for tool in toolbox)


def test_unknown_toolbox_lists_the_known() -> None:
    with pytest.raises(UnknownName, match=r"^toolbox must be one of .*cnn12.*, got 'cnn13'") as error:
        load_toolbox("cnn13")
    assert all(name in str(error.value) for name in toolbox_names())


@pytest.mark.parametrize("name", [["cnn12"], None, 12])
def test_a_toolbox_is_a_name(name) -> None:
    with pytest.raises(UnknownName, match=r"^toolbox must be"):
        load_toolbox(name)


def test_unknown_tool_lists_the_known() -> None:
    with pytest.raises(UnknownName, match=r"^tool must be one of .*invert.*cnn12/<tool>.*got 'sharpen'"):
        load_tool("sharpen")
    with pytest.raises(UnknownName, match="brighten, darken, blur, got 'sharpen'"):
        load_tool("tiny/sharpen")
    with pytest.raises(UnknownName, match=r"^toolbox must be"):
        load_tool("huge/blur")


def test_unknown_precision_lists_the_known() -> None:
    with pytest.raises(UnknownName, match=r"^precision must be one of float32, bfloat16"):
        load_toolbox("tiny", precision="float16")


def test_registering_twice() -> None:
    register_toolbox("mine", "helpers:tiny")
    register_toolbox("mine", "helpers:tiny")
    with pytest.raises(InvalidArgument, match=r"^name must be not yet the name of another toolbox, got 'mine'"):
        register_toolbox("mine", "helpers:other")
    register_tool("mine", "helpers:invert")  # a tool may have a toolbox's name
    with pytest.raises(InvalidArgument, match="another tool, got 'mine'"):
        register_tool("mine", "helpers:other")
    assert "mine" in tool_names() and "mine" in toolbox_names()
    assert load_toolbox("mine").names == ("brighten", "darken", "blur")


@pytest.mark.parametrize("target", ["", "helpers", "helpers:", ":tiny"])
def test_a_target_has_two_parts(target: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^target must be a string 'module:callable'"):
        register_tool("new", target)


@pytest.mark.parametrize("name", ["", "a/b"])
def test_a_name_can_be_loaded(name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^name must be"):
        register_tool(name, "helpers:invert")


def test_nothing_is_imported_before_it_is_loaded() -> None:
    register_toolbox("elsewhere", "no_such_module_anywhere:box")
    assert "elsewhere" in toolbox_names()
    with pytest.raises(ImportError, match="no_such_module_anywhere"):
        load_toolbox("elsewhere")


def test_extra_tools_come_after_the_toolbox() -> None:
    toolbox = load_toolbox("tiny", ["invert"])
    assert toolbox.action_names() == ("brighten", "darken", "blur", "invert", "stop")
    assert toolbox.name == "tiny+invert" and toolbox.stop == TOOLS + 1
    image = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(toolbox.apply(image, torch.tensor([3])), 1 - image)
    assert len(load_toolbox("tiny")) == TOOLS


def test_a_toolbox_with_a_tool_is_found_again_by_its_name() -> None:
    toolbox = load_toolbox("tiny+invert")
    assert toolbox.name == load_toolbox("tiny", ["invert"]).name and len(toolbox) == TOOLS + 1
    assert load_toolbox("tiny+invert", ["classical/unsharp"]).name == "tiny+invert+unsharp"
    for name in ("tiny+nothing", "nothing+invert", "tiny+"):
        with pytest.raises(UnknownName, match="must be one of"):
            load_toolbox(name)


def test_extra_tools_from_another_toolbox() -> None:
    assert load_tool("tiny/blur").name == "blur"
    with pytest.raises(InvalidArgument, match="no two of the same name"):
        load_toolbox("tiny", ["tiny/blur"])


@pytest.mark.parametrize("extra", ["invert", "x"])
def test_extra_tools_are_not_one_string(extra: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^extra_tools must be a sequence of names"):
        load_toolbox("tiny", extra)


def test_unknown_extra_tool() -> None:
    with pytest.raises(UnknownName, match=r"^tool must be one of .*invert.*got 'sharpen'"):
        load_toolbox("tiny", ["sharpen"])


@needs_cnn12
def test_one_tool_of_the_twelve() -> None:
    tool = load_tool("cnn12/denoise-3")
    assert tool.name == "denoise-3" and tool.cost > 0
    image = torch.rand(1, 3, 16, 16)
    assert tool(image).shape == image.shape
    assert load_toolbox("tiny", ["cnn12/denoise-3"]).names[-1] == "denoise-3"


def test_device_and_precision_reach_the_tools() -> None:
    assert {tool.precision for tool in load_toolbox("tiny", ["invert"], precision="bfloat16")} == {"bfloat16"}
    assert load_tool("tiny/blur", precision="bfloat16").precision == "bfloat16"


def test_another_package_adds_tools_by_entry_point(tmp_path, monkeypatch) -> None:
    (tmp_path / "third_party.py").write_text(
        "from restoration_env.toolbox import Tool, Toolbox\n"
        "def halve(*, device, precision):\n"
        "    return Tool('halve', 'half as bright', lambda x: x / 2, precision=precision)\n"
        "class Boxes:\n"
        "    @staticmethod\n"
        "    def one(*, device, precision):\n"
        "        return Toolbox('one', [halve(device=device, precision=precision)])\n"
    )
    info = tmp_path / "third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[restoration_env.tools]\nhalve = third_party:halve\n\n"
        "[restoration_env.toolboxes]\none = third_party:Boxes.one\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "halve" in tool_names() and "one" in toolbox_names()
    assert "third_party" not in sys.modules
    image = torch.rand(2, 3, 16, 16)
    toolbox = load_toolbox("one", ["invert"])
    assert isinstance(toolbox, Toolbox) and toolbox.names == ("halve", "invert")
    torch.testing.assert_close(load_toolbox("tiny", ["halve"])["halve"](image), image / 2)
    register_toolbox("one", "helpers:tiny")  # what a program registers itself comes first
    assert load_toolbox("one").name == "tiny"
    monkeypatch.delitem(sys.modules, "third_party")
