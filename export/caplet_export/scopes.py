"""Contexts in which Keras layers are made: in what precision they compute, and how their weights begin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import keras


def loaded_later() -> AbstractContextManager[None]:
    """Layers made within it have zeros where Keras draws by default (Glorot uniform), for weights that are loaded next.

    On JAX every shape that is drawn is a program to compile: half a minute for InceptionV3 on two cores.
    """
    scope: AbstractContextManager[None] = keras.utils.custom_object_scope({"glorot_uniform": keras.initializers.Zeros})
    return scope


@contextmanager
def computing_in(dtype: str) -> Iterator[None]:
    """Layers made within it compute in `dtype` and keep variables of it; `bfloat16` keeps float32 variables."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if dtype == "bfloat16" else dtype)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
