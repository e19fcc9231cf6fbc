"""Contexts in which Keras layers are made: they set the precision of computations and the first weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import keras


def loaded_later() -> AbstractContextManager[None]:
    """Within it, layers are made with zeros where Keras draws by default (Glorot uniform); for weights loaded next.

    JAX compiles a program for every shape that is drawn: half a minute for InceptionV3 on two cores.
    """
    scope: AbstractContextManager[None] = keras.utils.custom_object_scope({"glorot_uniform": keras.initializers.Zeros})
    return scope


@contextmanager
def computing_in(dtype: str) -> Iterator[None]:
    """Within it, layers are made that compute in `dtype` and have variables of it, or of float32 with `bfloat16`."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if dtype == "bfloat16" else dtype)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
