"""Features that need no weights: the layout of an image, and the resize in front of published networks."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fewstep.core.keyed import Key
from fewstep.features.layout import WIDTH, Layout, layout
from fewstep.features.network import FeatureNetwork
from fewstep.features.resizing import resize, resize_uint8


def images(count: int, height: int, width: int | None = None) -> Tensor:
    """Uniform noise in [-1, 1]."""
    width = width or height
    uniform = Key(0, "test/images").uniform(range(count), 3 * height * width)
    return torch.from_numpy(uniform).float().reshape(count, 3, height, width) * 2 - 1


def square_at(top: int, left: int) -> Tensor:
    """A white square of side 8 on black, `[1, 3, 32, 32]`."""
    x = torch.full((1, 3, 32, 32), -1.0)
    x[..., top : top + 8, left : left + 8] = 1
    return x


def test_layout_is_the_mean_colour_of_each_cell() -> None:
    x = images(2, 24, 40)
    cells = [[x[..., 3 * i : 3 * i + 3, 5 * j : 5 * j + 5].mean((2, 3)) for j in range(8)] for i in range(8)]
    expected = torch.stack([torch.stack(row, -1) for row in cells], -2)
    torch.testing.assert_close(layout(x), expected.flatten(1))
    torch.testing.assert_close(layout(images(2, 8)), images(2, 8).flatten(1))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (30, 50), (4, 4), (1, 9)])
def test_layout_has_one_width_at_any_size(height: int, width: int) -> None:
    x = images(3, height, width)
    assert layout(x).shape == (3, WIDTH)
    torch.testing.assert_close(layout(x)[1:2], layout(x[1:2]))
    grey = torch.full((1, 3, height, width), 0.25)
    torch.testing.assert_close(layout(grey), torch.full((1, WIDTH), 0.25))


def test_layout_sees_position_and_nothing_finer_than_a_cell() -> None:
    top_left, bottom_right = layout(square_at(4, 4)), layout(square_at(20, 20))
    # Four white cells have moved: eight cells differ by 2 in three colours.
    torch.testing.assert_close((top_left - bottom_right).square().sum(), torch.tensor(8 * 3 * 2.0**2))
    x = square_at(5, 6)
    mirrored = x.reshape(1, 3, 8, 4, 32).flip(3).reshape(1, 3, 32, 32)  # within each cell
    assert not torch.equal(mirrored, x)
    torch.testing.assert_close(layout(mirrored), layout(x))


def test_layout_is_a_feature_network() -> None:
    network: FeatureNetwork = Layout()
    x = images(2, 32).requires_grad_()
    assert (network.name, network.kernel) == ("layout", "polynomial")
    assert network.to(torch.device("cpu")) is network
    assert torch.equal(network.features(x), layout(x))
    (cells,) = network.maps(x)
    assert cells.shape == (2, 3, 8, 8)
    cells.square().sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None and x.grad.abs().min() > 0


def levels(side: int) -> np.ndarray:
    """Saturated noise and a hard edge, uint8 `[side, side, 3]`: overshoot and ties included."""
    noise = (images(1, side)[0].permute(1, 2, 0).numpy() * 127.5 + 127.5).astype(np.uint8)
    noise[: side // 2, : side // 2] = 0
    noise[side // 2 :, side // 2 :] = 255
    return noise


@pytest.mark.parametrize(
    ("before", "after"), [(32, 224), (32, 336), (28, 224), (64, 28), (512, 224), (500, 224), (224, 224)]
)
def test_resize_is_pillows_to_the_last_bit(before: int, after: int) -> None:
    image = levels(before)
    expected = np.asarray(Image.fromarray(image).resize((after, after), Image.Resampling.BICUBIC))
    resized = resize_uint8(torch.from_numpy(image).permute(2, 0, 1)[None], after)
    assert np.array_equal(resized[0].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(("height", "width", "side"), [(32, 32, 224), (64, 40, 28), (500, 300, 224)])
def test_resize_without_rounding_is_pillows_on_floats(height: int, width: int, side: int) -> None:
    x = images(1, height, width).requires_grad_()
    resized = resize(x, side)
    for channel, channel_after in zip(x.detach()[0], resized.detach()[0], strict=True):
        image = Image.fromarray(channel.numpy()).resize((side, side), Image.Resampling.BICUBIC)
        torch.testing.assert_close(channel_after, torch.from_numpy(np.array(image)), atol=1e-5, rtol=0)
    resized.sum().backward()  # type: ignore[no-untyped-call]
    # Resizing conserves the mean, so every pixel has a share in it.
    assert x.grad is not None
    torch.testing.assert_close(x.grad.sum(), torch.tensor(3.0 * side * side), rtol=1e-4, atol=0)
