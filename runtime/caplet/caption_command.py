"""`caplet PHOTO ...`: photos in, records out, through the library's `Captioner`."""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import sys
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from caplet.captioner import Caption, Captioner, Decoded, decode_photo
from caplet.errors import ArgumentError, CapletError, InferenceError
from caplet.image import load_pixels
from caplet.image_limits import MAX_PIXELS
from caplet.image_source import ImageSource
from caplet.inputs import (
    STDIN,
    STDIN_DESCRIPTOR,
    Identity,
    Input,
    find_inputs,
    identity,
    is_descriptor,
    with_contents,
)
from caplet.output import Output, complain, quiet_libraries
from caplet.progress import Progress
from caplet.records import Origin, Record, Written, as_line, header, resume
from caplet.sessions import Sessions
from caplet.sidecars import Sidecars

_LONGEST_FILE_NAME = 255  # bytes, on the file systems there are


@quiet_libraries()
def run(arguments: argparse.Namespace, opened: Callable[[], Sessions]) -> int:
    """Caption what the arguments mean, by the model that is being opened; returns the exit status.

    Raises:
        CapletError: the model or an option cannot be used.
        OSError: a list cannot be read or a result cannot be written.
    """
    sidecars = Sidecars(arguments.sidecar)
    early = _decode_first(arguments, sidecars)
    captioner = Captioner(opened())
    manifest = captioner.bundle.manifest
    if early and isinstance(early.pixels, np.ndarray) and early.pixels.shape[:2] != (manifest.height, manifest.width):
        early = None
    decoding = captioner.decoding(arguments.beam, arguments.max_length)
    origin = Origin(manifest.name, captioner.bundle.digest, decoding.beam_size, decoding.max_length)
    # These calls come before any file or folder is made, so that what they refuse leaves none behind.
    captioner.caption_many((), batch_size=arguments.batch_size, **_reading(arguments))
    _spare_listed_photos(arguments)
    photos = _inputs(arguments)
    several = _several(arguments)
    drawings = _Drawings(arguments, several=several)
    # Opening the file locks it against other runs; only then is it read.
    with Output(arguments.output) as output:
        written = resume(arguments.output, origin) if arguments.resume else Written()
        drawings.spare(written.drawings)
        results = _results(captioner, arguments, photos, drawings, sidecars, written, early)
        progress = _progress(arguments, output, sidecars, written.paths)
        failed = False
        if not arguments.resume:
            if not is_descriptor(arguments.output or ""):  # as /dev/stdout is, to which a shell's `>>` appends
                output.clear()
            output.write(header(arguments.format))
        try:
            for job, result in results:
                caption = None if isinstance(result, CapletError) else result
                problem = result if isinstance(result, CapletError) else _draw(job, result, arguments)
                drawing = job.drawing if problem is None else None
                beside = None if caption is None else sidecars.write(job.photo, caption.text)
                progress.advance()
                record = Record(job.photo.name, caption, origin, drawing, problem or beside)
                output.write(as_line(record, arguments.format, with_path=several, on_terminal=output.is_terminal))
                for failure in filter(None, (problem, beside)):
                    failed = True
                    if not arguments.quiet:
                        progress.clear()
                        complain(str(failure))
                if failed and arguments.fail_fast:
                    break
        finally:  # whatever is told next has a line of its own
            progress.clear()
        if sidecars.skipped and not arguments.quiet:
            complain(f"photos skipped, as there is a text file beside them: {sidecars.skipped:,}")
        if written.failed and not arguments.quiet:
            cause = "has errors of photos that are not tried again"
            complain(f"{arguments.output}: {cause}; remove their records to have them tried again")
    return 1 if failed or written.failed else 0


def _spare_listed_photos(arguments: argparse.Namespace) -> None:
    """Raise ArgumentError if the results would overwrite a photo of the list, if that can be read beforehand."""
    replaced = None if arguments.output is None or arguments.resume else identity(arguments.output)
    listing = arguments.files_from
    if replaced is None or listing is None or not _can_be_read_twice(listing):
        return
    if replaced in _identities(photo.name for photo in _inputs(arguments)):
        raise ArgumentError("-o", "would overwrite a photo of the list", "give another file")


def _several(arguments: argparse.Namespace) -> bool:
    """Whether there may be more than one photo, so that each line needs to say which it is about."""
    only = arguments.photos[0] if len(arguments.photos) == 1 and arguments.files_from is None else None
    return only is None or (only != STDIN and os.path.isdir(only))


def _progress(arguments: argparse.Namespace, output: Output, sidecars: Sidecars, done: Counter[str]) -> Progress:
    """A progress line on standard error for photos not in `done`, unless captions appear on the terminal themselves."""
    countable = arguments.files_from is None and not any(map(os.path.isdir, arguments.photos))
    total = (Counter(itertools.filterfalse(sidecars.has, arguments.photos)) - done).total() if countable else None
    return Progress(None if arguments.quiet or output.is_terminal else sys.stderr, total)


class _Job(NamedTuple):
    """A photo to caption, and the file for its drawing, if it gets one."""

    photo: Input
    drawing: Path | None


def _decode_first(arguments: argparse.Namespace, sidecars: Sidecars) -> Decoded | None:
    """The first photo, if it is a file, decoded while the model is being opened."""
    first = next(iter(arguments.photos), STDIN)
    if arguments.resume or first == STDIN or not os.path.isfile(first) or sidecars.has(first):
        return None
    return decode_photo(first, functools.partial(load_pixels, **_reading(arguments)))


class _Drawings:
    """Where the drawings go: to the path itself for one photo, into it as a folder for several, nowhere without a path.

    In a folder, a drawing is named after its photo, with a number from the second photo of that name on. A file there
    is overwritten only if caplet drew it before this run, it is not an input, and it was not given to `spare`.
    """

    def __init__(self, arguments: argparse.Namespace, *, several: bool) -> None:
        """Make the folder, if there is to be one. Raises OSError, and ArgumentError as `find_inputs` does."""
        path = arguments.attention
        self._path = None if path is None else Path(path)
        self._folder = path is not None and (several or os.path.isdir(path) or path.endswith(("/", os.sep)))
        self._photos: Counter[str] = Counter()
        self._taken: set[str] = set()
        if self._path is not None and self._folder:
            self._path.mkdir(parents=True, exist_ok=True)
            self._replaceable = set(_identities(self._path.iterdir()))
            if arguments.files_from and not _can_be_read_twice(arguments.files_from):
                self._replaceable.clear()  # any of these files may come further down the list
            if self._replaceable:  # otherwise there is no need to go through all inputs
                # Standard input may be a drawing, too; other pipes are not.
                files = (STDIN_DESCRIPTOR if photo.piped else photo.name for photo in _inputs(arguments))
                self._replaceable.difference_update(_identities(files))

    def spare(self, files: Iterable[str]) -> None:
        """Draw over none of these files, the drawings of the run that is resumed."""
        self._taken.update(map(_folded, files))

    def file_for(self, photo: Input) -> Path | None:
        """The file for the next photo's drawing, if any. Raises ArgumentError if that can only be a file to spare."""
        if self._path is None:
            return None
        if not self._folder:
            if _folded(self._path) in self._taken:
                raise ArgumentError("--attention", f"{self._path} is the drawing of another photo", "give another PATH")
            return self._path
        stem = Path(photo.name).stem if photo.name != STDIN else "stdin"
        while True:
            self._photos[stem] += 1
            file = self._path / _file_name(stem, self._photos[stem])
            name = _folded(file)
            if name not in self._taken and self._may_be_drawn_over(file):
                self._taken.add(name)
                return file

    def _may_be_drawn_over(self, file: Path) -> bool:
        """Whether there is no such file, or it is a drawing that was there when the run began.

        A newer file may be anything, even the file of results while it is still empty.
        """
        from caplet.explain import is_drawing

        found = identity(file)
        return found is None or (found in self._replaceable and file.is_file() and is_drawing(file))


def _can_be_read_twice(listing: str) -> bool:
    """Whether a list is a file, and not standard input by any name: on macOS, opening it again does not rewind it."""
    return listing != STDIN and not listing.startswith("/dev/") and os.path.isfile(listing)


def _folded(file: str | Path) -> str:
    """The path in a form that is equal for all names a file system may take for one: any case, any Unicode form."""
    try:
        absolute = os.path.abspath(file)  # noqa: PTH100 - Path keeps ".."
    except OSError:  # relative to a folder that is gone
        absolute = os.fspath(file)
    return unicodedata.normalize("NFC", absolute).casefold()


def _identities(files: Iterable[str | Path | int]) -> Iterator[Identity]:
    return (found for file in files if (found := identity(file)) is not None)


def _file_name(stem: str, number: int) -> str:
    """The name of a drawing; the stem loses its end where the name would be too long for a file."""
    end = ".png" if number == 1 else f"-{number}.png"
    stem = stem[:_LONGEST_FILE_NAME]
    while len(os.fsencode(stem + end)) > _LONGEST_FILE_NAME:
        stem = stem[:-1]
    return stem + end


def _draw(job: _Job, caption: Caption, arguments: argparse.Namespace) -> CapletError | None:
    """Draw where the words looked, if asked to; returns the error if the photo or the drawing's file cannot be used."""
    if job.drawing is None:
        return None
    from caplet.explain import save_drawing

    try:
        drawing = caption.plot(job.photo.source, **_reading(arguments))
        save_drawing(drawing, job.drawing)
    except CapletError as error:
        return _named(error, job.photo)
    except OSError as error:
        cause = f"cannot be written ({error.strerror or error})"
        return CapletError(str(job.drawing), cause, "check its permissions and the disk")
    return None


def _reading(arguments: argparse.Namespace) -> dict[str, Any]:
    """How photos are read, for captions and drawings alike."""
    return {"allow_truncated": arguments.allow_truncated, "max_pixels": arguments.max_pixels or MAX_PIXELS}


def _inputs(arguments: argparse.Namespace) -> Iterator[Input]:
    return find_inputs(
        arguments.photos,
        arguments.files_from,
        null=arguments.null,
        recursive=arguments.recursive,
        drawings=arguments.attention,
        resuming=arguments.resume,
    )


def _results(
    captioner: Captioner,
    arguments: argparse.Namespace,
    photos: Iterable[Input],
    drawings: _Drawings,
    sidecars: Sidecars,
    written: Written,
    early: Decoded | None,
) -> Iterator[tuple[_Job, Caption | CapletError]]:
    """Each input that is not written yet, with its caption or error, in order; `early` is the first one, decoded."""
    reading = _reading(arguments)
    waiting: deque[_Job] = deque()

    def sources() -> Iterator[ImageSource | Decoded]:
        """The photos for the captioner, or what is wrong with them; their jobs wait for their captions."""
        decoded = early
        for photo in photos:
            if not (written.take(photo.name) or sidecars.skip(photo)):
                opened = with_contents(photo, reading["max_pixels"])
                waiting.append(_Job(opened, drawings.file_for(opened)))
                yield decoded or (opened.source if opened.problem is None else Decoded(opened.problem, 0.0))
            decoded = None

    captions = captioner.caption_many(
        sources(),
        batch_size=arguments.batch_size,
        on_error="return",
        beam_size=arguments.beam,
        max_length=arguments.max_length,
        **reading,
    )
    for caption in captions:
        job = waiting.popleft()
        yield job, _named(caption, job.photo) if isinstance(caption, CapletError) else caption


def _named(error: CapletError, photo: Input) -> CapletError:
    """The error with its photo as the subject: the captioner cannot name it if it got contents, or a graph failed."""
    if isinstance(error, InferenceError):
        return InferenceError(photo.name, f"{error.subject}: {error.cause}", error.remedy)
    return error if photo.contents is None else type(error)(photo.name, error.cause, error.remedy)
