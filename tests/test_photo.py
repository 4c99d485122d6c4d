"""Photographs of any size: no seams, the agent's decision, files kept whole."""

import io
import threading

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image, ImageCms
from scripted import quick, scripted_agent

import restoration_env
from restoration_env.agents.agent import WEIGHTS, save_agent
from restoration_env.agents.photo import restore, restore_file
from restoration_env.errors import InvalidArgument, UnreadableImage
from restoration_env.photos import read_photo
from restoration_env.tiling import _after_each_tool, _tiles, apply_tools
from restoration_env.toolbox import Tool
from restoration_env.tools.networks import NETWORKS, build_network

CHAIN = ("wide", "narrow", "brighter")
shipped = pytest.mark.skipif(
    not (WEIGHTS / "toolchain.safetensors").is_file(), reason="the agent's weights are not in the checkout"
)


def photograph(height: int = 150, width: int = 201) -> np.ndarray:
    return np.ascontiguousarray(skimage.data.astronaut()[:height, 100 : 100 + width])


def in_one_piece(image: np.ndarray, tools) -> list[torch.Tensor]:
    """Each tool applied to the whole image, float (3, H, W)."""
    batch, results = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255, []
    with torch.no_grad():
        for tool in tools:
            batch = tool(batch)
            results.append(batch[0])
    return results


@pytest.mark.parametrize(("shape", "side"), [((150, 201), 64), ((16, 300), 50), ((65, 64), 64), ((40, 40), 7)])
def test_tiles_have_no_seams(shape, side) -> None:
    image, toolbox = photograph(*shape), quick()
    tools = [toolbox[name] for name in CHAIN]
    whole = in_one_piece(image, tools)
    assembled = [torch.full((3, *shape), torch.nan) for _ in tools]
    for rows, columns in _tiles(shape, side):
        for step, pixels in enumerate(_after_each_tool(image, tools, rows, columns, "cpu")):
            assert assembled[step][:, rows, columns].isnan().all()  # no pixel is made twice
            assembled[step][:, rows, columns] = pixels
    for one, other in zip(assembled, whole, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=0)
    frames = apply_tools(image, tools, tile=side, keep_frames=True)
    for frame, other in zip(frames, whole, strict=True):
        rounded = (other * 255).round().clamp(0, 255).permute(1, 2, 0).numpy()
        assert np.abs(frame - rounded).max() <= 1
        assert (frame != rounded).mean() < 1e-3
    (last,) = apply_tools(image, tools, tile=side)
    np.testing.assert_array_equal(last, frames[-1])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_halo_of_the_twelve_tools_is_right(name) -> None:
    torch.manual_seed(0)
    network = build_network(name).requires_grad_(False)
    for parameter in network.parameters():
        parameter *= 1.2  # so that what lies at a border matters
    image, tools = photograph(101, 118), [Tool(name, "", network, halo=network.halo, grid=network.grid)] * 2
    whole = in_one_piece(image, tools)[-1]
    assembled = torch.empty_like(whole)
    for rows, columns in _tiles((101, 118), 25):
        *_, assembled[:, rows, columns] = _after_each_tool(image, tools, rows, columns, "cpu")
    torch.testing.assert_close(assembled, whole, atol=2e-5, rtol=0)


def test_a_smaller_halo_would_leave_seams() -> None:
    """The test above would see a margin that is one pixel too narrow."""
    image, tool = photograph(100, 100), quick()["wide"]
    narrow = Tool("narrow", "", tool.function, halo=tool.halo - 1)
    (right,), (wrong,) = (apply_tools(image, [each], tile=50) for each in (tool, narrow))
    assert (right != wrong).any()


def test_the_tiles_of_a_tool_are_small() -> None:
    seen, calls = [], []

    def look(images: torch.Tensor) -> torch.Tensor:
        seen.append(images.shape)
        return images

    apply_tools(
        photograph(400, 400),
        [Tool("look", "", look, halo=8)],
        tile=64,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert len(seen) == 49 and max(max(shape[-2:]) for shape in seen) <= 64 + 16
    assert calls == [(i, 49) for i in range(1, 50)]


@pytest.mark.parametrize("bad", [np.zeros((20, 20)), np.zeros((20, 20), np.uint8), "image", None])
def test_tiling_refuses_what_is_no_image(bad) -> None:
    with pytest.raises(InvalidArgument, match="image must be"):
        apply_tools(bad, [])


@pytest.mark.parametrize("chain", [(), ("wide",), CHAIN])
def test_the_agents_toolchain_is_applied(chain) -> None:
    image = photograph()
    agent = scripted_agent(chain)
    result = restore(image, agent)
    assert result.toolchain == chain
    assert len(result.frames) == len(chain) + 1
    assert all(frame.shape == image.shape and frame.dtype == np.uint8 for frame in result.frames)
    np.testing.assert_array_equal(result.frames[0], image)
    np.testing.assert_array_equal(result.frames[-1], result.image)
    assert result.q_values.shape == (min(3, len(chain) + 1), len(agent.toolbox) + 1)
    whole = in_one_piece(image, [agent.toolbox[name] for name in chain])
    for frame, other in zip(result.frames[1:], whole, strict=True):
        assert np.abs(frame - (other * 255).clamp(0, 255).permute(1, 2, 0).numpy()).max() <= 1
    assert restore(image, agent, keep_frames=False).frames == ()
    np.testing.assert_array_equal(restore(image, agent, keep_frames=False).image, result.image)


def test_a_patch_is_restored_as_the_agent_restores_it() -> None:
    torch.manual_seed(3)
    agent = scripted_agent(CHAIN)
    for parameter in agent.network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # now what it sees matters
    for left in range(0, 400, 100):
        image = np.ascontiguousarray(skimage.data.astronaut()[200:263, left : left + 63])
        one = restore(image, agent)
        other = agent.restore(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
        assert one.toolchain == tuple(name for name in other.toolchains()[0] if name != "stop")
        assert np.abs(one.image - other.images[0].permute(1, 2, 0).numpy() * 255).max() <= 1


def test_the_decision_is_the_patches_mean() -> None:
    torch.manual_seed(0)
    agent = scripted_agent(())
    for parameter in agent.network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    image = torch.from_numpy(photograph(300, 400)).permute(2, 0, 1)
    patches = agent.patches(image[None])
    assert patches.shape == (64, 3, 63, 63)
    actions, q_values = agent.decide(image)
    q, _ = agent.network(patches, torch.full((64,), 4), agent.network.initial_state(64))
    torch.testing.assert_close(q_values[0], q.mean(0))
    assert actions[0] == int(q.mean(0).argmax())


@pytest.mark.parametrize("shape", [(16, 16), (16, 600), (62, 64), (63, 63), (300, 30)])
def test_sizes(shape) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    result = restore(image, scripted_agent(("narrow",)))
    assert result.image.shape == image.shape and result.toolchain == ("narrow",)


def test_grey_in_grey_out() -> None:
    image = photograph()[..., 0]
    result = restore(image, scripted_agent(("redder",)))
    assert result.image.shape == (*image.shape, 3)
    for frame in result.frames:
        assert (frame == frame[..., :1]).all()
    np.testing.assert_array_equal(result.frames[0][..., 0], image)
    assert (result.image[..., 0] != image).any()


def test_the_callers_array_is_left_alone() -> None:
    image = photograph()
    image.flags.writeable = False
    result = restore(image[::-1, ::-1], scripted_agent(()))
    assert not np.shares_memory(result.image, image) and result.image.flags.writeable
    np.testing.assert_array_equal(result.image, image[::-1, ::-1])


@pytest.mark.parametrize(
    "bad",
    [
        photograph() / 255,
        np.full((20, 20, 3), np.nan),
        np.zeros((20, 20, 4), np.uint8),
        np.zeros((20, 20, 1), np.uint8),
        np.zeros((2, 20, 20, 3), np.uint8),
        np.zeros(20, np.uint8),
        np.zeros((15, 20, 3), np.uint8),
        np.zeros((0, 20, 3), np.uint8),
        np.zeros((20, 20, 3), np.int64),
        torch.zeros(20, 20, 3, dtype=torch.uint8),
        [[0]],
        None,
    ],
)
def test_what_is_no_photograph_is_refused(bad) -> None:
    with pytest.raises(InvalidArgument, match=r"^photo must be"):
        restore(bad, scripted_agent(()))


def test_unknown_agents_are_refused(tmp_path) -> None:
    with pytest.raises(InvalidArgument, match="agent must be one of"):
        restore(photograph(), "nobody")
    with pytest.raises(InvalidArgument, match="weights"):
        restore(photograph(), tmp_path / "no.safetensors")
    with pytest.raises(InvalidArgument, match="agent must be"):
        restore(photograph(), 3)
    with pytest.raises(UnreadableImage, match="no such file"):
        restore(tmp_path / "no.png", scripted_agent(()))


def test_an_agent_from_a_file_is_loaded_once_and_again_when_it_changes(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(restoration_env.registry._TOOLBOXES, "quick", "scripted:quick")
    path = tmp_path / "agent.safetensors"
    save_agent(path, scripted_agent(("wide",)), {})
    assert restore(photograph(), path).toolchain == ("wide",)
    save_agent(path, scripted_agent(("brighter",)), {})
    assert restore(photograph(), str(path)).toolchain == ("brighter",)
    with pytest.raises(InvalidArgument, match="precision"):
        restore(photograph(), path, precision="float8")
    with pytest.raises(InvalidArgument, match="device"):
        restore(photograph(), path, device="abacus")
    half = restore(photograph(), path, precision="bfloat16").image.astype(int)
    assert np.abs(half - restore(photograph(), path).image).max() <= 2


def test_threads_do_not_disturb_each_other() -> None:
    agent, results = scripted_agent(CHAIN), {}
    sizes = [(40, 40), (63, 90), (150, 200), (70, 70)]

    def work(size: tuple[int, int]) -> None:
        results[size] = restore(photograph(*size), agent)

    threads = [threading.Thread(target=work, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for size in sizes:
        alone = restore(photograph(*size), agent)
        assert results[size].toolchain == CHAIN
        assert np.abs(results[size].image.astype(int) - alone.image).max() <= 1


def test_a_file_keeps_all_that_is_not_pixels(tmp_path) -> None:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112], exif[271] = 6, "a camera"
    pixels = photograph(60, 90)
    alpha = np.linspace(0, 255, pixels[..., 0].size).astype(np.uint8).reshape(60, 90)
    picture = Image.fromarray(np.dstack([pixels, alpha]))
    picture.save(tmp_path / "in.png", icc_profile=icc, exif=exif)
    result = restore_file(tmp_path / "in.png", tmp_path / "deep/er/out.png", scripted_agent(("brighter",)))
    back = read_photo(tmp_path / "deep/er/out.png")
    assert back.rgb.shape == (90, 60, 3)  # upright
    np.testing.assert_array_equal(back.rgb, result.image)
    np.testing.assert_array_equal(back.rgb, np.clip(np.rot90(pixels, -1).astype(int) + 8, 0, 255))
    np.testing.assert_array_equal(back.alpha, np.rot90(alpha, -1))
    assert back.icc_profile == icc
    with Image.open(tmp_path / "deep/er/out.png") as file:
        assert file.getexif()[0x0112] == 1 and file.getexif()[271] == "a camera"
    assert [path.name for path in (tmp_path / "deep/er").iterdir()] == ["out.png"]


def test_a_grey_file_stays_grey(tmp_path) -> None:
    Image.fromarray(photograph()[..., 0]).save(tmp_path / "in.jpg")
    restore_file(tmp_path / "in.jpg", tmp_path / "out.png", scripted_agent(("redder",)))
    with Image.open(tmp_path / "out.png") as file:
        assert file.mode == "L"


def test_targets_are_refused_before_any_work(tmp_path) -> None:
    source = tmp_path / "in.png"
    Image.fromarray(photograph()).save(source)
    before = source.read_bytes()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(source)
    targets = ["in.png", "link.png", "out.gif", "out", "folder.png", "in.png/out.png"]
    for target in targets:
        with pytest.raises(InvalidArgument, match=r"^target must be"):
            restore_file(source, tmp_path / target, "no such agent is asked for")
    assert source.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.png", "in.png", "link.png"]
    restore_file(source, source, scripted_agent(("brighter",)), overwrite=True)
    assert np.array_equal(read_photo(source).rgb, np.clip(photograph().astype(int) + 8, 0, 255))


def test_a_failure_leaves_nothing(tmp_path, monkeypatch) -> None:
    source = tmp_path / "in.png"
    Image.fromarray(photograph()).save(source)

    def fail(self, fp, *args, **options):
        with open(fp, "wb") as file:
            file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space"):
        restore_file(source, tmp_path / "out.png", scripted_agent(()))
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]


@shipped
def test_the_shipped_agent_restores_a_damaged_photograph() -> None:
    clean = skimage.data.chelsea()[:256, :256]
    noisy = clean + np.random.default_rng(0).normal(0, 25, clean.shape)
    damaged = np.clip(noisy.round(), 0, 255).astype(np.uint8)
    result = restoration_env.restore(damaged)
    errors = [np.square(image.astype(float) - clean).mean() for image in (damaged, result.image)]
    assert 10 * np.log10(errors[0] / errors[1]) > 3.0
    assert any(name.startswith("denoise") for name in result.toolchain)


@shipped
def test_the_shipped_agent_reads_bytes_that_a_camera_wrote(tmp_path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(skimage.data.coffee()[:200, :250]).save(buffer, "JPEG", quality=12)
    (tmp_path / "in.jpg").write_bytes(buffer.getvalue())
    result = restoration_env.restore(str(tmp_path / "in.jpg"))
    assert result.image.shape == (200, 250, 3) and len(result.toolchain) <= 3
