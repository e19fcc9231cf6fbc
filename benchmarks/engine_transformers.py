"""Models that people would pick instead, built from their configurations with random weights, without a download.

Random weights take as long as trained ones for the same number of tokens. A word counts as one token, which flatters
these models (they split rare words), and tokens are not joined into text, which flatters them a little more.

SmolVLM and Florence-2 are in bfloat16 where oneDNN multiplies it, half as large as in float32 and several times as
fast. Elsewhere PyTorch's own products of bfloat16 take many times as long as those of float32, so they are in that.
SmolVLM is published in bfloat16; Florence-2 in float16, which few processors multiply.
"""

# ruff: noqa: D102 (methods are described where `benchmarks.engine` declares them)
from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.engine import Engine, centred_pixels


class _Transformers(Engine):
    size: int
    prompt: Sequence[int] = ()
    """Tokens before the caption, among them the places of the picture, for a model that is asked."""
    in_bfloat16 = False
    """If the processor is made for it."""

    def __init__(self, folder: Path, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self._torch = torch
        made_for_it = self.in_bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self._dtype = torch.bfloat16 if made_for_it else torch.float32
        self._model = self.build().eval().to(self._dtype)
        self.model_bytes = sum(weights.numel() * weights.element_size() for weights in self._model.parameters())

    @abstractmethod
    def build(self) -> Any:
        """The model with random weights."""

    def pixels(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The picture [1,3,size,size], -1 to 1, in the shape that the model takes."""
        return values

    def caption(self, photo: Path, words: int) -> None:
        values = self.pixels(centred_pixels(photo, self.size))
        inputs = {"pixel_values": self._torch.from_numpy(values).to(self._dtype)}
        if self.prompt:
            inputs["input_ids"] = self._torch.tensor([self.prompt])
        tokens = words + 1  # one more, which ends the sentence
        with self._torch.inference_mode():
            self._model.generate(**inputs, min_new_tokens=tokens, max_new_tokens=tokens, num_beams=1, do_sample=False)


def vit_gpt2() -> Any:
    """ViT-B/16 and GPT-2 with cross-attention, as in nlpconnect/vit-gpt2-image-captioning."""
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(), GPT2Config())
    return VisionEncoderDecoderModel(config)


class VitGpt2(_Transformers):
    """`vit_gpt2`."""

    size = 224

    def build(self) -> Any:
        model = vit_gpt2()
        start = model.config.decoder.bos_token_id
        model.generation_config.decoder_start_token_id = start
        model.generation_config.pad_token_id = start
        return model


class BlipBase(_Transformers):
    """BLIP with ViT-B/16 at 384 pixels, as in Salesforce/blip-image-captioning-base."""

    size = 384

    def build(self) -> Any:
        from transformers import BlipConfig, BlipForConditionalGeneration

        return BlipForConditionalGeneration(BlipConfig())


class Florence2Base(_Transformers):
    """DaViT and BART, as in microsoft/Florence-2-base, asked for a short caption."""

    size = 768
    prompt = (51289,) * 577 + (1000,) * 8  # "What does the image describe?"
    in_bfloat16 = True

    def build(self) -> Any:
        from transformers import Florence2Config, Florence2ForConditionalGeneration

        text = {"model_type": "bart", "vocab_size": 51290, "d_model": 768}
        for part in ("encoder", "decoder"):
            text |= {f"{part}_layers": 6, f"{part}_attention_heads": 12, f"{part}_ffn_dim": 3072}
        return Florence2ForConditionalGeneration(
            Florence2Config(image_token_id=51289, text_config=text, vision_config={"projection_dim": 768})
        )


class SmolVlm256M(_Transformers):
    """SigLIP-B/16 and a Llama of 135 million weights, as in HuggingFaceTB/SmolVLM-256M-Instruct, asked for a caption of
    the photo as one picture of 512 pixels; its own processor cuts a photo into up to 17.
    """

    size = 512
    prompt = (1000,) * 6 + (49190,) * 64 + (1000,) * 10  # as many as "User: … Describe the image. … Assistant:" has
    in_bfloat16 = True

    def build(self) -> Any:
        from transformers import Idefics3Config, Idefics3ForConditionalGeneration

        text = {
            "model_type": "llama", "vocab_size": 49280, "hidden_size": 576, "intermediate_size": 1536, "head_dim": 64,
            "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        }  # fmt: skip
        vision = {
            "image_size": 512, "patch_size": 16, "hidden_size": 768, "intermediate_size": 3072,
            "num_hidden_layers": 12, "num_attention_heads": 12,
        }  # fmt: skip
        return Idefics3ForConditionalGeneration(
            Idefics3Config(image_token_id=49190, pad_token_id=2, scale_factor=4, text_config=text, vision_config=vision)
        )

    def pixels(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return values[None]
