"""The `caplet` command: captions for photos, and the verbs info, check and bench.

Arguments are parsed here without numpy or onnxruntime, so that `caplet --help` is immediate; then, while these are
imported, a thread begins to open the model.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn

from caplet import __version__
from caplet.arguments import Parser, count
from caplet.errors import ArgumentError, CapletError
from caplet.inputs import STDIN, matching
from caplet.output import INTERRUPTED, complain, end_process, heed_sigterm, is_watched, tell, was_interrupted
from caplet.records import FORMATS
from caplet.targets import objection

if TYPE_CHECKING:
    from caplet.sessions import Sessions

STDOUT = "-"
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h
_EPILOG = """\
verbs:
  caplet info             versions, model, licence, hashes, CPU, threads
  caplet check            verify the model's files, and that this machine gives the captions stored with them
  caplet bench [PHOTO]    measure speed and memory on this machine
To caption a photo that is named like a verb, write ./info.

exit status: 0 every photo was captioned, 1 some were not, 2 wrong usage, 130 interrupted
"""

_IMPORT_REMEDIES = {
    # For want of memory, or on a disk that programs may not run from.
    "failed to map segment": "free some memory, or allow programs on that disk",
    "bad_alloc": "free some memory",
    # As libstdc++, which wheels expect of any system.
    "cannot open shared object file": "install that library, or caplet again",
    # On Windows; onnxruntime's wheels lack the C++ library that they need.
    "DLL load failed": "install Microsoft's newest Visual C++ Redistributable, or caplet again",
    # Which glibc 2.41 and SELinux refuse, and some builds ask for.
    "executable stack": "install a newer one",
    # A version of glibc or libstdc++: built for newer systems.
    "not found (required by": "install one that was made for this system",
    # Two builds of onnxruntime share a folder; pip removed one's files.
    "(unknown location)": "install it again, with pip's --force-reinstall",
    "made for NumPy 1": "install a newer one, or numpy<2",
}
"""What helps against an ImportError whose message has these words."""

_VERBS = {
    "info": "Print versions, model, licence, hashes, CPU and threads.",
    "check": "Verify the model's files, and that this machine gives the captions stored with them.",
    "bench": "Measure speed and memory on this machine.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; None for those of this process.

    Returns:
        The exit status: 0 all captioned, 1 some failed, 2 usage, 130 interrupted.
    """
    _occupy_standard_streams()
    # numpy would start a thread per core for matrix products that caplet never asks it for.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about damaged metadata, which nobody needs to act on
            return _run(list(sys.argv[1:] if argv is None else argv))
    except ArgumentError as error:
        return _complain(str(error), 2)
    except CapletError as error:
        return _complain(str(error), 1)
    except ImportError as error:
        if was_interrupted(error):
            return _complain("interrupted", INTERRUPTED)
        while isinstance(inner := error.__cause__ or error.__context__, ImportError):
            error = inner  # around it, NumPy puts a page of advice
        if not str(error):  # pybind11 loses what NumPy 2 says of an onnxruntime that was made for NumPy 1
            error = ImportError("made for NumPy 1", name="onnxruntime")
        remedies = (remedy for words, remedy in _IMPORT_REMEDIES.items() if words in str(error))
        remedy = next(remedies, "install caplet again")
        if isinstance(error, ModuleNotFoundError) and error.name in sys.stdlib_module_names:
            # As _ctypes, which small systems have in a package of its own, and Pythons lack that were built without.
            remedy = "install that part of Python"
        return _complain(f"{error.name or 'a dependency'} cannot be imported ({error}); {remedy}", 1)
    except BrokenPipeError:
        return 1  # whoever read the output has had enough
    except OSError as error:
        return _complain(f"{error.filename or 'input/output'}: {error.strerror or error}", 1)
    except MemoryError:
        return _complain("not enough memory; free some, or try --threads 1", 1)
    except RecursionError:  # `info --json`: Python can read a manifest that is nested deeper than it can write
        return _complain("what was read is nested too deeply", 1)
    except RuntimeError as error:
        if "baseline optimizations" not in str(error):
            raise
        # From 2.4 on, NumPy's wheels need more of an x86 processor than those of onnxruntime and Pillow.
        return _complain(f"numpy cannot be imported ({' '.join(str(error).split())}); install numpy<2.4", 1)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)


def command() -> NoReturn:
    """The `caplet` script: `main` in a process of its own, and its end."""
    heed_sigterm()
    _keep_freed_memory()
    status = main()
    end_process(status, at_once=not is_watched())


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed, up to a limit, for what is needed next, unless the environment tunes it otherwise.

    By default it gives the buffers of graphs and photos back to the system each time, which has to clear them anew: a
    fifteenth of the time of a single caption. What is larger than 32 MiB, glibc's limit, is given back all the same.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    # musl has no such function; a Python may be static, or lack ctypes, which is told when the model needs it.
    with contextlib.suppress(AttributeError, ImportError, OSError):
        import ctypes

        mallopt = ctypes.CDLL(None).mallopt
        for parameter, mebibytes in ((_M_MMAP_THRESHOLD, 32), (_M_TRIM_THRESHOLD, 256), (_M_TOP_PAD, 4)):
            mallopt(parameter, mebibytes << 20)


def _occupy_standard_streams() -> None:
    """Open the null device in place of standard streams that are closed.

    Otherwise the next file that is opened would get such a stream's number, and C libraries would write into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            try:
                os.open(os.devnull, os.O_RDWR)
            except OSError:  # a bare chroot has none; a folder can neither be read nor written, either
                os.open("/", os.O_RDONLY)


def _run(words: list[str]) -> int:
    verb = words.pop(0) if words and words[0] in _VERBS else None
    told = io.StringIO()
    try:
        with contextlib.redirect_stdout(told):
            arguments = _verb_parser(verb).parse_args(words) if verb else _parse_caption_arguments(words)
    except SystemExit as stop:
        if not stop.code:  # help or version, which argparse would lose in silence on a full disk
            tell(told.getvalue())
        return int(stop.code or 0)
    if verb:
        with _interrupts_held_back():
            module = importlib.import_module(f"{__package__}.{verb}_command")
        return int(module.run(arguments))
    from caplet.prefetch import beside

    with _interrupts_held_back(), beside(functools.partial(_open_model, arguments)) as opened:
        importlib.import_module(f"{__package__}.sessions")  # first, since the model waits for it
        module = importlib.import_module(f"{__package__}.caption_command")
    return int(module.run(arguments, opened))


def _open_model(arguments: argparse.Namespace) -> Sessions:
    """The model's sessions: a thread's work, as to hash files and lay out graphs takes long, but hardly any Python."""
    from caplet.bundle import load_bundle
    from caplet.threads import usable_threads

    bundle = load_bundle(arguments.model, verify=not arguments.no_verify)
    from caplet.sessions import Sessions  # which imports NumPy and onnxruntime, meanwhile in another thread

    return Sessions(bundle, usable_threads(arguments.threads).count, None)


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Hold back Ctrl-C until the block ends: while onnxruntime's C module is being loaded, it would be lost."""
    if sys.platform == "win32":  # has no way to hold back a signal
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _complain(message: str, status: int) -> int:
    complain(message)
    return status


def _name(text: str) -> str:
    """The name of a file or folder, as a `type` for argparse; not an empty one, as an unset shell variable gives."""
    if not text:
        raise ValueError
    return text


_name.__name__ = "name"  # what argparse calls it in its messages


def _parser(prog: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    return Parser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_model_options(parser: argparse.ArgumentParser, *, may_skip_hashes: bool = False) -> argparse.ArgumentParser:
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model", type=_name, metavar="DIR", help="folder of the model; default: $CAPLET_MODEL, or the bundled model"
    )
    model.add_argument(
        "--threads",
        type=count,
        metavar="N",
        help="threads per photo (many photos may use more in total); default: as many as this process may use",
    )
    if may_skip_hashes:
        model.add_argument(
            "--no-verify", action="store_true", help="do not check the model's files against their hashes"
        )
    return parser


def _caption_parser() -> argparse.ArgumentParser:
    parser = _parser("caplet", "Write a caption for every photo.", _EPILOG)
    parser.add_argument("--version", action="version", version=f"caplet {__version__}")
    parser.add_argument(
        "photos", nargs="*", type=_name, metavar="PHOTO", help="a file, a folder, or - for standard input"
    )
    photos = parser.add_argument_group("photos")
    photos.add_argument("-r", "--recursive", action="store_true", help="also search subfolders")
    photos.add_argument(
        "--files-from",
        type=_name,
        metavar="FILE",
        help="read names of photos and folders from FILE, one per line; - for standard input",
    )
    photos.add_argument("--null", action="store_true", help="names of --files-from end with a null byte, not a newline")
    photos.add_argument(
        "--allow-truncated", action="store_true", help="caption what there is of photos that are cut off"
    )
    photos.add_argument(
        "--max-pixels", type=count, metavar="N", help="largest photo, in pixels (width x height); default: 120 million"
    )
    captions = parser.add_argument_group("captions")
    captions.add_argument("--beam", type=count, metavar="N", help="beam size; 1 is greedy search; default: the model's")
    captions.add_argument("--max-length", type=count, metavar="N", help="most words in a caption; default: the model's")
    captions.add_argument(
        "--batch-size",
        type=count,
        default=8,
        metavar="N",
        help="photos whose words are searched together, 8 at most; a larger N only reads further ahead; default: 8",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--format", choices=FORMATS, default="text", help="default: text")
    output.add_argument(
        "-o", "--output", type=_name, metavar="FILE", help="write to FILE; default, or if FILE is -: standard output"
    )
    output.add_argument(
        "--resume", action="store_true", help="continue an interrupted run; needs --format jsonl and -o FILE"
    )
    output.add_argument(
        "--attention",
        type=_name,
        metavar="PATH",
        help="draw where each word looked: a PNG for one photo, a folder for several",
    )
    output.add_argument(
        "--sidecar",
        action="store_true",
        help="also write each caption beside its photo, to cat.txt for cat.jpg; skip photos that have such a file",
    )
    output.add_argument("-q", "--quiet", action="store_true", help="no progress, no messages about photos that fail")
    output.add_argument("--fail-fast", action="store_true", help="stop at the first photo that fails")
    return _add_model_options(parser, may_skip_hashes=True)


def _parse_caption_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse options and photos in any order; after "--" come only photos, which `parse_intermixed_args` would lose."""
    parser = _caption_parser()
    options_end = words.index("--") if "--" in words else len(words)
    arguments, unknown = parser.parse_known_intermixed_args(words[:options_end])
    if unknown:  # argparse counts all photos after an unknown option as unknown, too
        options = [word for word in unknown if word.startswith("-") and word != STDIN]
        parser.error(f"unrecognized arguments: {' '.join(options)}")
    given = arguments.photos + words[options_end + 1 :]
    arguments.photos = [name for argument in given for name in matching(argument)]
    _check_caption_arguments(parser, arguments)
    return arguments


def _check_caption_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with exit status 2 if the options make no sense together."""
    if arguments.output == STDOUT:
        arguments.output = None
    if not arguments.photos and arguments.files_from is None:
        parser.error("give a photo, a folder, or --files-from FILE")
    if [*arguments.photos, arguments.files_from].count(STDIN) > 1:
        parser.error("standard input can be given only once")
    if arguments.attention == STDOUT:
        parser.error("--attention draws into files; for one called -, write ./-")
    if arguments.sidecar and STDIN in arguments.photos:
        parser.error("--sidecar: there is nothing beside standard input; give files")
    only = arguments.photos[0] if len(arguments.photos) == 1 else None
    if only in _VERBS and not os.path.exists(only):
        parser.error(f"no photo is named {only}; if you mean the verb, write it first: caplet {only} ...")
    if arguments.null and arguments.files_from is None:
        parser.error("--null needs --files-from")
    if arguments.resume and (arguments.format != "jsonl" or arguments.output is None):
        parser.error("--resume needs --format jsonl and -o FILE")
    refused = objection(arguments)
    if refused:
        parser.error(refused)


def _verb_parser(verb: str) -> argparse.ArgumentParser:
    parser = _parser(f"caplet {verb}", _VERBS[verb])
    if verb == "bench":
        parser.add_argument(
            "photo", nargs="?", type=_name, metavar="PHOTO", help="default: a photo that comes with the model"
        )
        parser.add_argument("--runs", type=count, default=30, metavar="N", help="captions to measure; default: 30")
        parser.add_argument("--beam", type=count, metavar="N", help="beam size; default: the model's")
        parser.add_argument(
            "--batch-size", type=count, default=8, metavar="N", help="batch size for throughput; default: 8"
        )
        parser.add_argument(
            "--sweep", action="store_true", help="also measure other numbers of threads and batch sizes"
        )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return _add_model_options(parser)
