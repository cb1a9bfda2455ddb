"""MobileNet, and the way from weights with folded batch normalisation to weights that can be trained."""

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from emostream.model.errors import RecipeError
from emostream.model.mobilenet import MobileNet, load_pretrained, start_from

STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
WIDTHS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)


@pytest.fixture(scope="session")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights in the layout of YAMNet's, at random: their own size, so that nothing fits by chance."""
    torch.manual_seed(3)
    weights = {"layer1.conv.weight": torch.randn(32, 1, 3, 3) / 3, "layer1.conv.bias": torch.randn(32)}
    for number, (before, after) in enumerate(itertools.pairwise(WIDTHS), start=2):
        weights[f"layer{number}.depthwise.weight"] = torch.randn(before, 1, 3, 3) / 2
        weights[f"layer{number}.depthwise.bias"] = torch.randn(before) / 2
        weights[f"layer{number}.pointwise.weight"] = torch.randn(after, before, 1, 1) * (2 / before) ** 0.5
        weights[f"layer{number}.pointwise.bias"] = torch.randn(after) / 2
    file = tmp_path_factory.mktemp("yamnet") / "folded.safetensors"
    save_file(weights, file)
    return file


def run_folded(file: Path, images: torch.Tensor) -> torch.Tensor:
    """The folded network, written out once more, plainly."""
    from safetensors.torch import load_file

    weights = load_file(file)

    def same(inputs: torch.Tensor, stride: int) -> torch.Tensor:
        rows, columns = (max((-(-size // stride) - 1) * stride + 3 - size, 0) for size in inputs.shape[2:])
        return functional.pad(inputs, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))

    out = functional.conv2d(
        same(images, 2), weights["layer1.conv.weight"], weights["layer1.conv.bias"], stride=2
    ).relu()
    for number, stride in enumerate(STRIDES, start=2):
        kernel, bias = (weights[f"layer{number}.depthwise.{kind}"] for kind in ("weight", "bias"))
        out = functional.conv2d(same(out, stride), kernel, bias, stride=stride, groups=kernel.shape[0]).relu()
        kernel, bias = (weights[f"layer{number}.pointwise.{kind}"] for kind in ("weight", "bias"))
        out = functional.conv2d(out, kernel, bias).relu()
    return out.mean((2, 3))


@pytest.mark.parametrize("channels", [1, 2])
def test_unfolded_weights_compute_what_folded_ones_did(folded: Path, channels: int) -> None:
    torch.manual_seed(4)
    images = torch.randn(8, channels, 96, 64)
    network = MobileNet(channels=channels)
    start_from(network, load_pretrained(str(folded)), images_BKFM=images)
    fresh = torch.randn(4, channels, 128, 64)
    with torch.no_grad():
        ours, theirs = network.eval()(fresh), run_folded(folded, fresh[:, :1])
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


@pytest.mark.parametrize("frames", [96, 384])
def test_folding_changes_no_number(folded: Path, frames: int) -> None:
    torch.manual_seed(6)
    network = MobileNet(channels=2)
    start_from(network, load_pretrained(str(folded)), images_BKFM=torch.randn(8, 2, 96, 64))
    network.train()(torch.randn(8, 2, 96, 64))  # statistics that are not those of the start
    images = torch.randn(3, 2, frames, 64)
    with torch.no_grad():
        before = network.eval()(images)
        for _ in range(2):  # the second time changes nothing
            network.fold()
            torch.testing.assert_close(network(images), before, rtol=1e-4, atol=1e-5 * float(before.abs().max()))
    assert not [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]


def test_unfolded_normalisation_is_at_home_on_what_it_was_measured_on(folded: Path) -> None:
    """In training, batches normalise by themselves: on the measured images that is the same function again."""
    torch.manual_seed(5)
    images = torch.randn(32, 1, 96, 64)
    network = MobileNet(channels=1)
    start_from(network, load_pretrained(str(folded)), images_BKFM=images)
    with torch.no_grad():
        still, moving = network.eval()(images), network.train()(images)
    torch.testing.assert_close(moving, still, rtol=1e-2, atol=1e-2 * float(still.abs().max()))
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_width_multiplier_narrows_every_layer() -> None:
    full, quarter = MobileNet(channels=2), MobileNet(channels=2, width_multiplier=0.25)
    assert (full.width, quarter.width) == (1024, 256)
    assert sum(p.numel() for p in quarter.parameters()) < sum(p.numel() for p in full.parameters()) / 10
    assert quarter.eval()(torch.randn(1, 2, 96, 64)).shape == (1, 256)


def test_imagenet_weights_fill_every_layer() -> None:
    """In timm's names and order, of a width of 0.25; the stem reads three colours."""
    torch.manual_seed(6)
    source = MobileNet(channels=3, width_multiplier=0.25)
    for module in source.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.running_mean)
    theirs: dict[str, torch.Tensor] = {}
    places = [f"blocks.{stage}.{n}" for stage, depth in enumerate((1, 2, 2, 6, 2)) for n in range(depth)]
    for layer, place in zip(source.layers.children(), ["", *places], strict=True):
        names = {"conv": ("conv_stem", "bn1"), "depthwise": ("conv_dw", "bn1"), "pointwise": ("conv_pw", "bn2")}
        for part, (conv, norm) in names.items():
            for key, value in layer.state_dict().items():
                target = conv if key.startswith(f"{part}.") else norm if key.startswith(f"{part}_norm.") else None
                if target is not None:
                    theirs[f"{place}.{target}.{key.rsplit('.', 1)[1]}".lstrip(".")] = value
    network = MobileNet(channels=2, width_multiplier=0.25)
    start_from(network, theirs, images_BKFM=torch.empty(0))
    grey = torch.randn(2, 1, 96, 64)
    with torch.no_grad():
        # A grey picture in three colours is to the source what it is to us in two channels at three halves of its size.
        expected, ours = source.eval()(grey.expand(-1, 3, -1, -1)), network.eval()(1.5 * grey.expand(-1, 2, -1, -1))
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


def test_weights_that_do_not_fit_are_named(folded: Path, tmp_path: Path) -> None:
    images = torch.randn(1, 1, 96, 64)
    with pytest.raises(RecipeError, match="width multiplier"):
        start_from(MobileNet(channels=1, width_multiplier=0.5), load_pretrained(str(folded)), images_BKFM=images)
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(RecipeError, match=r"broken\.safetensors"):
        load_pretrained(str(tmp_path / "broken.safetensors"))
    with pytest.raises(RecipeError, match="nobody"):
        load_pretrained(str(tmp_path / "nobody" / "has" / "this"))
