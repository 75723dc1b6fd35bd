"""Augmentation: exact geometry, images and masks together, intensity range, determinism."""

import math

import pytest
import torch

from spcl_fast.segmentation.data.augment import (
    AugmentConfig,
    affine,
    augment,
    draw_affine,
    jitter_intensity,
    warp,
)

PLAIN = AugmentConfig(
    rotation_deg=0.0,
    flip=False,
    shift=0.0,
    scale=(1.0, 1.0),
    brightness=(1.0, 1.0),
    contrast=(1.0, 1.0),
    gamma=(1.0, 1.0),
)


def matrix(angle=0.0, scale=1.0, shift=(0.0, 0.0), flip=(False, False)):
    def f64(value):
        return torch.tensor([value], dtype=torch.float64)

    return affine(f64(angle), f64(scale), f64(shift), torch.tensor([flip]))


def batch(B=6, H=20, W=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(B, 1, H, W, generator=generator)
    masks = torch.randint(0, 4, (B, H, W), generator=generator, dtype=torch.uint8)
    return images, masks


# exact symmetries of the pixel lattice, odd and even sides; torch.rot90 and flip are the oracle
@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize(
    ("theta", "oracle"),
    [
        (matrix(), lambda x: x),
        (matrix(angle=90.0), lambda x: torch.rot90(x, 1, (-2, -1))),
        (matrix(angle=-90.0), lambda x: torch.rot90(x, -1, (-2, -1))),
        (matrix(angle=180.0), lambda x: torch.rot90(x, 2, (-2, -1))),
        (matrix(flip=(True, False)), lambda x: x.flip(-1)),
        (matrix(flip=(False, True)), lambda x: x.flip(-2)),
        (matrix(flip=(True, True)), lambda x: x.flip(-1, -2)),
    ],
)
def test_exact_symmetries(side, theta, oracle):
    images, masks = batch(1, side, side)
    warped, labels = warp(images, masks, theta)
    assert labels is not None
    torch.testing.assert_close(warped, oracle(images), atol=2e-6, rtol=0)
    assert torch.equal(labels, oracle(masks))


def test_shift_and_scale_of_a_square():
    images = torch.zeros(1, 1, 40, 40)
    images[:, :, 10:20, 15:25] = 1.0
    masks = images[:, 0].to(torch.uint8)
    warped, labels = warp(images, masks, matrix(shift=(0.1, -0.2)))  # sampled 4 right, 8 up
    expected = torch.zeros(1, 40, 40, dtype=torch.uint8)
    expected[:, 18:28, 11:21] = 1
    assert labels is not None
    assert torch.equal(labels, expected)
    torch.testing.assert_close(warped[:, 0], expected.float(), atol=1e-5, rtol=0)
    _, labels = warp(images, masks, matrix(scale=2.0))
    assert labels is not None
    assert int(labels.sum()) == pytest.approx(400, rel=0.06)


def test_rectangular_images_are_rotated_without_shear():
    images = torch.zeros(1, 1, 60, 30)
    images[:, :, 28:32, 5:25] = 1.0  # a bar along x, 20 x 4
    warped, _ = warp(images, None, matrix(angle=90.0))
    expected = torch.zeros(60, 30)
    expected[20:40, 13:17] = 1.0
    torch.testing.assert_close(warped[0, 0], expected, atol=1e-4, rtol=0)


# the bilinear value exceeds .75 or stays below .25 only if the nearest pixel is in or out
@pytest.mark.parametrize("seed", range(5))
def test_masks_follow_images(seed):
    images = torch.zeros(8, 1, 64, 64)
    images[:, :, 12:30, 25:50] = 1.0
    images[:, :, 20:24, 30:33] = 0.0
    masks = images[:, 0].to(torch.uint8) * 3
    config = AugmentConfig(brightness=(1.0, 1.0), contrast=(1.0, 1.0), gamma=(1.0, 1.0))
    warped, labels = augment(images, masks, config, torch.Generator().manual_seed(seed))
    assert labels is not None
    inside = labels == 3
    assert inside[warped[:, 0] > 0.75 + 1e-4].all()
    assert not inside[warped[:, 0] < 0.25 - 1e-4].any()
    assert set(labels.unique().tolist()) == {0, 3}
    assert len({m.numpy().tobytes() for m in labels}) == 8  # each image its own transform


def test_ranges_of_the_draw():
    config = AugmentConfig(rotation_deg=30.0, shift=0.1, scale=(0.8, 1.25))
    theta = draw_affine(4000, config, torch.Generator().manual_seed(0))
    determinant = torch.linalg.det(theta[:, :, :2])
    scale = determinant.abs().rsqrt()
    assert 0.8 <= scale.min() < 0.81
    assert 1.24 < scale.max() <= 1.25
    assert theta[:, :, 2].abs().max() <= 0.2
    assert theta[:, :, 2].abs().max() > 0.195
    assert (determinant < 0).double().mean() == pytest.approx(0.5, abs=0.03)  # exactly one flip
    flip_x = theta[:, 0, 0] < 0
    flip_y = theta[:, 1, 1] < 0
    assert (flip_x & flip_y).double().mean() == pytest.approx(0.25, abs=0.03)
    cos = (theta[:, 0, 0].abs() * scale).clamp(max=1)
    angle = torch.acos(cos) * 180 / math.pi
    assert 29.5 < angle.max() <= 30.0 + 1e-6
    assert angle.mean() == pytest.approx(15.0, abs=0.5)


def test_nothing_happens_without_ranges():
    images, masks = batch()
    out, labels = augment(images, masks, PLAIN, torch.Generator().manual_seed(0))
    torch.testing.assert_close(out, images, atol=2e-6, rtol=0)
    assert labels is not None
    assert torch.equal(labels, masks)


# one of the three at a time, with its range a single value, against the formula
@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("brightness", lambda x: (x * 1.4).clamp(0, 1)),
        ("contrast", lambda x: (x - x.mean((1, 2, 3), True)) * 1.4 + x.mean((1, 2, 3), True)),
        ("gamma", lambda x: x**1.4),
    ],
)
def test_intensity_formula(name, formula):
    images, _ = batch()
    config = AugmentConfig(
        **{n: (1.4, 1.4) if n == name else (1.0, 1.0) for n in ("brightness", "contrast", "gamma")}
    )
    out = jitter_intensity(images, config, torch.Generator().manual_seed(0))
    torch.testing.assert_close(out, formula(images).clamp(0, 1))


def test_intensity_stays_in_range_and_differs_by_image():
    images = torch.rand(1, 1, 16, 16).expand(50, -1, -1, -1)
    out = jitter_intensity(images, AugmentConfig(), torch.Generator().manual_seed(0))
    assert out.min() >= 0
    assert out.max() <= 1
    assert torch.isfinite(out).all()
    assert len(out.mean((1, 2, 3)).unique()) == 50


def test_bitwise_deterministic_and_resumable():
    images, masks = batch()
    runs = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(7)
        augment(images, masks, AugmentConfig(), generator)
        runs.append(augment(images, masks, AugmentConfig(), generator))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] is not None
    assert runs[1][1] is not None
    assert torch.equal(runs[0][1], runs[1][1])
    other = augment(images, masks, AugmentConfig(), torch.Generator().manual_seed(8))
    assert not torch.equal(runs[0][0], other[0])


# the mask's presence does not change the image, and dtypes and inputs are left alone
def test_optional_masks_and_dtypes():
    images, masks = batch()
    kept = images.clone()
    with_masks, labels = augment(images, masks, AugmentConfig(), torch.Generator().manual_seed(7))
    without, none = augment(images, None, AugmentConfig(), torch.Generator().manual_seed(7))
    assert none is None
    assert torch.equal(with_masks, without)
    assert torch.equal(images, kept)
    assert labels is not None
    assert labels.dtype == torch.uint8
    _, long = augment(images, masks.long(), AugmentConfig(), torch.Generator().manual_seed(7))
    assert long is not None
    assert torch.equal(long, labels.long())
    double, _ = augment(images.double(), None, AugmentConfig(), torch.Generator().manual_seed(7))
    assert double.dtype == torch.float64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_same_transform_on_cuda():
    images, masks = batch(16, 64, 64)
    out, labels = augment(images, masks, AugmentConfig(), torch.Generator().manual_seed(7))
    on_gpu, gpu_labels = augment(
        images.cuda(), masks.cuda(), AugmentConfig(), torch.Generator().manual_seed(7)
    )
    torch.testing.assert_close(on_gpu.cpu(), out, atol=1e-4, rtol=1e-4)
    assert labels is not None
    assert gpu_labels is not None
    assert (gpu_labels.cpu() != labels).float().mean() < 1e-3


# a reversed range, a range that reaches zero, a negative magnitude
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (1.1, 0.9)}, "scale must be a range"),
        ({"gamma": (0.0, 1.0)}, "gamma must be a range"),
        ({"rotation_deg": -1.0}, "rotation_deg must not be negative"),
        ({"shift": -0.1}, "shift must not be negative"),
    ],
)
def test_config_errors(options, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**options)
