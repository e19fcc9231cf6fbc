"""`caplet PHOTO ...`: photos in, records out, over the same face as the library."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path

from caplet.captioner import Caption, Captioner
from caplet.errors import CapletError
from caplet.image import ImageSource
from caplet.inputs import Input, find_inputs, is_folder
from caplet.output import Output
from caplet.progress import Progress
from caplet.records import Formatter, Record, Written, resume


def run(arguments: argparse.Namespace) -> int:
    """Caption what the arguments mean; returns the exit status.

    Raises:
        CapletError: the model or an option cannot be used.
        OSError: a list cannot be read or a result cannot be written.
    """
    captioner = Captioner(arguments.model, threads=arguments.threads, verify=not arguments.no_verify)
    captioner.decoding(arguments.beam, arguments.max_length)  # complain before the output is touched
    several = _several(arguments)
    attention = None
    if arguments.attention:
        attention = _AttentionFiles(arguments.attention, several=several, allow_truncated=arguments.allow_truncated)
    written = resume(arguments.output, captioner.bundle.digest) if arguments.resume else Written(Counter(), 0)
    formatter = Formatter(arguments.format, with_path=several)
    failed = written.failed
    with Output(arguments.output, append=arguments.resume) as output:
        progress = _progress(arguments)
        if not written.paths:
            output.write(formatter.header())
        for photo, result in _results(captioner, arguments, written.paths):
            if isinstance(result, CapletError):
                failed += 1
            elif attention is not None:
                attention.draw(photo, result)
            progress.advance()
            output.write(formatter.line(Record.of(photo.name, result, captioner.bundle)))
            if isinstance(result, CapletError):
                if not arguments.quiet:
                    progress.clear()
                    print(f"caplet: {result}", file=sys.stderr, flush=True)
                if arguments.fail_fast:
                    break
        progress.clear()
    return 1 if failed else 0


def _several(arguments: argparse.Namespace) -> bool:
    """Whether there may be more than one photo, so that each line needs to say which it is about."""
    only = arguments.photos[0] if len(arguments.photos) == 1 and arguments.files_from is None else None
    return only is None or is_folder(only)


def _progress(arguments: argparse.Namespace) -> Progress:
    """A bar on standard error, unless captions would run through it on the same terminal."""
    captions_on_terminal = arguments.output is None and sys.stdout.isatty()
    total = len(arguments.photos) if arguments.files_from is None else None
    if any(is_folder(photo) for photo in arguments.photos):
        total = None
    return Progress(None if arguments.quiet or captions_on_terminal else sys.stderr, total)


def _results(
    captioner: Captioner, arguments: argparse.Namespace, done: Counter[str]
) -> Iterator[tuple[Input, Caption | CapletError]]:
    """Each input that `done` does not hold yet, with its caption or error, in order."""
    left = done.copy()
    waiting: deque[Input] = deque()

    def sources() -> Iterator[ImageSource]:
        for photo in find_inputs(
            arguments.photos, arguments.files_from, null=arguments.null, recursive=arguments.recursive
        ):
            if left[photo.name] > 0:
                left[photo.name] -= 1
                continue
            waiting.append(photo)
            if photo.problem is None:
                yield photo.source

    def problems() -> Iterator[tuple[Input, CapletError]]:
        while waiting and (problem := waiting[0].problem) is not None:
            yield waiting.popleft(), problem

    results = captioner.caption_many(
        sources(),
        batch_size=arguments.batch_size,
        on_error="return",
        beam_size=arguments.beam,
        max_length=arguments.max_length,
        allow_truncated=arguments.allow_truncated,
    )
    for result in results:
        yield from problems()
        yield waiting.popleft(), result
    yield from problems()


class _AttentionFiles:
    """Where the drawings go: to the path itself for one photo, into it as a folder for several."""

    def __init__(self, path: str, *, several: bool, allow_truncated: bool) -> None:
        self._path = Path(path)
        self._folder = several or self._path.is_dir() or path.endswith(os.sep)
        self._names: Counter[str] = Counter()
        self._allow_truncated = allow_truncated
        if self._folder:
            self._path.mkdir(parents=True, exist_ok=True)

    def draw(self, photo: Input, caption: Caption) -> None:
        """Write the drawing of one photo. Raises OSError."""
        drawing = caption.plot(photo.source, allow_truncated=self._allow_truncated)
        drawing.save(self._path / self._file_name(photo) if self._folder else self._path, format="PNG")

    def _file_name(self, photo: Input) -> str:
        """The photo's name with the suffix .png; photos of one name from several folders are numbered."""
        stem = Path(photo.name).stem if photo.contents is None else "stdin"
        self._names[stem] += 1
        return f"{stem}.png" if self._names[stem] == 1 else f"{stem}-{self._names[stem]}.png"
