"""Models that people would pick instead, built from their configurations with random weights, without a download.

Random weights take as long as trained ones for the same number of tokens. A word counts as one token, which flatters
these models (they split rare words), and tokens are not joined into text, which flatters them a little more.
"""

# ruff: noqa: D102 (methods are described where `benchmarks.engine` declares them)
from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engine import Engine, plain_pixels


class _Transformers(Engine):
    size: int

    def __init__(self, folder: Path, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self._torch = torch
        self._model = self.build().eval()
        self.model_bytes = sum(weights.numel() * weights.element_size() for weights in self._model.parameters())

    @abstractmethod
    def build(self) -> Any:
        """The model with random weights."""

    def caption(self, photo: Path, words: int) -> None:
        pixels = plain_pixels(photo, (self.size, self.size))
        values = (pixels.astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2)
        tokens = words + 1  # one more, which ends the sentence
        with self._torch.inference_mode():
            self._model.generate(
                pixel_values=self._torch.from_numpy(np.ascontiguousarray(values)),
                min_new_tokens=tokens, max_new_tokens=tokens, num_beams=1, do_sample=False,
            )  # fmt: skip


class VitGpt2(_Transformers):
    """ViT-B/16 and GPT-2 with cross-attention, as in nlpconnect/vit-gpt2-image-captioning."""

    size = 224

    def build(self) -> Any:
        from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

        config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(), GPT2Config())
        model = VisionEncoderDecoderModel(config)
        start = config.decoder.bos_token_id
        model.generation_config.decoder_start_token_id = start
        model.generation_config.pad_token_id = start
        return model


class BlipBase(_Transformers):
    """BLIP with ViT-B/16 at 384 pixels, as in Salesforce/blip-image-captioning-base."""

    size = 384

    def build(self) -> Any:
        from transformers import BlipConfig, BlipForConditionalGeneration

        return BlipForConditionalGeneration(BlipConfig())
