"""Random views: what a crop shows, how far colours go, that nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caplet_export.config import TrainConfig
from caplet_export.random_views import _interpolation, mixup, random_views

PLAIN = TrainConfig(smallest_crop=1.0, color_jitter=0.0, random_erasing=0.0)
SIZE = 24
COUNT = 1000
"""Of photos in every test: JAX compiles each operation anew for another number of them."""


def photos() -> np.ndarray:
    """Noise that is smooth enough to be told where it was cut out."""
    random = np.random.default_rng(0)
    coarse = random.integers(40, 216, (COUNT, 4, 4, 3)).astype(np.float32)
    smooth = jax.image.resize(coarse, (COUNT, SIZE, SIZE, 3), "linear")
    return np.asarray(smooth).round().astype(np.uint8)


def test_interpolation_is_that_of_a_bilinear_resize() -> None:
    row = np.random.default_rng(1).normal(size=SIZE).astype(np.float32)
    whole = _interpolation(jnp.array([0.0]), jnp.array([float(SIZE)]), SIZE)[0]
    np.testing.assert_allclose(whole, np.eye(SIZE), atol=1e-6)
    starts = np.array([0.0, 6.0, 12.0], np.float32)  # at both ends the outer pixels go on
    halves = _interpolation(jnp.asarray(starts), jnp.full(3, 12.0), SIZE) @ row
    centres = starts[:, None] + (np.arange(SIZE) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(halves, np.interp(centres, np.arange(SIZE), row), atol=1e-5)


def test_the_largest_crop_without_color_jitter_is_the_photo_or_its_mirror_image() -> None:
    given = photos()
    seen = (np.asarray(random_views(given, jax.random.key(0), PLAIN)) + 1) * 127.5
    assert seen.dtype == np.float32 and seen.shape == given.shape
    own, mirrored = (abs(seen - other).max(axis=(1, 2, 3)) for other in (given, given[:, :, ::-1]))
    assert np.minimum(own, mirrored).max() < 1
    assert 430 < (mirrored < own).sum() < 570  # every other one is mirrored


def test_a_crop_is_any_part_of_the_photo_that_is_large_enough() -> None:
    """Of a ramp to the right in red and one down in green, the view tells which window it is."""
    ramp = np.linspace(0, 255, SIZE).astype(np.uint8)
    photo = np.stack([*np.meshgrid(ramp, ramp), np.zeros((SIZE, SIZE), np.uint8)], axis=-1)
    given = np.broadcast_to(photo, (COUNT, *photo.shape))
    seen = (np.asarray(random_views(given, jax.random.key(1), replace(PLAIN, smallest_crop=0.2))) + 1) / 2 * (SIZE - 1)
    seen = np.where(seen[:, :, :1, :1] > seen[:, :, -1:, :1], seen[:, :, ::-1], seen)
    inside = np.stack([seen[:, 12, [6, 17], 0], seen[:, [6, 17], 12, 1]])  # beyond the middles of its pixels it is even
    sides = (inside[..., 1] - inside[..., 0]) / 11
    assert sides.max() < 1.02  # no further than the photo
    area, aspect = sides[0] * sides[1], sides[0] / sides[1]
    assert area.min() == pytest.approx(0.2, abs=0.02) and area.mean() == pytest.approx(0.6, abs=0.02)
    assert aspect.min() == pytest.approx(3 / 4, abs=0.03) and aspect.max() == pytest.approx(4 / 3, abs=0.05)
    place = ((inside[..., 0] + 0.5) / SIZE - 6.5 / SIZE * sides)[:, sides.max(axis=0) < 0.9]
    place /= 1 - sides[:, sides.max(axis=0) < 0.9]
    assert (abs(place.min(axis=1)) < 0.05).all() and (abs(place.max(axis=1) - 1) < 0.05).all()
    assert (abs(place.mean(axis=1) - 0.5) < 0.05).all() and abs(np.corrcoef(place)[0, 1]) < 0.1


def test_color_jitter_is_brightness_then_contrast_then_saturation() -> None:
    """Of photos of one colour above and another below, which no mirror changes, a view tells how strong each was."""
    darker = np.random.default_rng(2).integers(0, 20, (COUNT, 1, 1))
    before = np.array([[70, 50, 40], [100, 80, 60]]) + darker
    given = np.broadcast_to(np.repeat(before, SIZE // 2, axis=1)[:, :, None], (COUNT, SIZE, SIZE, 3)).astype(np.uint8)
    seen = np.asarray(random_views(given, jax.random.key(2), replace(PLAIN, color_jitter=0.4)), np.float64)
    after = (seen[:, [0, -1], 0] + 1) * 127.5
    grey_before, grey_after = (pixels @ [[0.299], [0.587], [0.114]] for pixels in (before, after))
    mean = grey_before.mean(axis=1, keepdims=True)
    brightness = grey_after.mean(axis=1, keepdims=True) / mean
    contrast = np.diff(grey_after, axis=1) / np.diff(brightness * grey_before, axis=1)
    ranges = (np.ptp(pixels[:, :1], axis=2, keepdims=True) for pixels in (after, brightness * contrast * before))
    saturation = np.divide(*ranges)
    grey = mean + (grey_before - mean) * contrast
    np.testing.assert_allclose(after, brightness * (grey + (before - grey_before) * contrast * saturation), rtol=1e-3)
    strengths = np.stack([brightness, contrast, saturation]).reshape(3, -1)
    assert abs(strengths.min(axis=1) - 0.6).max() < 0.02 and abs(strengths.max(axis=1) - 1.4).max() < 0.02
    assert abs(np.corrcoef(strengths)[np.triu_indices(3, 1)]).max() < 0.15


def test_color_jitter_stays_in_range() -> None:
    seen = np.asarray(random_views(photos(), jax.random.key(2), replace(PLAIN, color_jitter=0.4)))
    assert seen.min() >= -1 and seen.max() <= 1


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_views_has_a_grey_rectangle(share: float) -> None:
    white = np.full((COUNT, SIZE, SIZE, 3), 255, np.uint8)
    seen = np.asarray(random_views(white, jax.random.key(3), replace(PLAIN, random_erasing=share)))
    grey = (seen == 0).all(-1)
    sizes = grey.sum((1, 2)) / SIZE**2
    assert abs((sizes > 0).mean() - share) < 0.08
    places = []
    for mask, size in zip(grey, sizes, strict=True):
        if size:
            rows, columns = mask.any(1), mask.any(0)
            assert (mask == np.outer(rows, columns)).all() and 0.15**2 * 0.7 < size < 0.5**2 * 1.2
            places.append((rows.argmax(), columns.argmax(), rows.sum(), columns.sum()))
    if places:
        down, across, height, width = np.transpose(places)
        assert abs(np.corrcoef(down, across)[0, 1]) < 0.2 and abs(np.corrcoef(height, width)[0, 1]) < 0.2
        assert (down + height).max() == (across + width).max() == SIZE  # also at the far ends
    np.testing.assert_allclose(seen[~grey], 1.0, atol=0.01)


def test_up_to_half_of_the_photo_before_is_mixed_in() -> None:
    given = np.eye(300, dtype=np.float32)  # each photo is a place of its own
    mixed = np.asarray(mixup(given, jax.random.key(4), 0.3))
    own = np.diag(mixed)
    np.testing.assert_allclose(mixed, own[:, None] * given + (1 - own[:, None]) * np.roll(given, 1, 0), atol=1e-6)
    assert abs((own < 1).mean() - 0.3) < 0.07 and own.min() >= 0.5 and own[own < 1].max() > 0.95
    np.testing.assert_array_equal(mixup(given, jax.random.key(4), 0.0), given)


def test_another_key_is_another_view() -> None:
    given = photos()
    settings = replace(PLAIN, smallest_crop=0.2, color_jitter=0.4, random_erasing=0.5)
    first, again, other = (np.asarray(random_views(given, jax.random.key(k), settings)) for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (abs(first - other).max((1, 2, 3)) > 0.1).all()
