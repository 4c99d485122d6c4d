"""The whole recipe in one command, killed and resumed on the way."""

import pytest

from restoration_env.agents.agent import load_agent
from restoration_env.agents.system import BUDGETS, train_system
from restoration_env.images import load_images
from restoration_env.tools.catalogue import NAMES, cnn_toolbox


@pytest.mark.long
@pytest.mark.parametrize("toolbox", ["cnn12-joint", "cnn12-modern"])
def test_everything_is_trained_and_a_killed_run_goes_on(toolbox, tmp_path):
    photos = load_images("bundled", "train"), load_images("bundled", "validation")
    seen = []

    def kill(stage, done, total, note):
        seen.append(stage)
        if stage == "joint" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_system(BUDGETS["trial"], toolbox, *photos, tmp_path, tell=kill)
    before = len(seen)
    assert any(stage.startswith("tool ") for stage in seen) and "agent" in seen
    card = train_system(BUDGETS["trial"], toolbox, *photos, tmp_path, tell=lambda stage, *rest: seen.append(stage))
    assert set(seen[before:]) == {"joint", "agent again"}
    assert card["toolbox"] == toolbox
    tools = cnn_toolbox(toolbox, tmp_path / "joint")
    assert tools.names == NAMES and load_agent(tmp_path / "toolchain.safetensors", toolbox=tools).max_steps == 3
