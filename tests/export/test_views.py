"""Views of a photo: mirrored, or cropped at random with colour jitter, but the same at every call."""

from __future__ import annotations

import numpy as np
import pytest

from caplet_export.errors import ConfigurationError
from caplet_export.views import apply_view, check_view

RAMP = np.broadcast_to(np.linspace(40, 200, 60, dtype=np.uint8)[None, :, None], (40, 60, 3))


def test_the_plain_view_is_the_photo() -> None:
    assert apply_view("plain", "a.jpg", RAMP) is RAMP


def test_a_flip_is_the_mirror_image() -> None:
    assert np.array_equal(apply_view("flip", "a.jpg", RAMP), RAMP[:, ::-1])


def test_a_crop_keeps_size_and_type_and_can_be_made_again() -> None:
    first = apply_view("crop1", "a.jpg", RAMP)
    assert (first.shape, first.dtype) == (RAMP.shape, np.uint8)
    assert np.array_equal(first, apply_view("crop1", "a.jpg", RAMP))
    stripes = np.full_like(RAMP, 50)
    stripes[:, ::2] = 200
    assert len(np.unique(apply_view("crop1", "a.jpg", stripes))) > 9  # between pixels there is something between them


def test_the_nth_crop_of_a_name_is_what_it_always_was() -> None:
    """Stores that an earlier release began go on: mirrored or not, stretched, and a name that is no UTF-8; corners."""
    across, down = np.meshgrid(np.linspace(60, 180, 60), np.linspace(80, 160, 40))
    photo = np.stack([across, down, np.full_like(across, 100)], axis=2).astype(np.uint8)
    corners = {
        ("crop1", "a.jpg"): [[[86, 105, 121], [211, 108, 124]], [[90, 202, 125], [215, 205, 129]]],
        ("crop3", "a.jpg"): [[[49, 94, 94], [181, 99, 99]], [[54, 168, 99], [186, 173, 104]]],
        ("crop12", "\udcff.jpg"): [[[178, 92, 108], [61, 77, 93]], [[198, 180, 128], [81, 164, 113]]],
    }
    for (view, name), expected in corners.items():
        np.testing.assert_allclose(apply_view(view, name, photo)[::39, ::59].astype(int), expected, atol=2)


def test_crops_differ_between_photos_and_numbers() -> None:
    views = [apply_view(view, name, RAMP) for view in ("crop1", "crop2") for name in ("a.jpg", "b.jpg")]
    assert all(not np.array_equal(one, other) for n, one in enumerate(views) for other in views[:n])


def test_a_crop_shows_a_part_and_half_of_them_mirrored() -> None:
    grey = np.repeat(RAMP[:, :, :1], 3, axis=2)
    spans, mirrored = [], 0
    for number in range(100):
        columns = apply_view(f"crop{number + 1}", "a.jpg", grey).astype(float).mean(axis=(0, 2))
        spans.append(abs(columns[-1] - columns[0]))
        mirrored += columns[0] > columns[-1]
    assert 30 <= mirrored <= 70
    assert np.mean(spans) < 160  # the whole ramp spans 160; contrast changes by chance, on average not at all


@pytest.mark.parametrize("view", ["", "crop", "crop0", "crop1 ", "mirror", "../plain"])
def test_what_is_no_view_is_said(view: str) -> None:
    with pytest.raises(ConfigurationError, match="not a view of a photo"):
        check_view(view)
    with pytest.raises(ConfigurationError, match="not a view of a photo"):
        apply_view(view, "a.jpg", RAMP)
