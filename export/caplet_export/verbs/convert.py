"""`caplet-export convert`: convert a trained captioner to ONNX and prove that it says the same."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from caplet.arguments import count
from caplet_export.backend import load_tensorflow
from caplet_export.errors import ConfigurationError, DataError
from caplet_export.outputs import GRAPHS, check_folder, whole_folder
from caplet_export.verbs import read_data


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--encoder-weights", default="imagenet", help="`imagenet` or a path (default: %(default)s)")
    parser.add_argument("--data", type=Path, required=True, help="data set with the photos for the proof")
    parser.add_argument("--split", default="dev", help="split the photos are taken from (default: %(default)s)")
    parser.add_argument("--limit", type=count, metavar="N", help="prove on the first N photos only")
    rewrites = parser.add_mutually_exclusive_group()
    rewrites.add_argument(
        "--float-only",
        action="store_true",
        help="also rewrite what is faster only in graphs that stay in float32, for a bundle without `quantize`",
    )
    rewrites.add_argument(
        "--plain", action="store_true", help="trace the training code as it is and rewrite nothing (for benchmarks)"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for graphs; graphs there are replaced")


def run(arguments: argparse.Namespace) -> int:
    """Convert, prove that captions stay the same, and only then write."""
    inputs = (arguments.run, arguments.data)
    check_folder(arguments.output, GRAPHS, inputs)
    dataset = read_data(arguments)
    names = dataset.split(arguments.split)[: arguments.limit]
    if not names:
        raise DataError(f"the proof needs at least one {arguments.split} photo; see --split")

    load_tensorflow()
    import onnx

    from caplet_export.checkpoint import load_checkpoint, load_extractor, run_digest
    from caplet_export.convert import convert_decoder, convert_encoder, take_top_k
    from caplet_export.features import weights_digest
    from caplet_export.optimize import optimize_decoder, optimize_encoder, optimize_for_floats
    from caplet_export.parity import KerasCaptioner, OnnxCaptioner, prove
    from caplet_export.photos import photo_batches

    weights = run_digest(arguments.run)
    checkpoint = load_checkpoint(arguments.run)
    extractor = load_extractor(arguments.run, arguments.encoder_weights)
    height, width = extractor.input_shape[1:3]
    encoder = convert_encoder(extractor, checkpoint.model, plain=arguments.plain)
    decoder = convert_decoder(checkpoint.model, plain=arguments.plain)
    if not arguments.plain:
        encoder, decoder = optimize_encoder(encoder), optimize_decoder(decoder)
    if arguments.float_only:
        encoder = optimize_for_floats(encoder)

    parity = prove(
        KerasCaptioner(extractor, checkpoint.model),
        OnnxCaptioner(encoder, decoder),
        photo_batches(dataset, names, size=(width, height), task="compare"),
        checkpoint.config.text.max_length,
    )
    print(f"{parity.identical_captions} of {parity.photos} greedy captions are the same; largest differences:")
    for name, difference in parity.max_difference.items():
        print(f"  {name:<10} {difference:.1e} (largest value {parity.largest_value[name]:.3g})")
    parity.check()
    if run_digest(arguments.run) != weights:
        raise ConfigurationError(f"{arguments.run}: was trained further in the meantime; convert again")

    with whole_folder(arguments.output, GRAPHS, inputs) as folder:
        onnx.save(encoder, folder / "encoder.onnx")
        onnx.save(take_top_k(decoder), folder / "decoder.onnx")
        shutil.copyfile(arguments.run / "vocabulary.txt", folder / "vocabulary.txt")
        record = {
            "encoder_weights": weights_digest(arguments.encoder_weights),
            "run_weights": weights,
            "max_length": checkpoint.config.text.max_length,
            "plain": arguments.plain,
            "float_only": arguments.float_only,
            **parity.to_json(),
        }
        (folder / "parity.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {arguments.output}")
    return 0
