"""Random views: what a crop shows, how far colours go, that nothing else changes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caplet_export.random_views import Views, _interpolation, mix_photos, random_views

PLAIN = Views(smallest_crop=1.0, color_jitter=0.0, random_erasing=0.0)
SIZE = 24


def photos(count: int = 200) -> np.ndarray:
    """Noise that is smooth enough to be told where it was cut out."""
    random = np.random.default_rng(0)
    coarse = random.integers(40, 216, (count, 4, 4, 3)).astype(np.float32)
    smooth = jax.image.resize(coarse, (count, SIZE, SIZE, 3), "linear")
    return np.asarray(smooth).round().astype(np.uint8)


def test_interpolation_is_that_of_a_bilinear_resize() -> None:
    row = np.random.default_rng(1).normal(size=SIZE).astype(np.float32)
    whole = _interpolation(jnp.array([0.0]), jnp.array([float(SIZE)]), SIZE)[0]
    np.testing.assert_allclose(whole, np.eye(SIZE), atol=1e-6)
    half = _interpolation(jnp.array([6.0]), jnp.array([12.0]), SIZE)[0] @ row
    centres = 6 + (np.arange(SIZE) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(half, np.interp(centres, np.arange(SIZE), row), atol=1e-5)


def test_the_largest_crop_without_tint_is_the_photo_or_its_mirror_image() -> None:
    """The aspect of a crop is random, so that only one of its sides may be whole."""
    given = photos()
    seen = (np.asarray(random_views(given, jax.random.key(0), PLAIN)) + 1) * 127.5
    assert seen.dtype == np.float32 and seen.shape == given.shape
    own, mirrored = (abs(seen - other).mean(axis=(1, 2, 3)) for other in (given, given[:, :, ::-1]))
    assert (np.minimum(own, mirrored) < 0.7 * np.maximum(own, mirrored)).all()
    assert 60 < (mirrored < own).sum() < 140  # every other one is mirrored
    assert min(own.min(), mirrored.min()) < 3


def test_crops_show_as_much_as_they_must() -> None:
    """Of a ramp from left to right a crop shows the share that its width is."""
    ramp = np.broadcast_to(np.linspace(0, 255, SIZE).astype(np.uint8)[None, None, :, None], (400, SIZE, SIZE, 3))
    for smallest in (0.2, 0.9):
        views = Views(smallest, 0.0, 0.0)
        seen = np.asarray(random_views(ramp, jax.random.key(1), views))
        width = abs(seen[:, 0, -1, 0] - seen[:, 0, 0, 0]) / 2 * SIZE / (SIZE - 1)
        lowest = max(np.sqrt(smallest * 3 / 4), smallest)  # the other side cannot be longer than the photo
        assert lowest - 0.06 < width.min() < lowest + 0.12 and width.max() > 0.97
        np.testing.assert_allclose(seen, np.broadcast_to(seen[:, :1], seen.shape), atol=0.02)


def test_tints_stay_in_range_and_average_out() -> None:
    given = photos()
    seen = np.asarray(random_views(given, jax.random.key(2), Views(1.0, 0.4, 0.0)))
    assert seen.min() >= -1 and seen.max() <= 1
    brightness = seen.mean((1, 2, 3)) + 1
    before = given.mean((1, 2, 3)) / 127.5
    ratio = brightness / before
    assert 0.55 < ratio.min() < 0.75 and 1.2 < ratio.max() < 1.45
    assert abs(ratio.mean() - 1) < 0.05


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_views_has_a_grey_rectangle(share: float) -> None:
    white = np.full((400, SIZE, SIZE, 3), 255, np.uint8)
    seen = np.asarray(random_views(white, jax.random.key(3), Views(1.0, 0.0, share)))
    grey = (seen == 0).all(-1)
    sizes = grey.sum((1, 2)) / SIZE**2
    assert abs((sizes > 0).mean() - share) < 0.08
    for mask, size in zip(grey, sizes, strict=True):
        if size:
            rows, columns = mask.any(1), mask.any(0)
            assert (mask == np.outer(rows, columns)).all() and 0.15**2 * 0.7 < size < 0.5**2 * 1.2
    np.testing.assert_allclose(seen[~grey], 1.0, atol=0.01)


def test_up_to_half_of_the_photo_before_is_mixed_in() -> None:
    given = np.eye(300, dtype=np.float32)  # each photo is a place of its own
    mixed = np.asarray(mix_photos(given, jax.random.key(4), 0.3))
    own = np.diag(mixed)
    np.testing.assert_allclose(mixed, own[:, None] * given + (1 - own[:, None]) * np.roll(given, 1, 0), atol=1e-6)
    assert abs((own < 1).mean() - 0.3) < 0.07 and own.min() >= 0.5 and own[own < 1].max() > 0.95
    np.testing.assert_array_equal(mix_photos(given, jax.random.key(4), 0.0), given)


def test_another_key_is_another_view() -> None:
    given = photos(4)
    views = Views(0.2, 0.4, 0.5)
    first, again, other = (np.asarray(random_views(given, jax.random.key(k), views)) for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (abs(first - other).max((1, 2, 3)) > 0.1).all()
