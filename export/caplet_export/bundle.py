"""Bundles: graphs, vocabulary, card and golden captions in one directory that caplet loads."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnx
from PIL import Image

from caplet import Captioner, __version__
from caplet.errors import CapletError, ImageError
from caplet.image import load_pixels
from caplet.manifest import FORMAT_VERSION, Decoding
from caplet_export.card import render_card, render_scores
from caplet_export.charts import plot_ablations
from caplet_export.config import DEFAULT_DECODING
from caplet_export.errors import ConfigurationError, ExportError, without_options
from caplet_export.inputs import read_json
from caplet_export.onnx_graph import load_model, require_input, shape_of
from caplet_export.outputs import ATTENTION, CHART, GRAPHS, whole_folder
from caplet_export.quantize import saturates
from caplet_export.stages import Stage
from caplet_export.text import SPECIALS, Vocabulary

_PACKAGES = ("tensorflow", "tensorflow-cpu", "keras", "tf2onnx", "onnx", "onnxruntime", "numpy", "pillow")
_FIGURE_WIDTH = 1200
_FILES = {"encoder": "encoder.onnx", "decoder": "decoder.onnx", "vocabulary": "vocabulary.txt"}
_LEARNED = ("repeatable", "forms")
"""Settings that `bundle` learns from the training captions."""
_MEASURED = ("max_length", "length_penalty", "block_repeated_trigrams", *_LEARNED)
"""Settings that the scores depend on; the card names them beside the scores."""
_RECORDS = {
    "conversion": ("parity.json", {"photos", "identical_captions", "max_difference", "encoder_weights"}),
    "quantization": ("quantization.json", {"method", "photos", "seed", "rounding"}),
}
"""The records that `convert` and `quantize` leave beside the graphs, and the fields of them that the card needs."""


@dataclass(frozen=True)
class Licences:
    """Terms of the weights and of the data they were trained on, each a sentence without its full stop."""

    weights: str = "not stated"
    data: str = "not stated"


def write_bundle(
    output: Path,
    graphs: Path,
    *,
    name: str,
    golden: Sequence[Path],
    recipe: Mapping[str, Any] | None = None,
    stages: Sequence[Stage] = (),
    decoding: Decoding = DEFAULT_DECODING,
    licences: Licences = Licences(),
    metrics: Mapping[str, Any] | None = None,
    comparison: str | None = None,
    ablations: Sequence[Mapping[str, Any]] = (),
    findings: str | None = None,
    limits: str | None = None,
    inputs: Sequence[Path] = (),
) -> None:
    """Write a bundle, whole or not at all.

    Args:
        output: its directory; a bundle that is there is replaced.
        graphs: folder written by `caplet-export convert` or `quantize`.
        name: the bundle's name.
        golden: photos that may be redistributed; the first is the card's figure. They are stored at the encoder's size
            as PNG, and captioned by the bundle itself through caplet, greedily and by the default search.
        recipe: the configuration that trained it.
        stages: how it was trained, for the card.
        decoding: the default settings of its search.
        licences: terms of its weights and of the data they were trained on.
        metrics: the evaluation that `caplet-export evaluate --json` wrote; its captions are left out.
        comparison: Markdown for the card: the output of `caplet-export evaluate --compare` for these graphs and those
            before quantisation.
        ablations: tables for the card, see `caplet_export.card.render_card`.
        findings: Markdown for the card, see there.
        limits: Markdown for the card, see there.
        inputs: further paths that are read and must not be replaced by the bundle, such as the run.

    Raises:
        ConfigurationError: `graphs` is incomplete or a bundle, `metrics` are not of this bundle, two golden photos have
            one name, or caplet cannot use the bundle.
        ExportError: a golden photo cannot be read, or `output` is not to be replaced or cannot be written.
    """
    with whole_folder(output, GRAPHS, (graphs, *inputs)) as folder:
        for file in _FILES.values():
            if not (graphs / file).exists():
                raise ConfigurationError(f"{graphs / file}: no such file; run `caplet-export convert` first")
            shutil.copyfile(graphs / file, folder / file)
        manifest = _manifest(graphs, name, decoding, licences)
        manifest["provenance"] = _provenance(graphs, recipe, stages)
        size = (manifest["preprocessing"]["width"], manifest["preprocessing"]["height"])
        photos = _store_photos(folder, golden, size)
        # Before there are a card and its pictures: people edit those, on the Hugging Face Hub for instance, and the
        # captions stay the same.
        manifest["files"] = _hashes(folder)
        sha256 = {role: manifest["files"][file]["sha256"] for role, file in _FILES.items()}
        manifest["metrics"] = summarize_metrics(metrics, name, decoding, sha256)
        chart = plot_ablations(ablations, folder / CHART)
        card = render_card(manifest, ablations, comparison, findings, limits, figure=bool(golden), chart=chart)
        (folder / "README.md").write_text(card, encoding="utf-8", newline="\n")
        # Captions need a bundle that can be loaded, so the manifest is written twice.
        _write_manifest(folder, manifest)
        try:
            captioner = Captioner(folder)
            manifest["golden"] = _golden_captions(captioner, folder, photos, decoding.beam_size)
            if golden:
                _draw_attention(captioner, golden[0], folder / ATTENTION)
        except CapletError as error:
            reason = str(error).replace(str(folder), str(output))  # not the temporary folder, which is gone by then
            raise ConfigurationError(f"{output}: not a bundle that caplet can use: {reason}") from error
        _write_manifest(folder, manifest)


def summarize_metrics(
    evaluation: Mapping[str, Any] | None, name: str, decoding: Decoding, sha256: Mapping[str, str]
) -> dict[str, Any]:
    """The manifest's `metrics` from an evaluation: scores and intervals by beam size, without the captions.

    Args:
        evaluation: as JSON; None if there is none.
        name: the bundle's.
        decoding: the bundle's.
        sha256: digests of the bundle's files, by role: `encoder`, `decoder` and `vocabulary`.

    Raises:
        ConfigurationError: it is not an evaluation, or is one of another name, other settings or other files.
    """
    if evaluation is None:
        return {"split": "none", "scorer": "none", "results": {}}
    settings = json.loads(json.dumps(vars(decoding)))  # with lists for tuples, as the evaluation was read
    try:
        expected = {"name": name, **{setting: settings[setting] for setting in _MEASURED}}
        measured = {"name": evaluation["bundle"]["name"], **{key: evaluation["settings"][key] for key in _MEASURED}}
        others = [role for role, digest in sha256.items() if evaluation["bundle"]["sha256"][role] != digest]
        summary = {
            "split": evaluation["data"]["split"],
            "images": evaluation["data"]["images"],
            "limit": evaluation["settings"]["limit"],
            "scorer": evaluation["scorer"],
            "human": evaluation["data"]["human"],
            "results": {
                beam: {
                    "scores": result["scores"],
                    "intervals": result["intervals"],
                    "cider_d_by_score": result["cider_d_by_score"],
                    "leave_one_out": result["leave_one_out"],
                    "milliseconds": round(result["milliseconds"], 1),
                }
                for beam, result in evaluation["results"].items()
            },
        }
        if not summary["results"]:
            raise ValueError("no results")
        render_scores(summary, settings)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"--metrics: not what `caplet-export evaluate --json` writes: {error}") from error
    for setting, value in expected.items():
        if measured[setting] == value:
            continue
        if setting in _LEARNED:  # ids of words, which tell nobody anything
            raise ConfigurationError(
                f"--metrics: measured with other rules of --data ({setting}); "
                "give the same --data, or evaluate this bundle"
            )
        raise ConfigurationError(
            f"--metrics: measured with {setting} {measured[setting]}, not {value}; evaluate this bundle"
        )
    if others:
        raise ConfigurationError(f"--metrics: measured with another {others[0]}; evaluate this bundle")
    return summary


def read_ablation(path: Path) -> dict[str, Any]:
    """A table for the card. Raises a ConfigurationError if the file is not one that `caplet-export ablation` wrote."""
    table = read_json(path)
    try:
        rows = [table["columns"], *table["rows"]]
        width = len(table["columns"])
        whole = isinstance(table["title"], str) and all(isinstance(row, list) and len(row) == width for row in rows)
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise ConfigurationError(f"{path}: not a table that `caplet-export ablation` writes")
    return dict(table)


def read_record(graphs: Path, name: str) -> dict[str, Any]:
    """The record of the `conversion` or the `quantization` that a verb left beside graphs; empty if it left none.

    Raises:
        ConfigurationError: the file holds something else, or `graphs` is a bundle, which has no such file.
    """
    file, needed = _RECORDS[name]
    if (graphs / "manifest.json").exists():
        raise ConfigurationError(f"{graphs}: a bundle; give the graphs that it was made of")
    if not (graphs / file).exists():
        return {}
    record = read_json(graphs / file)
    if not isinstance(record, dict) or not needed <= set(record):
        raise ConfigurationError(f"{graphs / file}: not what caplet-export writes; needs {', '.join(sorted(needed))}")
    return record


def _manifest(graphs: Path, name: str, decoding: Decoding, licences: Licences) -> dict[str, Any]:
    encoder, decoder = (load_model(graphs / f"{graph}.onnx") for graph in ("encoder", "decoder"))
    _, height, width, _ = shape_of(require_input(encoder, "pixels", graphs / "encoder.onnx", rank=4))
    require_input(decoder, "token", graphs / "decoder.onnx")
    return {
        "format_version": FORMAT_VERSION,
        "name": name,
        "created_with": _versions(),
        "files": {},
        "graphs": {
            "encoder": {"file": "encoder.onnx", "opset": _opset(encoder), "saturates": saturates(encoder)},
            "decoder": {"file": "decoder.onnx", "opset": _opset(decoder), "saturates": saturates(decoder)},
        },
        "vocabulary": {"file": "vocabulary.txt", "size": len(Vocabulary.load(graphs / "vocabulary.txt"))},
        "preprocessing": {
            "height": height,
            "width": width,
            "color": "RGB",
            "dtype": "uint8",
            "resize": "squash",
            "resample": "bilinear",
        },
        "tokens": dict(zip(("pad", "start", "end", "unknown"), SPECIALS, strict=True)),
        "decoding": vars(decoding),
        "license": vars(licences),
        "provenance": {},
        "metrics": {},
        "golden": [],
    }


def _provenance(graphs: Path, recipe: Mapping[str, Any] | None, stages: Sequence[Stage]) -> dict[str, Any]:
    """The recipe, its stages, and the records that `convert` and `quantize` left beside the graphs."""
    provenance: dict[str, Any] = {"recipe": recipe} if recipe else {}
    if stages:
        provenance["stages"] = [dataclasses.asdict(stage) for stage in stages]
    for name in _RECORDS:
        if record := read_record(graphs, name):
            # Captions of the data set's photos, which are not ours, have no place in a bundle.
            provenance[name] = {key: value for key, value in record.items() if key != "different_captions"}
    return provenance


def _store_photos(folder: Path, photos: Sequence[Path], size: tuple[int, int]) -> dict[str, Path]:
    """Write each photo at the encoder's size as PNG, which keeps every pixel; returns sources by stored file."""
    (folder / "golden").mkdir()
    stored: dict[str, Path] = {}
    for photo in photos:
        file = f"golden/{photo.stem}.png"
        if file in stored:
            raise ConfigurationError(f"--golden: two photos are called {photo.stem}; rename one")
        try:
            pixels = load_pixels(photo, size=size)
        except ImageError as error:
            raise ExportError(str(without_options(error))) from error
        Image.fromarray(pixels).save(folder / file, optimize=True)
        stored[file] = photo
    return stored


def _golden_captions(
    captioner: Captioner, folder: Path, photos: Mapping[str, Path], beam_size: int
) -> list[dict[str, Any]]:
    entries = []
    for file, source in photos.items():
        for beam in sorted({1, beam_size}):
            caption = captioner.caption(folder / file, beam_size=beam)
            entries.append(
                {
                    "file": file,
                    # Where the photo was on this machine is nobody's business.
                    "source": source.name if source.is_absolute() else source.as_posix(),
                    "text": caption.text,
                    "score": round(caption.score, 6),
                    "beam_size": beam,
                }
            )
    return entries


def _draw_attention(captioner: Captioner, photo: Path, path: Path) -> None:
    """Write the card's figure: where each word of a photo's caption looked."""
    drawing = captioner.caption(photo).plot(photo)
    drawing.thumbnail((_FIGURE_WIDTH, _FIGURE_WIDTH))
    drawing.save(path, quality=85)


def _hashes(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
        for path in files
    }


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (folder / "manifest.json").write_text(text, encoding="utf-8", newline="\n")


def _versions() -> dict[str, str]:
    # caplet's by itself: its metadata, in an editable installation, are of the day when it was installed.
    versions = {"python": platform.python_version(), "caplet": __version__}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):  # TensorFlow is installed under one of two names
            versions[package] = version(package)
    return versions


def _opset(model: onnx.ModelProto) -> int:
    return next(int(opset.version) for opset in model.opset_import if opset.domain == "")
