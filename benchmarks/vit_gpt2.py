"""Write ViT-GPT2 in 8 bits for onnxruntime, with random weights: `python -m benchmarks.vit_gpt2 FOLDER`.

Both graphs are exported from the model of transformers, the decoder as single steps with a cache, and quantised by
onnxruntime's dynamic quantisation, as the 8-bit files are that transformers.js and Optimum run. `benchmarks.prepare`
does it in a process of its own, since PyTorch crashes where TensorFlow was imported before.
"""

from __future__ import annotations

# ruff: noqa: D102 (`forward` is described by its class)
import argparse
import copy
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn
from transformers import VisionEncoderDecoderModel

from benchmarks.engine_transformers import vit_gpt2

_OPSET = 18


class Encoder(nn.Module):
    """Pixels float32 [1,3,P,P] to `photo`: keys and values [1,heads,S,D] of each layer's cross-attention in turn."""

    def __init__(self, model: VisionEncoderDecoderModel) -> None:
        super().__init__()
        self.vit, self.blocks = model.encoder, model.decoder.transformer.h

    def forward(self, pixels: Tensor) -> list[Tensor]:
        seen = self.vit(pixel_values=pixels).last_hidden_state
        pairs = [_keys_and_values(block.crossattention, block.crossattention.c_attn(seen)) for block in self.blocks]
        return [part for pair in pairs for part in pair]


class Decoder(nn.Module):
    """One greedy step: token int64 [1], and keys and values [1,heads,T,D] of the T tokens before it, for each layer in
    turn, to the next token and the cache that includes this one.
    """

    def __init__(self, model: VisionEncoderDecoderModel) -> None:
        super().__init__()
        self.gpt = model.decoder.transformer
        # Of its own: shared with the embedding, its weights would be turned into floats at every step.
        self.head = copy.deepcopy(model.decoder.lm_head)

    def forward(self, token: Tensor, past: list[Tensor], photo: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        position = torch.zeros_like(token) + past[0].shape[2]
        hidden = (self.gpt.wte(token) + self.gpt.wpe(position))[:, None]
        cache: list[Tensor] = []
        for layer, block in enumerate(self.gpt.h):
            own, other, pair = block.attn, block.crossattention, slice(2 * layer, 2 * layer + 2)
            query, fresh = own.c_attn(block.ln_1(hidden)).tensor_split([own.embed_dim], dim=-1)
            cache += [torch.cat(parts, 2) for parts in zip(past[pair], _keys_and_values(own, fresh), strict=True)]
            hidden = hidden + own.c_proj(_attend(own, query, *cache[pair]))
            query = other.q_attn(block.ln_cross_attn(hidden))
            hidden = hidden + other.c_proj(_attend(other, query, *photo[pair]))
            hidden = hidden + block.mlp(block.ln_2(hidden))
        return self.head(self.gpt.ln_f(hidden))[:, -1].argmax(-1), cache


def write(folder: Path, model: VisionEncoderDecoderModel) -> None:
    """Write `encoder.onnx` and `decoder.onnx` in 8 bits; for a while, the disk holds them in float32 as well.

    Names: `pixels` to `photo0`, `photo1`...; `token`, `past0`... and `photo0`... to `next` and `cache0`...
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.eval()
    size, encoder, decoder = model.config.encoder.image_size, Encoder(model).eval(), Decoder(model).eval()
    pixels = torch.zeros(1, 3, size, size)
    photo = encoder(pixels)
    past, photos, cache = ([f"{name}{part}" for part in range(len(photo))] for name in ("past", "photo", "cache"))
    _write(folder / "encoder.onnx", encoder, (pixels,), {"pixels": None}, ["pixels"], photos)
    step = (torch.zeros(1, dtype=torch.int64), [part[:, :, :2] for part in photo], photo)
    any_length = [{2: torch.export.Dim.DYNAMIC}] * len(photo)
    shapes = {"token": None, "past": any_length, "photo": [None] * len(photo)}
    _write(folder / "decoder.onnx", decoder, step, shapes, ["token", *past, *photos], ["next", *cache])


def _write(
    path: Path, module: nn.Module, inputs: tuple[Any, ...], shapes: dict[str, Any], names: list[str], outputs: list[str]
) -> None:
    with tempfile.TemporaryDirectory() as work:
        exported = Path(work, "float.onnx")
        torch.onnx.export(
            module, inputs, exported, input_names=names, output_names=outputs, dynamic_shapes=shapes,
            opset_version=_OPSET, external_data=False, verbose=False,
        )  # fmt: skip
        quantize_dynamic(
            exported, path, per_channel=True, weight_type=QuantType.QInt8, extra_options={"MatMulConstBOnly": True}
        )


def _heads(attention: Any, values: Tensor) -> Tensor:
    return values.unflatten(-1, (attention.num_heads, attention.head_dim)).transpose(1, 2)


def _keys_and_values(attention: Any, both: Tensor) -> list[Tensor]:
    return [_heads(attention, values) for values in both.chunk(2, -1)]


def _attend(attention: Any, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    scores = _heads(attention, query) @ keys.transpose(-1, -2) / attention.head_dim**0.5
    mixed: Tensor = scores.softmax(-1) @ values
    return mixed.transpose(1, 2).flatten(2)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vit_gpt2", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder to write; 280 MB, and 600 MB more for a while")
    torch.manual_seed(0)
    write(parser.parse_args(argv).folder, vit_gpt2())
    return 0


if __name__ == "__main__":
    sys.exit(main())
