"""Make what the peers run, all of the same weights: `python -m benchmarks.prepare FOLDER --run RUN`.

::

    photos/        the sample photos as 640x480 JPEGs
    keras/         the extractor and the captioner, for TensorFlow
    litert/        both as one LiteRT file
    plain/         what tf2onnx makes of the training code, nothing rewritten
    plain-qdq/     its encoder quantised by onnxruntime's own tool, as its documentation tells
    fp32/ int8/    caplet's bundles
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from benchmarks.engine import plain_pixels

if TYPE_CHECKING:
    import keras
    import onnx

    from caplet_export.model import CaptionModel

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = ROOT / "tests/photos"
PHOTO_SIZE = (640, 480)
_MANIFEST: dict[str, Any] = {
    "format_version": 1,
    "created_with": {},
    "preprocessing": {
        "height": 299, "width": 299, "color": "RGB", "dtype": "uint8", "resize": "squash", "resample": "bilinear",
    },
    "tokens": {"pad": "<pad>", "start": "<start>", "end": "<end>", "unknown": "<unk>"},
    "decoding": {"beam_size": 3, "max_length": 20, "length_penalty": 1.0, "block_repeated_trigrams": True},
    "license": {"weights": "for benchmarks only", "data": "for benchmarks only"},
    "provenance": {},
    "metrics": {},
    "golden": [],
}  # fmt: skip


def write_photos(folder: Path) -> list[Path]:
    """The sample photos as 640x480 JPEGs."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for source in sorted(PHOTOS.glob("*.jpg")):
        with Image.open(source) as photo:
            photo.convert("RGB").resize(PHOTO_SIZE, Image.Resampling.BICUBIC).save(folder / source.name, quality=90)
        written.append(folder / source.name)
    return written


def write_random_run(folder: Path, vocabulary_size: int = 2600) -> Path:
    """A run folder of the released sizes with random weights: they take as long as trained ones."""
    import keras

    from caplet_export.checkpoint import DECODER, save_weights
    from caplet_export.config import Config, ModelConfig
    from caplet_export.model import build_model
    from caplet_export.text import SPECIALS, Vocabulary

    keras.utils.set_random_seed(1)
    config = Config(model=ModelConfig(vocabulary_size=vocabulary_size))
    folder.mkdir(parents=True, exist_ok=True)
    config.save(folder / "config.json")
    words = [f"word{number}" for number in range(vocabulary_size - len(SPECIALS))]
    Vocabulary([*SPECIALS, *words]).save(folder / "vocabulary.txt")
    save_weights(build_model(config.model), folder / DECODER)
    return folder


def prepare(
    folder: Path, run: Path, extractor: keras.Model, model: CaptionModel, bundle: Path | None, photos: Sequence[Path]
) -> None:
    """Write every form of a captioner; without a bundle of it, one is quantised on the photos."""
    from caplet_export.checkpoint import DECODER
    from caplet_export.convert import convert_decoder, convert_encoder, take_top_k
    from caplet_export.optimize import optimize_decoder, optimize_encoder

    (folder / "keras/run").mkdir(parents=True, exist_ok=True)
    extractor.save(folder / "keras/extractor.keras")
    for name in ("config.json", "vocabulary.txt", DECODER):
        shutil.copyfile(run / name, folder / "keras/run" / name)

    _write_litert(folder / "litert/captioner.tflite", extractor, model)

    plain = convert_encoder(extractor, model, plain=True)
    plain_decoder = take_top_k(convert_decoder(model, plain=True))
    _write_graphs(folder / "plain", plain, plain_decoder)
    _write_graphs(folder / "plain-qdq", _quantize_plainly(folder / "plain/encoder.onnx", photos), plain_decoder)

    encoder = optimize_encoder(convert_encoder(extractor, model))
    decoder = take_top_k(optimize_decoder(convert_decoder(model)))
    words = (run / "vocabulary.txt").read_bytes()
    template = json.loads((bundle / "manifest.json").read_text()) if bundle else _MANIFEST
    _write_bundle(folder / "fp32", "benchmark-fp32", encoder, decoder, words, template)
    shutil.rmtree(folder / "int8", ignore_errors=True)
    if bundle:
        if (bundle / "vocabulary.txt").read_bytes() != words:
            raise SystemExit(f"{bundle}: another vocabulary than {run}; it was not made of this run")
        shutil.copytree(bundle, folder / "int8")
    else:
        _write_bundle(folder / "int8", "benchmark-int8", *_quantize(encoder, decoder, photos), words, template)


def _write_litert(path: Path, extractor: keras.Model, model: CaptionModel) -> None:
    """One file with two signatures that share their weights, for one photo at a time, as LiteRT's XNNPACK wants it."""
    import tempfile

    import tensorflow as tf

    config = model.config
    height, width = extractor.input_shape[1:3]

    class Captioner(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.extractor, self.model = extractor, model

        @tf.function(input_signature=[tf.TensorSpec((1, height, width, 3), tf.uint8, name="pixels")])
        def encode(self, pixels: Any) -> Any:
            grid = self.extractor(tf.cast(pixels, tf.float32) / 127.5 - 1.0, training=False)
            outputs = self.model.encode(tf.reshape(grid, (1, config.locations, config.channels)))
            return dict(zip(("features", "keys", "state"), outputs, strict=True))

        @tf.function(
            input_signature=[
                tf.TensorSpec((1,), tf.int64, name="token"),
                tf.TensorSpec((1, config.state_size), name="state"),
                tf.TensorSpec((1, config.locations, config.feature_size), name="features"),
                tf.TensorSpec((1, config.locations, config.attention_size), name="keys"),
            ]
        )
        def step(self, token: Any, state: Any, features: Any, keys: Any) -> Any:
            logits, next_state, _ = self.model.step(token, state, features, keys)
            return {"logits": logits, "next_state": next_state}

    captioner = Captioner()
    with tempfile.TemporaryDirectory() as saved:
        tf.saved_model.save(captioner, saved, signatures={"encode": captioner.encode, "step": captioner.step})
        converted = tf.lite.TFLiteConverter.from_saved_model(saved, signature_keys=["encode", "step"]).convert()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(converted)


def _quantize_plainly(encoder: Path, photos: Sequence[Path]) -> onnx.ModelProto:
    """onnxruntime's own static quantisation, in the form that its documentation recommends for x86."""
    import tempfile

    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Photos(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds: Iterator[dict[str, Any]] = ({"pixels": plain_pixels(photo)} for photo in photos)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._feeds, None)

    with tempfile.TemporaryDirectory() as work:
        prepared, quantized = Path(work, "prepared.onnx"), Path(work, "quantized.onnx")
        quant_pre_process(encoder, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared, quantized, Photos(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        return onnx.load(quantized)


def _quantize(
    encoder: onnx.ModelProto, decoder: onnx.ModelProto, photos: Sequence[Path]
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    from caplet_export.calibrate import greedy_feeds
    from caplet_export.quantize import quantize

    feeds = [{"pixels": plain_pixels(photo)} for photo in photos]
    return (
        quantize(encoder, lambda: feeds, method="minmax"),
        quantize(decoder, lambda: greedy_feeds(encoder, decoder, feeds), method="minmax"),
    )


def _write_graphs(folder: Path, encoder: onnx.ModelProto, decoder: onnx.ModelProto) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "encoder.onnx").write_bytes(encoder.SerializeToString())
    (folder / "decoder.onnx").write_bytes(decoder.SerializeToString())


def _write_bundle(
    folder: Path, name: str, encoder: onnx.ModelProto, decoder: onnx.ModelProto, words: bytes, template: dict[str, Any]
) -> None:
    """A bundle that decodes as the one of the template does."""
    _write_graphs(folder, encoder, decoder)
    (folder / "vocabulary.txt").write_bytes(words)
    files = {file: (folder / file).read_bytes() for file in ("encoder.onnx", "decoder.onnx", "vocabulary.txt")}
    manifest = {
        **template,
        "name": name,
        "files": {
            file: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for file, content in files.items()
        },
        "graphs": {graph: {"file": f"{graph}.onnx", "opset": 17} for graph in ("encoder", "decoder")},
        "vocabulary": {"file": "vocabulary.txt", "size": len(words.splitlines())},
        "golden": [],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prepare", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder to write; about 500 MB")
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument("--run", type=Path, help="run folder written by `caplet-export train`")
    weights.add_argument("--random", action="store_true", help="random weights of the released sizes instead")
    parser.add_argument("--encoder-weights", default="imagenet", help="`imagenet` or a path (default: %(default)s)")
    parser.add_argument("--bundle", type=Path, help="int8 bundle made of that run (default: quantise one here)")
    arguments = parser.parse_args(argv)
    if arguments.random and arguments.bundle:
        parser.error("--bundle belongs to a --run")

    from caplet_export.checkpoint import load_checkpoint, load_extractor

    photos = write_photos(arguments.folder / "photos")
    run = write_random_run(arguments.folder / "random-run") if arguments.random else arguments.run
    extractor = load_extractor(run, None if arguments.random else arguments.encoder_weights)
    prepare(arguments.folder, run, extractor, load_checkpoint(run).model, arguments.bundle, photos)
    print(f"wrote {arguments.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
