"""How a bundle's captions are searched by default, unless it is made otherwise."""

from __future__ import annotations

from caplet.manifest import Decoding
from caplet_export.config import TextConfig

DEFAULT_DECODING = Decoding(
    beam_size=3,
    max_length=TextConfig.max_length,
    length_penalty=1.0,
    block_repeated_trigrams=True,
)
