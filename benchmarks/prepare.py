"""Make the files that the peers run, all from the same weights: `python -m benchmarks.prepare FOLDER --run RUN`.

::

    photos/        the sample photos as 640x480 JPEGs
    keras/         the extractor and the captioner, for TensorFlow
    litert/        both as LiteRT files
    plain/         what tf2onnx makes of the training code, nothing rewritten
    plain-qdq/     its encoder quantised by onnxruntime's own tool, as that tool's documentation says
    fp32/ int8/    caplet's bundles
    int8-ungrouped/  int8 without `group_pixels`, which is faster in OpenVINO; calibrated on the photos here
    vit-gpt2-int8/   ViT-GPT2 with random weights, in 8 bits, if PyTorch and what exports from it are installed
    random-run/    with `--random`: the run that all of these are made of
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from benchmarks.engine import plain_pixels
from benchmarks.outputs import ROOT
from benchmarks.roster import VIT_GPT2_EXPORT, VIT_GPT2_INT8, missing_packages

if TYPE_CHECKING:
    import keras
    import onnx

    from caplet.manifest import Decoding
    from caplet_export.model import Captioner

Feeds = Sequence[dict[str, Any]]
PHOTOS = ROOT / "tests/photos"
RELEASED = ROOT / "models/checkpoints/flickr8k-gru"
PHOTO_SIZE = (640, 480)


def write_photos(folder: Path) -> list[Path]:
    """The sample photos as 640x480 JPEGs."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for source in sorted(PHOTOS.glob("*.jpg")):
        with Image.open(source) as photo:
            photo.convert("RGB").resize(PHOTO_SIZE, Image.Resampling.BICUBIC).save(folder / source.name, quality=90)
        written.append(folder / source.name)
    return written


def write_random_run(folder: Path) -> Path:
    """A run folder like the released captioner's, with random weights, which take as long as trained ones."""
    import keras

    from caplet_export.checkpoint import save_checkpoint
    from caplet_export.config import load_config
    from caplet_export.model import build_model
    from caplet_export.text import Vocabulary

    keras.utils.set_random_seed(1)
    config = load_config(RELEASED / "config.json")
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder, config, Vocabulary.load(RELEASED / "vocabulary.txt"), build_model(config.model))
    return folder


def prepare(
    folder: Path, run: Path, extractor: keras.Model, model: Captioner, bundle: Path | None, photos: Sequence[Path]
) -> None:
    """Write every form of a captioner, to decode as its bundle does; if it has none, one is quantised on the photos."""
    import onnx

    from caplet.bundle import load_bundle
    from caplet_export.calibrate import greedy_feeds
    from caplet_export.checkpoint import DECODER
    from caplet_export.config import DEFAULT_DECODING
    from caplet_export.convert import convert_decoder, convert_encoder, take_top_k
    from caplet_export.optimize import optimize_decoder, optimize_encoder, optimize_for_floats
    from caplet_export.quantize import quantize

    (folder / "keras/run").mkdir(parents=True, exist_ok=True)
    extractor.save(folder / "keras/extractor.keras")
    for name in ("config.json", "vocabulary.txt", DECODER):
        shutil.copyfile(run / name, folder / "keras/run" / name)

    _write_litert(folder / "litert", extractor, model)

    height, width = extractor.input_shape[1:3]
    feeds = [{"pixels": plain_pixels(photo, (width, height))} for photo in photos]
    plain = convert_encoder(extractor, model, plain=True)
    plain_decoder = take_top_k(convert_decoder(model, plain=True))
    _write_graphs(folder / "plain", plain, plain_decoder)
    _write_graphs(folder / "plain-qdq", _quantize_plainly(folder / "plain/encoder.onnx", feeds), plain_decoder)

    encoder = optimize_encoder(convert_encoder(extractor, model))
    decoder = take_top_k(optimize_decoder(convert_decoder(model)))
    words = run / "vocabulary.txt"
    decoding = load_bundle(bundle).manifest.decoding if bundle else DEFAULT_DECODING
    _write_bundle(folder / "fp32", optimize_for_floats(encoder), decoder, words, decoding, photos[0])
    if bundle is None:
        length = decoding.max_length
        byte_decoder = quantize(decoder, lambda: greedy_feeds(encoder, decoder, feeds, length), method="minmax")
        _write_bundle(folder / "int8", _quantize_encoder(encoder, feeds), byte_decoder, words, decoding, photos[0])
    else:
        shutil.rmtree(folder / "int8", ignore_errors=True)
        shutil.copytree(bundle, folder / "int8")
    # Groups of pixels make onnxruntime faster, and OpenVINO a tenth slower.
    ungrouped = _quantize_encoder(encoder, feeds, group=False)
    _write_graphs(folder / "int8-ungrouped", ungrouped, onnx.load(folder / "int8/decoder.onnx"))


def _write_litert(folder: Path, extractor: keras.Model, model: Captioner) -> None:
    """Both graphs for one photo at a time, because LiteRT's XNNPACK wants to know all shapes."""
    import tensorflow as tf

    from caplet_export.inception import scale

    config = model.config
    height, width = extractor.input_shape[1:3]

    def encode(pixels: Any) -> Any:
        grid = extractor(scale(pixels), training=False)
        outputs = model.encode(tf.reshape(grid, (1, config.locations, config.extractor_channels)))
        return dict(zip(("features", "keys", "state"), outputs, strict=True))

    def decode(token: Any, state: Any, features: Any, keys: Any) -> Any:
        logits, next_state, _ = model.step(token, state, features, keys)
        return {"logits": logits, "next_state": next_state}

    folder.mkdir(parents=True, exist_ok=True)
    pixels = tf.TensorSpec((1, height, width, 3), tf.uint8, name="pixels")
    _convert_to_litert(folder / "encoder.tflite", encode, [pixels])
    # Shapes come from the encoder itself: the arrays of an ensemble are those of all its members together.
    encoded = {
        name: tf.TensorSpec(array.shape, array.dtype, name=name)
        for name, array in encode(tf.zeros(pixels.shape, pixels.dtype)).items()
    }
    inputs = [tf.TensorSpec((1,), tf.int64, name="token"), *(encoded[name] for name in ("state", "features", "keys"))]
    _convert_to_litert(folder / "decoder.tflite", decode, inputs)


def _convert_to_litert(path: Path, function: Any, inputs: Sequence[Any]) -> None:
    """Write a file with one signature, whose outputs have the names in the dictionary that the function returns."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    traced = tf.function(function, input_signature=inputs, autograph=False).get_concrete_function()
    # TensorFlow 2.21 leaves the variables of Keras 3 out of the file, and LiteRT then reads whatever lies in memory.
    frozen = convert_variables_to_constants_v2(traced)

    def constant(*values: Any) -> Any:
        return tf.nest.pack_sequence_as(traced.structured_outputs, frozen(*values))

    module = tf.Module()
    module.function = tf.function(constant, input_signature=inputs, autograph=False)
    with tempfile.TemporaryDirectory() as saved:
        tf.saved_model.save(module, saved, signatures=module.function)
        path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(saved).convert())


def _quantize_plainly(encoder: Path, feeds: Feeds) -> onnx.ModelProto:
    """onnxruntime's own static quantisation, by channel and with unsigned activations, which on x86 are the faster."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Photos(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = iter(feeds)

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


def _quantize_encoder(encoder: onnx.ModelProto, feeds: Feeds, *, group: bool = True) -> onnx.ModelProto:
    from caplet_export.optimize import optimize_for_bytes
    from caplet_export.quantize import quantize

    return quantize(optimize_for_bytes(encoder, group=group), lambda: feeds, method="minmax")


def _write_graphs(folder: Path, encoder: onnx.ModelProto, decoder: onnx.ModelProto) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "encoder.onnx").write_bytes(encoder.SerializeToString())
    (folder / "decoder.onnx").write_bytes(decoder.SerializeToString())


def _write_bundle(
    folder: Path, encoder: onnx.ModelProto, decoder: onnx.ModelProto, words: Path, decoding: Decoding, photo: Path
) -> None:
    """Write a bundle named after its folder."""
    from caplet_export.bundle import write_bundle

    with tempfile.TemporaryDirectory() as work:
        _write_graphs(Path(work), encoder, decoder)
        shutil.copyfile(words, Path(work, "vocabulary.txt"))
        write_bundle(folder, Path(work), name=f"benchmark-{folder.name}", golden=[photo], decoding=decoding)


def write_vit_gpt2(folder: Path) -> str:
    """Run `benchmarks.vit_gpt2`, if what it needs is installed; what to say of it."""
    if missing := missing_packages(VIT_GPT2_EXPORT):
        return f"left out {folder.name}, not installed: {', '.join(missing)}"
    subprocess.run([sys.executable, "-m", "benchmarks.vit_gpt2", str(folder.resolve())], cwd=ROOT, check=True)
    return f"wrote {folder.name}"


def _words(folder: Path) -> bytes:
    return (folder / "vocabulary.txt").read_bytes()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prepare", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder to write; about 800 MB")
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument("--run", type=Path, help="run folder of `caplet-export`")
    weights.add_argument("--random", action="store_true", help="random weights of the released sizes instead")
    parser.add_argument("--encoder-weights", help="`imagenet` or a path (default: `imagenet`; with --random: random)")
    parser.add_argument("--bundle", type=Path, help="int8 bundle made of that run (default: quantise one here)")
    arguments = parser.parse_args(argv)
    if arguments.random and arguments.bundle:
        parser.error("--bundle belongs to a --run")
    for path in filter(None, (arguments.run, arguments.bundle)):
        if not (path / "vocabulary.txt").is_file():
            parser.error(f"{path}: no vocabulary.txt here")
    if arguments.bundle and _words(arguments.bundle) != _words(arguments.run):
        parser.error(f"{arguments.bundle}: its vocabulary is not that of {arguments.run}, so not made from it")

    from caplet_export.checkpoint import load_checkpoint, load_extractor

    photos = write_photos(arguments.folder / "photos")
    run = write_random_run(arguments.folder / "random-run") if arguments.random else arguments.run
    extractor = load_extractor(run, arguments.encoder_weights or (None if arguments.random else "imagenet"))
    prepare(arguments.folder, run, extractor, load_checkpoint(run).model, arguments.bundle, photos)
    print(write_vit_gpt2(arguments.folder / VIT_GPT2_INT8))
    print(f"wrote {arguments.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
