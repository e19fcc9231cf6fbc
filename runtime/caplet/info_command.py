"""`caplet info`: versions, model, licence, hashes, CPU, threads."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from caplet.bundle import load_bundle
from caplet.errors import BundleError, printable
from caplet.machine import describe_cpu, versions
from caplet.output import tell
from caplet.threads import usable_threads

_TITLES = {"cider_d": "CIDEr-D", "bleu_4": "BLEU-4", "rouge_l": "ROUGE-L"}


def run(arguments: argparse.Namespace) -> int:
    """Print the information; returns the exit status.

    Raises CapletError if there is no usable model. Without --json, what is known of the machine is printed even then:
    it belongs in a report of that error.
    """
    try:
        information = describe(arguments.model, arguments.threads)
    except BundleError:
        if not arguments.json:
            tell(_table(_machine_rows(describe_machine(arguments.threads))))
        raise
    tell(json.dumps(information, indent=2) + "\n" if arguments.json else _as_text(information))
    return 0


def describe(model: str | None, asked_threads: int | None) -> dict[str, Any]:
    """Everything `caplet info` reports, ready for JSON. Raises CapletError."""
    bundle = load_bundle(model)
    manifest = bundle.manifest
    machine = describe_machine(asked_threads)
    return {
        "versions": machine["versions"],
        "model": {
            "name": manifest.name,
            "path": str(bundle.path),
            "sha256": bundle.digest,
            "created_with": manifest.created_with,
            "vocabulary": len(bundle.words),
            "photo_size": [manifest.width, manifest.height],
            "decoding": vars(manifest.decoding),
        },
        "license": dict(manifest.license),
        "files": {name: vars(entry) for name, entry in manifest.files.items()},
        "metrics": manifest.metrics,
        "provenance": manifest.provenance,
        "cpu": machine["cpu"],
        "threads": machine["threads"],
    }


def describe_machine(asked_threads: int | None) -> dict[str, Any]:
    """What does not depend on the model: versions, processor, threads."""
    return {"versions": versions(), "cpu": describe_cpu(), "threads": vars(usable_threads(asked_threads))}


def _as_text(information: dict[str, Any]) -> str:
    model, files = information["model"], information["files"]
    decoding = model["decoding"]
    about_versions, *about_machine = _machine_rows(information)
    rows = [
        about_versions,
        ("model", f"{model['name']}, {model['vocabulary']} words in the vocabulary"),
        ("path", model["path"]),
        ("sha256", model["sha256"]),
        ("created with", ", ".join(f"{name} {version}" for name, version in model["created_with"].items())),
        ("search", f"beam {decoding['beam_size']}, at most {decoding['max_length']} words"),
        *((f"license of {what}", text) for what, text in information["license"].items()),
        *((f"file {name}", f"{file['bytes']:,} bytes, {file['sha256']}") for name, file in files.items()),
        ("scores", _scores(information["metrics"], decoding["beam_size"])),
        *about_machine,
    ]
    return _table(rows)


def _machine_rows(information: dict[str, Any]) -> list[tuple[str, str]]:
    cpu, threads = information["cpu"], information["threads"]
    return [
        ("versions", ", ".join(f"{name} {version}" for name, version in information["versions"].items())),
        ("CPU", f"{cpu['name'] or 'unknown'} ({cpu['architecture']}, {cpu['cpus']} CPUs)"),
        ("CPU features", " ".join(cpu["features"]) or "unknown"),
        ("threads", f"{threads['count']} ({threads['reason']})"),
    ]


def _table(rows: list[tuple[str, str]]) -> str:
    cells = [(printable(name), printable(text)) for name, text in rows]  # so that a bundle's strings cannot forge rows
    width = max(len(name) for name, _ in cells)
    return "".join(f"{name.ljust(width)}  {text}\n" for name, text in cells)


def _scores(metrics: Mapping[str, Any], beam_size: int) -> str:
    """The default search's scores in one line, if the bundle's metrics have the form that caplet-export writes."""
    try:
        scores = metrics["results"][str(beam_size)]["scores"]
        figures = ", ".join(f"{title} {scores[key]:.1f}" for key, title in _TITLES.items())
        return f"{figures} on {metrics['images']} photos of the {metrics['split']} split"
    except (KeyError, TypeError, ValueError, OverflowError):
        return "none for the default search"
