"""Random views of photos, drawn anew each time on the accelerator: crops, colour jitter, erased rectangles, mixup."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from caplet_export.config import TrainConfig

Array = Any
_ASPECT = 4 / 3
_ERASED = (0.15, 0.5)
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's ImageEnhance


def random_views(pixels: Array, key: Array, settings: TrainConfig) -> Array:
    """A random view of each photo, one in two mirrored: uint8 [N,S,S,3] to float32 [N,S,S,3] in [-1,1].

    A crop (Szegedy et al., CVPR 2015) shows at least the share `smallest_crop` of the photo's area; its brightness,
    contrast and saturation change by up to `color_jitter` (0.4: by 40 %); and of the views, the share `random_erasing`
    has a grey rectangle, with sides of 15 to 50 % of the photo's.
    """
    count, size = pixels.shape[:2]
    keys = iter(jax.random.split(key, 9))

    def uniform(low: float, high: float, *shape: int) -> Array:
        return jax.random.uniform(next(keys), (count, *shape), minval=low, maxval=high)

    area = uniform(settings.smallest_crop, 1.0)
    # Limited so that a window of this area lies inside the photo.
    aspect = jnp.clip(jnp.exp(uniform(-math.log(_ASPECT), math.log(_ASPECT))), area, 1.0 / area)
    across, down = jnp.sqrt(area * aspect) * size, jnp.sqrt(area / aspect) * size
    columns = _interpolation(uniform(0, 1) * (size - across), across, size)
    rows = _interpolation(uniform(0, 1) * (size - down), down, size)
    mirrored = uniform(0, 1)[:, None, None] < 0.5
    columns = jnp.where(mirrored, columns[:, ::-1], columns)
    # 0 to 255 are exact in bfloat16, in which interpolation loses no more than a step or two of 8 bits.
    rows, columns, pixels = (array.astype(jnp.bfloat16) for array in (rows, columns, pixels))
    image = jnp.einsum("nyh,nhwc->nywc", rows, pixels)
    image = jnp.einsum("nxw,nywc->nyxc", columns, image).astype(jnp.float32) / 255.0

    def jittered(image: Array, towards: Array) -> Array:
        strength = uniform(1 - settings.color_jitter, 1 + settings.color_jitter, 1, 1, 1)
        return jnp.clip(towards + (image - towards) * strength, 0.0, 1.0)

    image = jittered(image, jnp.zeros(()))
    image = jittered(image, jnp.mean(_grey(image), axis=(1, 2), keepdims=True))
    image = jittered(image, _grey(image))
    erased = _rectangles(uniform(0, 1, 5), size, settings.random_erasing)
    return jnp.where(erased[..., None], 0.5, image) * 2.0 - 1.0


def mixup(photos: Array, key: Array, share: float) -> Array:
    """Photos float [N,...] of which this share is mixed with up to half of the photo before it in the batch (mixup,
    Zhang et al., ICLR 2018).
    """
    first, second = jax.random.split(key)
    shape = (photos.shape[0],) + (1,) * (photos.ndim - 1)
    own = jax.random.uniform(first, shape, minval=0.5, maxval=1.0)
    own = jnp.where(jax.random.uniform(second, shape) < share, own, 1.0)
    return own * photos + (1.0 - own) * jnp.roll(photos, 1, axis=0)


def _interpolation(start: Array, length: Array, size: int) -> Array:
    """Matrices [N,size,size] that stretch windows of a row of pixels to its whole length by linear interpolation."""
    centres = start[:, None] + (jnp.arange(size) + 0.5) * length[:, None] / size - 0.5
    centres = jnp.clip(centres, 0, size - 1)
    return jnp.maximum(0.0, 1.0 - jnp.abs(centres[..., None] - jnp.arange(size)))


def _grey(image: Array) -> Array:
    return jnp.sum(image * jnp.asarray(_GREY), axis=-1, keepdims=True)


def _rectangles(random: Array, size: int, share: float) -> Array:
    """Masks bool [N,size,size], of which this share holds a rectangle, the others none; `random` is [N,5] in [0,1)."""
    low, high = _ERASED
    place = jnp.arange(size)

    def side(length: Array, position: Array) -> Array:
        pixels = (low + (high - low) * length) * size
        start = position * (size - pixels)
        return (place >= start[:, None]) & (place < (start + pixels)[:, None])

    down, across = side(random[:, 0], random[:, 2]), side(random[:, 1], random[:, 3])
    return down[:, :, None] & across[:, None, :] & (random[:, 4] < share)[:, None, None]
