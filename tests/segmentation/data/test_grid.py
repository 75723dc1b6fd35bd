"""Resampling to the grid and back on drawn discs, crops and pads; intensity normalisation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spcl_fast.segmentation.data.grid import (
    Grid,
    covered,
    from_grid,
    image_to_grid,
    intensity_range,
    normalize,
    slices_to_grid,
    to_grid,
)


def disc(shape, spacing_mm, centre_mm, radius_mm):
    """(1, H, W) uint8 disc; the centre is relative to the middle of the slice."""
    (H, W), (_, dy, dx) = shape, spacing_mm
    y = (torch.arange(H) - (H - 1) / 2) * dy - centre_mm[0]
    x = (torch.arange(W) - (W - 1) / 2) * dx - centre_mm[1]
    return (y[:, None] ** 2 + x[None, :] ** 2 <= radius_mm**2).to(torch.uint8)[None]


def one_hot(labels, num_classes=2):
    return torch.nn.functional.one_hot(labels.long(), num_classes).permute(0, 3, 1, 2).float()


def dice(a, b):
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def centroid(mask):
    return torch.nonzero(mask).double().mean(0)


# real ACDC extremes (ragged, tall, wide, anisotropic pixels), both parities of H, W and size,
# coarser and finer grids; the centre lies off the middle so that a mirrored axis would show
@pytest.mark.parametrize(
    ("shape", "spacing_mm", "grid"),
    [
        ((216, 256), (10.0, 1.5, 1.5), Grid(128, 1.5)),
        ((216, 256), (10.0, 1.5, 1.5), Grid(97, 2.0)),
        ((154, 428), (5.0, 0.7, 0.7), Grid(160, 1.0)),
        ((154, 428), (5.0, 1.9, 1.9), Grid(129, 1.5)),
        ((155, 201), (8.0, 1.9, 1.2), Grid(128, 1.5)),
        ((428, 154), (8.0, 0.7, 1.9), Grid(225, 0.9)),
        ((101, 100), (8.0, 1.5, 1.5), Grid(224, 1.5)),
    ],
)
def test_disc_round_trip(shape, spacing_mm, grid):
    mask = disc(shape, spacing_mm, centre_mm=(11.0, -17.0), radius_mm=25.0)
    small = to_grid(mask, spacing_mm, grid, labels=True)
    assert small.shape == (1, grid.size, grid.size)
    assert small.dtype == torch.uint8
    area = float(small.sum()) * grid.spacing_mm**2
    assert area == pytest.approx(torch.pi * 25.0**2, rel=0.03)
    middle = (centroid(small[0]) - (grid.size - 1) / 2) * grid.spacing_mm
    assert torch.allclose(middle, torch.tensor([11.0, -17.0]).double(), atol=grid.spacing_mm)
    back = from_grid(one_hot(small), shape, spacing_mm, grid).argmax(1)
    assert back.shape == mask.shape
    assert dice(back.bool(), mask.bool()) > 0.97
    assert (centroid(back[0]) - centroid(mask[0])).abs().max() < 0.6


# any size and spacing: no drift between the two directions, whatever rounding does
@given(
    H=st.integers(60, 140),
    W=st.integers(60, 140),
    dy=st.floats(0.7, 1.9),
    dx=st.floats(0.7, 1.9),
    size=st.integers(120, 140),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_no_drift(H, W, dy, dx, size):
    grid, spacing_mm = Grid(size, 1.0), (10.0, dy, dx)
    mask = disc((H, W), spacing_mm, centre_mm=(4.0, -6.0), radius_mm=14.0)
    back = from_grid(
        one_hot(to_grid(mask, spacing_mm, grid, labels=True)), (H, W), spacing_mm, grid
    )
    moved = centroid(back.argmax(1)[0]) - centroid(mask[0])
    assert moved.abs().max() < 0.6


def test_image_and_labels_share_geometry():
    mask = disc((216, 256), (10.0, 1.5, 1.5), (5.0, 9.0), 30.0)
    grid = Grid(64, 3.0)
    image = to_grid(mask.float(), (10.0, 1.5, 1.5), grid)
    labels = to_grid(mask, (10.0, 1.5, 1.5), grid, labels=True)
    assert image.dtype == torch.float32
    assert dice(image[0] > 0.5, labels[0].bool()) > 0.97


def test_same_spacing_is_a_plain_crop_or_pad():
    volume = torch.arange(2 * 5 * 6).view(2, 5, 6).float()
    spacing_mm = (10.0, 1.5, 1.5)
    padded = to_grid(volume, spacing_mm, Grid(8, 1.5))
    assert torch.equal(padded[:, 1:6, 1:7], volume)
    assert padded.sum() == volume.sum()
    cropped = to_grid(volume, spacing_mm, Grid(4, 1.5))
    assert torch.equal(cropped, volume[:, 0:4, 1:5]) or torch.equal(cropped, volume[:, 1:5, 1:5])


def test_slices_do_not_mix():
    volume = torch.rand(3, 50, 40, generator=torch.Generator().manual_seed(0))
    together = to_grid(volume, (10.0, 1.5, 1.2), Grid(32, 2.0))
    for i in range(3):
        alone = to_grid(volume[i : i + 1], (10.0, 1.5, 1.2), Grid(32, 2.0))
        assert torch.equal(together[i], alone[0])


def test_background_wins_outside_the_grid():
    grid, spacing_mm, shape = Grid(20, 1.5), (10.0, 1.5, 1.5), (41, 50)
    logits = torch.zeros(2, 3, 20, 20)
    logits[:, 2] = 5.0
    back = from_grid(logits, shape, spacing_mm, grid)
    inside = covered(shape, spacing_mm, grid)
    assert inside.sum() == 400
    assert torch.equal(back.argmax(1), torch.where(inside, 2, 0).expand(2, -1, -1))
    # the edge of the grid is not blurred by what lies outside
    assert torch.equal(back[:, 2][:, inside], torch.full((2, 400), 5.0))
    assert back.softmax(1)[:, 0][:, ~inside].min() == 1.0
    assert torch.isfinite(back.half()).all()


def test_grid_larger_than_the_volume_covers_it():
    assert covered((41, 50), (10.0, 1.5, 1.5), Grid(64, 1.5)).all()


# odd and even leftovers, cropped rows with padded columns: one impulse a slice at every pixel
@pytest.mark.parametrize("shape", [(9, 12), (8, 11), (12, 4), (5, 5)])
@pytest.mark.parametrize("size", [4, 5, 7])
def test_covered_is_what_to_grid_keeps(shape, size):
    H, W = shape
    grid, spacing_mm = Grid(size, 2.0), (8.0, 2.0, 2.0)
    kept = to_grid(torch.eye(H * W).view(H * W, H, W), spacing_mm, grid).sum((1, 2))
    assert torch.equal(covered(shape, spacing_mm, grid), kept.view(H, W) > 0)


def test_from_grid_is_differentiable():
    logits = torch.randn(1, 2, 16, 16, requires_grad=True)
    from_grid(logits, (20, 24), (8.0, 1.0, 1.0), Grid(16, 1.5)).sum().backward()
    assert logits.grad is not None
    assert float(logits.grad.abs().sum()) > 0


def test_percentiles():
    values = torch.arange(1001).float().view(1, 1, 1001)[..., torch.randperm(1001)]
    result = normalize(values)
    assert torch.equal(result, ((values - 10) / 980).clamp(0, 1))
    assert result.min() == 0
    assert result.max() == 1


# constant at either sign: zeros; nearly constant: minimum to maximum instead of equal percentiles
def test_degenerate_volumes():
    assert torch.equal(normalize(torch.full((2, 3, 4), 7.0)), torch.zeros(2, 3, 4))
    assert torch.equal(normalize(torch.full((2, 3, 4), -7.0)), torch.zeros(2, 3, 4))
    assert torch.equal(normalize(torch.zeros(1, 1, 1)), torch.zeros(1, 1, 1))
    spike = torch.zeros(1, 100, 100)
    spike[0, 0, 0] = 5.0
    assert torch.equal(normalize(spike), spike / 5.0)


# NIfTI's and DICOM's paddings, float32's ends and other "no data" of tools, at either end or both
@pytest.mark.parametrize(
    "fills",
    [
        *((-32768.0,), (-3.4e38,), (3e38,), (32767.0,), (-9999.0,)),
        *((-32768.0, 32767.0), (-3.4e38, -32768.0), (-1e20, 3.4e38)),
    ],
)
@pytest.mark.parametrize("share", [0.02, 0.2, 0.6])
def test_fill_does_not_count(fills, share):
    body = torch.arange(1001).float()[torch.randperm(1001)]
    count = int(share / (1 - share) * 1001 / len(fills)) + 1
    values = torch.cat([body, *(torch.full((count,), fill) for fill in fills)]).view(1, 1, -1)
    result = normalize(values).flatten()
    assert torch.equal(result[:1001], ((body - 10) / 980).clamp(0, 1))
    for number, fill in enumerate(fills):
        part = result[1001 + number * count :][:count]
        assert torch.equal(part, torch.full((count,), float(fill > 0)))
    assert intensity_range(values).num_fill == count * len(fills)


# a dark background, a saturated end, CT with padding, a binary image with a few values between
@pytest.mark.parametrize(
    "values",
    [
        torch.cat([torch.zeros(900), torch.arange(200, 1300).float()]),
        torch.cat([torch.arange(1000).float(), torch.full((300,), 1200.0)]),
        torch.cat([torch.full((300,), -3024.0), torch.arange(-1024, 1500).float()]),
        torch.cat([torch.zeros(900), torch.full((900,), 1000.0), torch.arange(499, 502).float()]),
        torch.cat([torch.zeros(900), torch.full((100,), 7.0)]),
    ],
)
def test_what_is_no_fill(values):
    window = intensity_range(values)
    assert window.num_fill == 0
    n = len(values)
    ranks = [1 + round(share * (n - 1)) for share in (0.01, 0.99)]
    assert window.low == values.kthvalue(ranks[0]).values
    assert window.high == values.kthvalue(ranks[1]).values


def test_range_beyond_float32():
    both = torch.full((4, 20, 20), -3e38)
    both[:, 5:15] = 3e38
    assert torch.equal(normalize(both), (both > 0).float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_normalize_keeps_the_type(dtype):
    values = torch.arange(201).to(dtype).view(1, 3, 67)
    result = normalize(values)
    assert torch.equal(result, ((values - 2) / 196).clamp(0, 1))
    assert result.dtype == dtype


def test_slices_of_a_volume_are_those_of_the_whole():
    volume, grid = torch.randn(5, 21, 30), Grid(16, 2.0)
    whole = image_to_grid(volume, (8.0, 1.5, 1.5), grid)
    some = slices_to_grid(volume[3:], intensity_range(volume), (8.0, 1.5, 1.5), grid)
    assert torch.equal(some, whole[3:])


def test_errors():
    with pytest.raises(ValueError, match="size must be a positive"):
        Grid(0, 1.0)
    with pytest.raises(ValueError, match="spacing_mm must be positive"):
        Grid(64, 0.0)
    with pytest.raises(ValueError, match=r"logits must be \(S, K, 16, 16\)"):
        from_grid(torch.zeros(1, 2, 15, 16), (20, 24), (8.0, 1.0, 1.0), Grid(16, 1.5))
