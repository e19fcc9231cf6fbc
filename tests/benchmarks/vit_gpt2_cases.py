"""What test_vit_gpt2.py asks of `benchmarks.vit_gpt2`: functions for a process of its own, without TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

START = 1
WIDE = {"initializer_range": 0.5}  # so that words differ


def small_model() -> Any:
    import torch
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    torch.manual_seed(1)
    vit = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8,
        **WIDE,
    )  # fmt: skip
    gpt = GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2, bos_token_id=START, eos_token_id=START, **WIDE)
    model = VisionEncoderDecoderModel(VisionEncoderDecoderConfig.from_encoder_decoder_configs(vit, gpt)).eval()
    model.generation_config.decoder_start_token_id = model.generation_config.pad_token_id = START
    return model


def written(words: int) -> tuple[list[int], list[int]]:
    """Tokens by transformers' own loop, and by single steps."""
    import torch

    from benchmarks.vit_gpt2 import Decoder, Encoder

    model, pixels = small_model(), torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        expected = model.generate(
            pixel_values=pixels, min_new_tokens=words, max_new_tokens=words, num_beams=1, do_sample=False
        )[0].tolist()
        photo, decoder = Encoder(model)(pixels), Decoder(model)
        token, cache, tokens = torch.tensor([START]), [part[:, :, :0] for part in photo], [START]
        for _ in range(words):
            token, cache = decoder(token, cache, photo)
            tokens.append(int(token))
    return expected, tokens


def write(folder: Path, pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Write the graphs; what the encoder makes of pixels in float32."""
    import torch

    from benchmarks import vit_gpt2

    model = small_model()
    vit_gpt2.write(folder, model)
    with torch.inference_mode():
        photo = vit_gpt2.Encoder(model)(torch.from_numpy(pixels))
    return [part.numpy() for part in photo]
