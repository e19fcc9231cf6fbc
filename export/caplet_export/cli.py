"""The `caplet-export` command: one verb per stage, in the order the data flows."""

from __future__ import annotations

import argparse
import gc
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from caplet import __version__
from caplet.arguments import Parser
from caplet.errors import CapletError, printable
from caplet.inputs import matching
from caplet.output import INTERRUPTED, end_process, heed_sigterm, was_interrupted
from caplet_export.errors import ExportError, in_one_line

VERBS = {
    "features": "run InceptionV3 over a data set and store its features",
    "train": "train a captioner on stored features",
    "join": "make an ensemble of several trained captioners, or average them",
    "trim": "reduce a captioner's vocabulary to the words that it would say",
    "prune": "make a trained captioner narrower, for further training",
    "tune": "train encoder and decoder as one, from pixels, on a GPU if there is one",
    "ablation": "compare training runs on the dev split, for the model card",
    "convert": "convert a trained captioner to ONNX and verify it against the original",
    "quantize": "make the ONNX graphs 8-bit",
    "bundle": "put graphs, vocabulary, card and golden captions into one bundle",
    "evaluate": "score a bundle on a split, or compare two",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns 0 if it is done, 1 if it failed with one line on standard error, 130 if interrupted.

    Raises:
        SystemExit: with status 2 after wrong usage, 0 after `--help` and `--version`.
    """
    arguments_list = [name for word in (sys.argv[1:] if argv is None else argv) for name in matching(word)]
    parser = Parser(
        prog="caplet-export",
        description="Train a captioner on photos of your own and make it a bundle for caplet, one verb for each stage.",
        epilog="exit status: 0 done, 1 failed with one line on standard error, 2 wrong usage, 130 interrupted",
    )
    parser.add_argument("--version", action="version", version=f"caplet-export {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    wanted = next((word for word in arguments_list if not word.startswith("-")), None)
    arguments = None
    try:
        for name, summary in VERBS.items():
            verb = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
            # Only the verb that runs is imported: `caplet-export --help` must not wait for TensorFlow.
            if name == wanted:
                importlib.import_module(f"caplet_export.verbs.{name}").add_arguments(verb)
        arguments, unknown = parser.parse_known_args(arguments_list)
        if unknown:  # argparse would point to the help of the whole command, which has no verb's options
            verbs.choices[arguments.verb].error(f"unrecognized arguments: {' '.join(unknown)}")
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        return int(importlib.import_module(f"caplet_export.verbs.{wanted}").run(arguments))
    except ImportError as error:
        if was_interrupted(error):
            return _interrupted(wanted, arguments)
        return _complain(wanted, _unimported(error, wanted))
    except (ExportError, CapletError) as error:
        return _complain(wanted, str(error))
    except (OSError, UnicodeError) as error:
        # Errors that no verb foresees: a full disk, a folder that may not be read, an argument that is not UTF-8.
        file, reason = getattr(error, "filename", None), getattr(error, "strerror", None) or error
        return _complain(wanted, f"{file}: {reason}" if file else str(reason))
    except KeyboardInterrupt:
        return _interrupted(wanted, arguments)
    except Exception as error:
        if _being_imported(error) is not None:
            return _complain(wanted, _unimported(error, wanted))
        if not _lacks_memory(error):
            raise
        remedies = {"features": ", or lower --batch-size", "train": ", or lower train.batch_images"}
        return _complain(wanted, f"not enough memory; free some{remedies.get(str(wanted), '')}")


def _unimported(error: Exception, verb: str | None) -> str:
    """What cannot be imported, why, and what to do."""
    extra = "tune" if verb == "tune" else "export"
    # An AttributeError has a name as well: the attribute's.
    library = (error.name if isinstance(error, ImportError) else None) or _being_imported(error) or "a dependency"
    if isinstance(error, ModuleNotFoundError):
        return f"{library} is missing; pip install 'caplet[{extra}]'"
    # TensorFlow raises the whole traceback of what went wrong as a text.
    cause = (str(error).startswith("Traceback") and error.__context__) or error
    return f"{library} cannot be imported ({in_one_line(cause)}); make a new virtual environment for caplet[{extra}]"


def _being_imported(error: Exception) -> str | None:
    """The library in whose import the error arose, as where versions do not fit together; None if there is none."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    modules = [str(frame.f_globals["__name__"]) for frame in frames if frame.f_code.co_name == "<module>"]
    libraries = [module.partition(".")[0] for module in modules]
    return next((name for name in reversed(libraries) if name not in ("caplet", "caplet_export")), None)


def _lacks_memory(error: Exception) -> bool:
    """Whether no memory was left; TensorFlow's error for that is told by its name, as few verbs import TensorFlow."""
    return isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError"


def _complain(verb: str | None, message: str, status: int = 1) -> int:
    print(f"caplet-export {verb}: {printable(message)}", file=sys.stderr)
    return status


def _interrupted(verb: str | None, arguments: argparse.Namespace | None) -> int:
    """Report the interruption. `arguments` is None if it came before they were parsed."""
    advice = "; run the same command to go on" if arguments and _goes_on(arguments) else ""
    return _complain(verb, f"interrupted{advice}", INTERRUPTED)


def _goes_on(arguments: argparse.Namespace) -> bool:
    """Whether the same command, given again, goes on where it was interrupted instead of beginning anew."""
    if arguments.verb == "evaluate":
        # Its captions are kept in a journal beside the file that it writes.
        return arguments.json is not None or arguments.report is not None
    return arguments.verb in ("features", "train", "tune")


def command() -> NoReturn:
    """The `caplet-export` script: run `main` and end the process."""
    # TensorFlow makes a million objects that live as long as the process. Looking for garbage among them after every
    # few hundred new ones takes a sixth of the time of its import.
    gc.set_threshold(100_000)
    heed_sigterm()
    _repair_streams()
    end_process(main())


def _repair_streams() -> None:
    """Let printing never fail: closed standard streams lead nowhere; characters that an encoding lacks are escaped."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            # At its own number, which a file would otherwise get: C libraries print there.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            if nowhere != descriptor:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
            setattr(sys, name, os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace", closefd=False))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
