"""Whole photographs: the agent decides on patches, and the tools it chose are applied tile by tile."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from restoration_env.agents.agent import DEFAULT_AGENT, RestorationAgent, load_agent
from restoration_env.errors import InvalidArgument
from restoration_env.photos import Photo, check_suffix, read_photo, write_photo
from restoration_env.tiling import Progress, apply_tools

SMALLEST = 16  # pixels on the shorter side


@dataclass(frozen=True, eq=False)
class Restoration:
    """What the agent made of a photograph.

    Attributes:
        image: uint8 (H, W, 3), restored.
        toolchain: the tools that were applied, in order; empty if the agent stopped at once.
        frames: uint8 (H, W, 3), the photograph before the first tool and after each; empty unless kept.
        q_values: float32 (steps, actions), the mean Q values before each step; the last action is stop.
    """

    image: np.ndarray
    toolchain: tuple[str, ...]
    frames: tuple[np.ndarray, ...]
    q_values: np.ndarray


def restore(
    photo: str | os.PathLike[str] | np.ndarray,
    agent: str | os.PathLike[str] | RestorationAgent = DEFAULT_AGENT,
    *,
    device: str = "cpu",
    precision: str = "float32",
    backend: str = "torch",
    keep_frames: bool = True,
    progress: Progress | None = None,
) -> Restoration:
    """Restore a photograph of any size from 16x16 pixels on.

    >>> result = restore("photo.jpg")
    >>> result.toolchain
    ('dejpeg-2', 'denoise-1')

    Args:
        photo: the path of an image file, or a uint8 array (H, W, 3) or (H, W).
        agent: an agent that ships in the package, the path of another one's weights, or a loaded one.
        device: where it computes: "cpu", "cuda", "cuda:N" or "auto"; a loaded agent stays where it is.
        precision: of the tools, "float32" or "bfloat16", with OpenVINO also "int8"; a loaded agent keeps its own.
        backend: what computes the tools, "torch" or "openvino" (the extra of that name).
        keep_frames: also return the photograph after each tool.
        progress: called after each tile with the tiles done and their number.

    Raises:
        UnreadableImage: if the path does not lead to a readable image.
        InvalidArgument: for any other array, and for an unknown agent, device or precision.
    """
    seen = check_size(_photo(photo), "photo")
    return _restore(seen, find_agent(agent, device, precision, backend), keep_frames, progress)


def restore_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    agent: str | os.PathLike[str] | RestorationAgent = DEFAULT_AGENT,
    *,
    device: str = "cpu",
    precision: str = "float32",
    backend: str = "torch",
    overwrite: bool = False,
    keep_frames: bool = False,
    progress: Progress | None = None,
) -> Restoration:
    """Restore an image file into another one, with its colour profile, EXIF block and alpha channel.

    Grey photographs stay grey. The target's folder is made if need be; the target is whole or not there.

    Args:
        source: the image file.
        target: where to write; its ending names the format.
        agent: as in `restore`, like the other arguments not named here.
        device: where it computes.
        precision: of the tools.
        backend: what computes them.
        overwrite: replace the target if there is one; without it, it is refused.
        keep_frames: also return the photograph after each tool.
        progress: called after each tile.

    Raises:
        InvalidArgument: as for `restore`, and for a target that cannot be written, before anything is done.
    """
    check_target(target, overwrite=overwrite)
    seen = check_size(read_photo(source), str(source))
    result = _restore(seen, find_agent(agent, device, precision, backend), keep_frames, progress)
    write_photo(dataclasses.replace(seen, rgb=result.image), target)
    return result


def check_target(target: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Refuse a path that cannot be written, or must not be because something is there.

    Raises:
        InvalidArgument: if so.
    """
    path = Path(target)
    check_suffix(path, "target")
    if path.is_dir():
        raise InvalidArgument("target", "the path of a file", f"{str(path)!r}, a folder")
    if path.exists() and not overwrite:
        raise InvalidArgument("target", "a new file unless overwriting is asked for", repr(str(path)))
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InvalidArgument("target", "in a folder that can be written to", repr(str(path)))


def check_size(photo: Photo, argument: str) -> Photo:
    """Refuse a photograph smaller than 16x16 pixels; another one is returned."""
    height, width = photo.rgb.shape[:2]
    if min(height, width) < SMALLEST:
        expected = f"at least {SMALLEST} pixels high and wide"
        raise InvalidArgument(argument, expected, f"{width}x{height}")
    return photo


def find_agent(
    agent: str | os.PathLike[str] | RestorationAgent, device: str, precision: str, backend: str = "torch"
) -> RestorationAgent:
    """An agent by name or path, loaded once and kept; a loaded one is returned as it is."""
    if isinstance(agent, RestorationAgent):
        return agent
    if not isinstance(agent, str | os.PathLike):
        raise InvalidArgument("agent", "a name, a path or a RestorationAgent", type(agent).__name__)
    path = Path(agent)
    return _loaded(str(agent), device, precision, backend, path.stat().st_mtime_ns if path.is_file() else 0)


# The time of change is part of what is asked for, so a changed file is read again.
@lru_cache(maxsize=4)
def _loaded(agent: str, device: str, precision: str, backend: str, changed: int) -> RestorationAgent:
    return load_agent(agent, device=device, precision=precision, backend=backend)


def _photo(photo: str | os.PathLike[str] | np.ndarray) -> Photo:
    if isinstance(photo, str | os.PathLike):
        return read_photo(photo)
    expected = "a path, or a uint8 array of shape (H, W, 3) or (H, W)"
    if not isinstance(photo, np.ndarray):
        raise InvalidArgument("photo", expected, type(photo).__name__)
    if photo.dtype != np.uint8 or photo.shape[2:] not in ((), (3,)) or photo.ndim not in (2, 3):
        raise InvalidArgument("photo", expected, f"{photo.dtype} {photo.shape}")
    grey = photo.ndim == 2
    return Photo(np.repeat(photo[..., None], 3, 2) if grey else photo, grey=grey)


def _restore(photo: Photo, agent: RestorationAgent, keep_frames: bool, progress: Progress | None) -> Restoration:
    image = np.array(photo.rgb)  # the caller's array may change, or be read-only
    actions, q_values = agent.decide(torch.from_numpy(image).permute(2, 0, 1))
    tools = [agent.toolbox.tools[action] for action in actions if action != agent.toolbox.stop]
    frames = apply_tools(image, tools, device=q_values.device, keep_frames=keep_frames, progress=progress) or (image,)
    if photo.grey:
        frames = tuple(_grey(frame) for frame in frames)
    kept = (image, *frames[: len(tools)]) if keep_frames else ()
    names = tuple(tool.name for tool in tools)
    return Restoration(frames[-1], names, kept, q_values.cpu().numpy())


def _grey(rgb: np.ndarray) -> np.ndarray:
    """The luma in all three channels, as a grey file would hold it."""
    return np.repeat(np.array(Image.fromarray(rgb).convert("L"))[..., None], 3, 2)
