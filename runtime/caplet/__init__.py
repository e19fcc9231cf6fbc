"""caplet: a sentence for a photo, on any CPU, offline.

`import caplet` loads next to nothing: numpy, Pillow and onnxruntime are loaded at the first use of `caplet.Captioner`.
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from caplet.captioner import Alternative, Caption, Captioner
    from caplet.errors import (
        ArgumentError,
        BundleError,
        BundleNotFoundError,
        CapletError,
        ImageError,
        ImageNotFoundError,
        ImageTypeError,
        InferenceError,
    )
    from caplet.image_source import ImageSource

__version__ = "0.16.3"
__all__ = [
    "Alternative",
    "ArgumentError",
    "BundleError",
    "BundleNotFoundError",
    "CapletError",
    "Caption",
    "Captioner",
    "ImageError",
    "ImageNotFoundError",
    "ImageSource",
    "ImageTypeError",
    "InferenceError",
    "__version__",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())

# From 1.29 on, onnxruntime reports to Microsoft and keeps a database in the home folder, unless this is set before its
# import. It is set here because most programs import caplet first.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


if not TYPE_CHECKING:  # to type checkers, a module with this function has every name, also a misspelt one

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = "errors" if name.endswith("Error") else "image_source" if name == "ImageSource" else "captioner"
        return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return __all__
