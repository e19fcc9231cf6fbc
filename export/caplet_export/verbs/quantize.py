"""`caplet-export quantize`: make the ONNX graphs 8-bit."""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from caplet.arguments import count
from caplet_export.config import DEFAULT_DECODING
from caplet_export.errors import ConfigurationError, DataError
from caplet_export.flickr8k import Dataset
from caplet_export.outputs import GRAPHS, beside, check_folder, whole_folder
from caplet_export.ranges import DEFAULT_METHOD, METHODS
from caplet_export.verbs import read_data, seed

_BIAS_BATCHES = 8
"""Batches of photos to correct biases by: means need fewer than ranges do, and four times as many gained nothing."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("graphs", type=Path, help="folder written by `caplet-export convert`")
    parser.add_argument("--data", type=Path, required=True, help="data set with the training photos to calibrate on")
    parser.add_argument(
        "--calibration", type=count, default=256, metavar="N", help="number of these photos (default: %(default)s)"
    )
    parser.add_argument("--seed", type=seed, default=1, help="random seed that chooses them (default: %(default)s)")
    parser.add_argument(
        "--method",
        choices=METHODS,
        default=DEFAULT_METHOD,
        help="how ranges are chosen (default: %(default)s)",
    )
    parser.add_argument(
        "--evaluate",
        type=count,
        metavar="N",
        help="compare captions of the first N dev photos before and after, greedily",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for graphs; graphs there are replaced")


def run(arguments: argparse.Namespace) -> int:
    """Calibrate, quantise, report sizes."""
    inputs = (arguments.graphs, arguments.data)
    check_folder(arguments.output, GRAPHS, inputs)
    dataset = read_data(arguments)
    train = list(dataset.split("train"))
    if not train:
        raise DataError("calibration needs at least one training photo")
    if arguments.evaluate and not dataset.split("dev"):
        raise DataError("--evaluate needs at least one dev photo")
    names = random.Random(arguments.seed).sample(train, min(arguments.calibration, len(train)))

    import onnx

    from caplet_export.bias_correction import correct_biases
    from caplet_export.bundle import read_record
    from caplet_export.calibrate import greedy_feeds
    from caplet_export.onnx_graph import load_model, require_input, shape_of
    from caplet_export.optimize import optimize_for_bytes
    from caplet_export.photos import photo_batches, readable_photos
    from caplet_export.quantize import check_float_graph, quantize
    from caplet_export.text import Vocabulary

    # The captioner's own limit on words, which graphs of release 0.9 and before do not record.
    conversion = read_record(arguments.graphs, "conversion")
    for option in ("plain", "float_only"):
        if conversion.get(option):
            flag = "--" + option.replace("_", "-")
            raise ConfigurationError(f"{arguments.graphs}: made by `convert {flag}`; convert again without {flag}")
    length = conversion.get("max_length", DEFAULT_DECODING.max_length)
    files = [arguments.graphs / f"{name}.onnx" for name in ("encoder", "decoder")]
    encoder, decoder = (load_model(file) for file in files)
    _, height, width, _ = shape_of(require_input(encoder, "pixels", files[0], rank=4))
    require_input(decoder, "token", files[1])
    for model, file in zip((encoder, decoder), files, strict=True):
        check_float_graph(model, file)
    vocabulary = Vocabulary.load(arguments.graphs / "vocabulary.txt")

    readable = readable_photos(dataset, names)  # checked now and only once: calibration goes through them several times
    if not readable:
        raise DataError(f"{arguments.data}: none of {len(names)} photos to calibrate by can be read")

    def photos() -> Iterator[Mapping[str, Any]]:
        for _, pixels in photo_batches(dataset, readable, size=(width, height), task="calibrate"):
            yield {"pixels": pixels}

    byte_encoder = optimize_for_bytes(encoder)
    small_encoder = quantize(byte_encoder, photos, method=arguments.method)
    small_encoder = correct_biases(byte_encoder, small_encoder, islice(photos(), _BIAS_BATCHES))
    # Kept for the second pass, a quarter of a megabyte for each photo, lest the encoder run over all of them once more.
    said = list(greedy_feeds(encoder, decoder, photos(), length))
    small_decoder = quantize(decoder, lambda: said, method=arguments.method)
    with whole_folder(arguments.output, GRAPHS, inputs) as folder:
        onnx.save(small_encoder, folder / "encoder.onnx")
        onnx.save(small_decoder, folder / "decoder.onnx")
        vocabulary.save(folder / "vocabulary.txt")
        if (arguments.graphs / "parity.json").exists():
            shutil.copyfile(arguments.graphs / "parity.json", folder / "parity.json")
        record = {
            "method": arguments.method,
            "photos": len(readable),
            "seed": arguments.seed,
            "rounding": "nearest that does not saturate",
            "biases": "for the same means after the ReLUs",
        }
        (folder / "quantization.json").write_text(json.dumps(record, indent=1) + "\n")
    for name in ("encoder.onnx", "decoder.onnx"):
        before, after = ((path / name).stat().st_size / 1e6 for path in (arguments.graphs, arguments.output))
        print(f"{name}: {before:.1f} MB -> {after:.1f} MB")
    print(f"wrote {arguments.output}")
    if arguments.evaluate:
        print(_compare(arguments.graphs, arguments.output, dataset, arguments.evaluate, length))
    return 0


def _compare(before: Path, after: Path, dataset: Dataset, photos: int, max_length: int) -> str:
    """The runtime's captions before and after, as the table of a paired comparison."""
    from caplet_export.bundle import write_bundle
    from caplet_export.compare import compare, format_comparison
    from caplet_export.evaluate import Evaluation, evaluate

    def captions_of(graphs: Path, name: str) -> Evaluation:
        decoding = replace(DEFAULT_DECODING, max_length=max_length)
        bundle = beside(after.resolve(), "compared")
        shutil.rmtree(bundle, ignore_errors=True)
        try:
            write_bundle(bundle, graphs, name=name, golden=[], decoding=decoding)
            return evaluate(bundle, dataset, "dev", beam_sizes=[1], limit=photos)
        finally:
            shutil.rmtree(bundle, ignore_errors=True)

    return format_comparison(compare(captions_of(before, "float"), captions_of(after, "8 bits"), dataset))
