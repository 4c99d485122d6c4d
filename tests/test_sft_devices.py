"""Training in two processes, which is what two GPUs are to it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scenery import write_scenes

from restoration_env.errors import InvalidArgument
from restoration_env.files import read_weights, save_weights
from restoration_env.sft.conditioning import CATEGORIES
from restoration_env.sft.generator import SFTNet
from restoration_env.sft.runs import make_fabric
from restoration_env.sft.segmenter import LiteSegmenter


@pytest.mark.long
def test_two_processes_train_one_network(tmp_path):
    scenes = write_scenes(tmp_path / "scenes", count=30)
    card = {"network": "lite", "categories": list(CATEGORIES)}
    save_weights(tmp_path / "eyes.safetensors", LiteSegmenter().state_dict(), card)
    plain = SFTNet(width=8, blocks=1, conditioning="none")
    shape = {"upsampling": "nearest", "width": 8, "blocks": 1, "conditioning": "none", "on_bicubic": False}
    save_weights(tmp_path / "start.safetensors", plain.state_dict(), {"name": "start", "stage": "pixel", **shape})
    words = f"""train sft --scenes {scenes} --images {scenes / "images"} --segmenter {tmp_path / "eyes.safetensors"}
        --out {tmp_path} --stage sft --start {tmp_path / "start.safetensors"} --width 8 --blocks 1 --perceptual alex
        --discriminator-width 4 --iterations 3 --evaluate-every 2 --batch 2 --crop 64 --device cpu --devices 2
        --threads 1 --stop-after 60"""
    program = str(Path(sys.executable).parent / "restoration-env")
    done = subprocess.run([program, *words.split()], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    tensors, card = read_weights(tmp_path / "sft-sft.safetensors")
    assert card["iterations_done"] == 3
    assert all(bool(torch.isfinite(value).all()) for value in tensors.values())


def test_devices_that_are_not_there_are_refused():
    with pytest.raises(InvalidArgument, match="device must be one of auto, cpu, cuda"):
        make_fabric("tpu")
    with pytest.raises(InvalidArgument, match="devices must be at least 1"):
        make_fabric("cpu", 0)
    with pytest.raises(InvalidArgument, match="precision must be one of"):
        make_fabric("cpu", 1, "float16")
    if not torch.cuda.is_available():
        with pytest.raises(InvalidArgument, match="device must be"):
            make_fabric("cuda")
