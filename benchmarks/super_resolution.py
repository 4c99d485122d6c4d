"""The leaderboard of super-resolution by four: PSNR, SSIM, LPIPS, size and time, on sets of photographs.

What is measured is the enlarged photograph as it would be saved: clipped and rounded to eight bits. Two kinds of PSNR:

- ``psnr_rgb``: over height, width and RGB, no border left out, as everywhere in this project;
- ``psnr_luma``: of the Y of BT.601 with four pixels left out on each side, as super-resolution papers have it.

SSIM is that of `restoration_env.metrics` on RGB, LPIPS that of AlexNet; both of the whole photograph. Time is that of
the processor's cores together, or of the clock on a GPU, for a million pixels of the enlarged photograph; the median.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from restoration_env.benchmarks.super_resolution_data import Pairs
from restoration_env.benchmarks.super_resolvers import SPECS, build_resolver, luma
from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.files import read_weights
from restoration_env.metrics import psnr, ssim
from restoration_env.perceptual import lpips
from restoration_env.pixels import eight_bit
from restoration_env.registry import find_target
from restoration_env.resizing import SCALE, bicubic
from restoration_env.sft.segmenter import WEIGHTS as SFT_WEIGHTS
from restoration_env.sft.super_resolver import load_super_resolver, shipped

WEIGHTS = Path(__file__).parent / "weights" / "sr"
Row = dict[str, Any]


@dataclass(frozen=True)
class Resolver:
    """A super-resolver on the leaderboard.

    Attributes:
        name: what commands call it.
        title: how tables name it.
        function: float RGB (N, 3, h, w) in [0, 1] to (N, 3, 4h, 4w).
        parameters: of the network; 0 for none.
        card: of its weights.
    """

    name: str
    title: str
    function: Callable[[Tensor], Tensor]
    parameters: int = 0
    card: dict[str, Any] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Enlarge float (N, 3, h, w) by four.

        Raises:
            InvalidArgument: if what comes out is not four times as large.
        """
        made = self.function(images).float()
        wanted = (*images.shape[:2], SCALE * images.shape[2], SCALE * images.shape[3])
        if made.shape != wanted:
            expected = f"a function that enlarges by four, to {tuple(wanted)}"
            raise InvalidArgument(f"super-resolver {self.name!r}", expected, tuple(made.shape))
        return made


def load_resolver(
    name: str, folder: str | Path = WEIGHTS, *, published: str | Path | None = None, device: torch.device | str = "cpu"
) -> Resolver:
    """A super-resolver by name.

    Args:
        name: "bicubic"; a name of `restoration_env.benchmarks.super_resolvers.SPECS`; an SFT-Net that ships, or the
            file of one that ``restoration-env train sft`` wrote; or the ``"module:callable"`` of a function as in
            `Resolver`.
        folder: holds ``<name>.safetensors`` with its card.
        published: a file of weights to take instead; see `load_published`.
        device: where it computes.

    Raises:
        UnknownName: if there is none of this name.
        InvalidArgument: if its weights are not there or are of another network.
    """
    if name == "bicubic":
        return Resolver(name, "bicubic", lambda images: bicubic(images, SCALE))
    if ":" in name:
        try:
            function = find_target(name)
        except (ImportError, AttributeError) as error:
            raise InvalidArgument(
                "super-resolver", "the 'module:callable' of a function", f"{name!r}: {error}"
            ) from None
        return Resolver(name, name, function)
    if name in shipped() or name.endswith(".safetensors"):
        sft = load_super_resolver(name, device)
        card = read_weights(name if name.endswith(".safetensors") else SFT_WEIGHTS / f"{name}.safetensors")[1]
        return Resolver(name, f"SFT-Net ({sft.name})", sft, card.get("parameters", 0), card)
    if name not in SPECS:
        raise UnknownName("super-resolver", name, ["bicubic", *SPECS, *shipped(), "module:callable"])
    network: nn.Module = build_resolver(name)
    if published is not None:
        card = {"published": Path(published).name}
        network.load_state_dict(load_published(name, published))
    else:
        tensors, card = read_weights(Path(folder) / f"{name}.safetensors")
        if card.get("network") != name:
            raise InvalidArgument("weights", f"those of {name}", f"{card.get('network')!r} in {folder}")
        network.load_state_dict({key: v.float() if v.is_floating_point() else v for key, v in tensors.items()})
    network = network.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    title = SPECS[name].title + (" (published)" if published is not None else "")
    return Resolver(name, title, network, sum(p.numel() for p in network.parameters()), card)


def load_published(name: str, path: str | Path) -> dict[str, Tensor]:
    """Weights that someone else trained, for a network of the table.

    The file is a state dictionary, ``.safetensors``, or what ``torch.save`` wrote, alone or under "state_dict",
    "params" or "model". Its tensors have either the names that the network here has (``build_resolver(name)
    .state_dict()``), or the same shapes in the same order, which is that of the layers from input to output. Luma
    networks see the Y of BT.601 in [16/255, 235/255], RGB networks RGB in [0, 1].

    Raises:
        InvalidArgument: if the file is no such dictionary.
    """
    from safetensors.torch import load_file

    expected = f"a state dictionary of {name}, by its names or its order of layers"
    held: Any
    try:
        path = Path(path)
        if path.suffix == ".safetensors":
            held = load_file(path)
        else:
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise many kinds for a file that is not their own
        raise InvalidArgument("published weights", expected, f"{path}: {error}") from None
    for key in ("state_dict", "params", "model"):
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            held = held[key]
    wanted = build_resolver(name).state_dict()
    if isinstance(held, dict) and all(isinstance(value, Tensor) for value in held.values()):
        if {key: value.shape for key, value in held.items()} == {key: value.shape for key, value in wanted.items()}:
            return held
        if [value.shape for value in held.values()] == [value.shape for value in wanted.values()]:
            return dict(zip(wanted, held.values(), strict=True))
    raise InvalidArgument("published weights", expected, path)


def measure(
    resolver: Resolver,
    pairs: Pairs,
    *,
    device: torch.device | str = "cpu",
    note: Callable[[str], None] = lambda name: None,
) -> Row:
    """One row: a super-resolver on a set of photographs, means over its images.

    Args:
        resolver: what to measure.
        pairs: on what.
        device: where it computes.
        note: told each photograph's name when it is done.
    """
    values: dict[str, list[float]] = {"psnr_rgb": [], "psnr_luma": [], "ssim": [], "lpips": []}
    speeds = []
    clock = time.process_time if torch.device(device).type == "cpu" else time.perf_counter
    for large, small, name in zip(pairs.large, pairs.small, pairs.names, strict=True):
        before, after = small[None].to(device).float() / 255.0, large[None].to(device).float() / 255.0
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        began = clock()
        made = resolver(before)
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        speeds.append(1000.0 * (clock() - began) / (large.shape[1] * large.shape[2] / 1e6))
        made = eight_bit(made).float() / 255.0
        inner = (..., slice(SCALE, -SCALE), slice(SCALE, -SCALE))
        with torch.no_grad():
            values["psnr_rgb"].append(psnr(made, after).item())
            values["psnr_luma"].append(psnr(luma(made)[inner], luma(after)[inner]).item())
            values["ssim"].append(ssim(made, after).item())
            values["lpips"].append(lpips(made, after).item())
        note(name)
    means = {key: round(statistics.fmean(column), 4) for key, column in values.items()}
    return {**means, "ms_per_megapixel": round(statistics.median(speeds), 1)}


def about(resolver: Resolver) -> Row:
    """What a result file says of a super-resolver apart from its rows."""
    kept = ("patches_seen", "seconds", "converged", "works_on", "sha256", "commit", "published", "data", "command")
    facts = {key: resolver.card[key] for key in kept if key in resolver.card}
    return {"title": resolver.title, "parameters": resolver.parameters, **facts}


def strip_rows(resolvers: Sequence[Resolver], pairs: Pairs, count: int, crop: int = 96) -> list[dict[str, Any]]:
    """The busiest part of some photographs as every super-resolver has it.

    Args:
        resolvers: whose results to show, in order.
        pairs: the photographs; evenly chosen ones are shown.
        count: how many.
        crop: side of the part, in pixels.

    Returns:
        for each photograph its name, the part of the photograph as uint8 (crop, crop, 3), and the parts and PSNR
        (RGB, of the part) of each super-resolver.
    """
    found = []
    for index in sorted({len(pairs) * i // count for i in range(min(count, len(pairs)))}):
        large, small = pairs.large[index], pairs.small[index]
        side = min(crop, *large.shape[-2:]) // SCALE * SCALE
        where = _busiest(large, side)
        clean = large[:, where[0], where[1]]
        parts = []
        for resolver in resolvers:
            made = eight_bit(resolver(small[None].float() / 255.0))[0][:, where[0], where[1]]
            value = psnr(made[None].float() / 255.0, clean[None].float() / 255.0).item()
            parts.append((resolver.title, value, made.permute(1, 2, 0).numpy()))
        found.append({"name": pairs.names[index], "clean": clean.permute(1, 2, 0).numpy(), "parts": parts})
    return found


def _busiest(image: Tensor, side: int) -> tuple[slice, slice]:
    """The square with the largest variance of luma, on a grid of a quarter of its side."""
    grey = luma(image[None].float() / 255.0)
    mean = nn.functional.avg_pool2d(grey, side, side // 4)
    variance = nn.functional.avg_pool2d(grey.square(), side, side // 4) - mean.square()
    row, column = divmod(int(variance.flatten().argmax()), variance.shape[-1])
    return tuple(slice(start * (side // 4), start * (side // 4) + side) for start in (row, column))  # type: ignore[return-value]
