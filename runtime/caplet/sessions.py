"""The two graphs as onnxruntime sessions: options, the contract of names, types and shapes, and safe use after fork."""

from __future__ import annotations

import atexit
import contextlib
import copy
import ctypes
import os
import re
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from caplet.bundle import Bundle, load_bundle
from caplet.decode import LOCATIONS, Encoded, Floats, StepResult
from caplet.errors import NO_MEMORY, RUN_CHECK, ArgumentError, BundleError, CapletError, InferenceError, without_frames
from caplet.machine import describe_cpu
from caplet.prefetch import beside
from caplet.shutdown import computing
from caplet.threads import can_start

onnxruntime.disable_telemetry_events()  # all that can be done if it was imported before caplet; see caplet/__init__.py

Provider: TypeAlias = str | tuple[str, dict[str, Any]]
"""One of onnxruntime's execution providers: its name, or its name and options."""

_SPIN_MICROSECONDS = 20
_CPU: list[Provider] = ["CPUExecutionProvider"]
_SILENT = 4  # only fatal messages: everything below arrives as an exception, and a library writes nothing by itself
_Shape: TypeAlias = tuple[int | str, ...]
"""Without the batch. A size that is a letter may be any number, but the same one wherever the letter stands in either
graph."""
_Contract: TypeAlias = Mapping[str, tuple[str, _Shape]]
"""Element type and shape of a graph's inputs or outputs, by name."""
_FLOAT, _INT64, _UINT8 = "tensor(float)", "tensor(int64)", "tensor(uint8)"
_FEATURES: _Contract = {
    "features": (_FLOAT, (LOCATIONS, "D")),
    "keys": (_FLOAT, (LOCATIONS, "A")),
    "state": (_FLOAT, ("H",)),
}
_DECODER_INPUTS: _Contract = {"token": (_INT64, ()), **_FEATURES}
_DECODER_OUTPUTS: _Contract = {
    "log_probs": (_FLOAT, ("K",)),
    "tokens": (_INT64, ("K",)),
    "next_state": (_FLOAT, ("H",)),
    "attention": (_FLOAT, (LOCATIONS,)),
}


class Sessions:
    """The encoder and decoder of one bundle, ready to run; safe to share between threads.

    `widest_beam` is the number of words that the decoder gives per step, and so the most hypotheses of a search.
    A forked process has none of its parent's threads, so it opens the graphs again on first use; that raises
    BundleError if the bundle has changed.
    """

    def __init__(self, bundle: Bundle, threads: int, providers: Sequence[Provider] | None) -> None:
        """Open both graphs and compare them with the contract.

        Raises:
            ArgumentError: onnxruntime does not have one of these execution providers, or cannot start it.
            BundleError: onnxruntime cannot load a graph, also for want of memory or threads, or the graph does not keep
                to the contract.
        """
        self.bundle = bundle
        self.threads = threads
        self.providers: list[Provider] = _known_providers(providers)
        self._open()

    def _open(self) -> None:
        bundle = self.bundle
        photo: _Contract = {"pixels": (_UINT8, (bundle.manifest.height, bundle.manifest.width, 3))}
        sizes: dict[str, int] = {}
        exact = bundle.manifest.saturates and _may_saturate(describe_cpu())
        # One thread for the decoder: a step is too short to share; waking a second takes longer than half of it.
        with computing(), beside(lambda: _session(bundle.decoder, 1, self.providers, exact=exact)) as decoder_opened:
            try:
                encoder = _session(bundle.encoder, self.threads, self.providers, exact=exact)
                _check_contract(bundle.encoder, encoder, photo, _FEATURES, sizes)
            except BundleError:  # whoever deletes the bundle now could not on Windows, while its decoder is being read
                with contextlib.suppress(CapletError):
                    decoder_opened()
                raise
            decoder = decoder_opened()
            _check_contract(bundle.decoder, decoder, _DECODER_INPUTS, _DECODER_OUTPUTS, sizes)
        if sizes["K"] > len(bundle.words):
            raise _off_contract(bundle.decoder, f"gives {sizes['K']} words a step, more than the vocabulary has")
        self.widest_beam: int = sizes["K"]
        self._encoder_shapes, self._decoder_shapes = _numbers(_FEATURES, sizes), _numbers(_DECODER_OUTPUTS, sizes)
        self._encoder, self._decoder, self._process = encoder, decoder, os.getpid()

    def encode(self, pixels: NDArray[np.uint8]) -> Encoded:
        """Encode photos, uint8 RGB [N,height,width,3]. Raises InferenceError."""
        self._reopen_after_fork()
        outputs = _run(self._encoder, list(_FEATURES), {"pixels": pixels})
        _check_shapes("encoder", outputs, len(pixels), self._encoder_shapes)
        return Encoded(*outputs)

    def step(self, token: NDArray[np.int64], state: Floats, features: Floats, keys: Floats) -> StepResult:
        """One decoder step from the previous words, int64 [N], and their states. Raises InferenceError."""
        self._reopen_after_fork()
        feeds = {"token": token, "state": state, "features": features, "keys": keys}
        outputs = _run(self._decoder, list(_DECODER_OUTPUTS), feeds)
        _check_shapes("decoder", outputs, len(token), self._decoder_shapes)
        return StepResult(*outputs)

    def _reopen_after_fork(self) -> None:
        if self._process != os.getpid():
            with _reopening:
                if self._process != os.getpid():
                    self._check_unchanged()
                    _keep_inherited()  # where a fork runs no hooks of Python's: uWSGI
                    self._open()

    def _check_unchanged(self) -> None:
        """Raise BundleError unless the files are those that the words and options in memory belong to."""
        if load_bundle(self.bundle.path, verify=self.bundle.verified).digest != self.bundle.digest:
            raise BundleError(str(self.bundle.path), "is not the model that was loaded", "make a new Captioner")


_alive: weakref.WeakKeyDictionary[onnxruntime.InferenceSession, int] = globals().get(
    "_alive", weakref.WeakKeyDictionary()
)
"""The sessions, each with the process that opened it; also those from before `importlib.reload` or IPython's
`%autoreload` ran this module again."""
_reopening = threading.Lock()


def _keep_inherited() -> None:
    """Give each session of another process a reference that is never given back.

    In a forked child its threads do not exist; if it were destroyed there, onnxruntime would wait for them for ever.
    """
    for reference in _alive.keyrefs():  # a list, as other threads may open sessions meanwhile
        session = reference()
        if session is not None and _alive.get(session) != os.getpid():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


def _after_fork() -> None:
    """In a forked child, keep the inherited sessions from being destroyed."""
    global _reopening
    _keep_inherited()
    _reopening = threading.Lock()  # a thread that is not here may have it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_keep_inherited)  # where a fork runs no hooks of Python's: uWSGI's workers that have had no photo


def _known_providers(providers: Sequence[Provider] | None) -> list[Provider]:
    """A copy of the providers as given; the CPU's where none are. Raises ArgumentError."""
    if providers is None:
        return list(_CPU)
    known = onnxruntime.get_available_providers()
    chosen: list[Provider] = (
        [providers] if isinstance(providers, str) or not isinstance(providers, Iterable) else list(providers)
    )
    names = [_provider_name(provider) for provider in chosen]
    if not names or len(set(names)) < len(names) or not all(name in known for name in names):
        raise ArgumentError("providers", f"{providers!r} is not among those of onnxruntime", f"use {', '.join(known)}")
    return copy.deepcopy(chosen)  # options may be changed later, and graphs are opened again after a fork


def _provider_name(provider: object) -> str | None:
    """The name in `name` or `(name, options)`; None for all else, of which onnxruntime would complain on the screen."""
    if isinstance(provider, tuple) and len(provider) == 2 and isinstance(provider[1], dict):
        provider = provider[0]
    return provider if isinstance(provider, str) else None


def _session(path: Path, threads: int, providers: list[Provider], *, exact: bool) -> onnxruntime.InferenceSession:
    if not can_start(threads - 1):  # where it can start some of them and not all, onnxruntime waits for ever
        cause = f"needs {threads} threads, more than the system lets this process start"
        raise BundleError(str(path), cause, "set fewer threads, or raise the limit on processes")
    try:
        model = _as_text(path) or path.read_bytes()
        try:
            session = _opened(model, threads, providers, exact=exact)
        except RuntimeError as error:
            if "global thread pool" not in str(error):
                raise
            # The program has called `onnxruntime.set_global_thread_pool_sizes`: no session may have threads of its own.
            session = _opened(model, None, providers, exact=exact)
        session.disable_fallback()
    except Exception as error:  # onnxruntime's exceptions share no base class
        without_frames(error)  # they hold a session, which must not be left to a forked child
        if _is_out_of_memory(error):
            raise BundleError(str(path), NO_MEMORY, "free some") from error
        if _is_from_elsewhere(error):
            raise
        remedy = "get the bundle again" if providers == _CPU else "use other providers, or get the bundle again"
        raise BundleError(str(path), f"onnxruntime cannot load it ({_brief(error)})", remedy) from error
    _alive[session] = os.getpid()
    # Where CUDA's libraries are missing, for one, onnxruntime silently uses the CPU alone.
    lost = [name for name in map(_provider_name, providers) if name not in session.get_providers()]
    if lost:
        raise ArgumentError("providers", f"onnxruntime cannot start {lost[0]}", "install what it needs, or use others")
    return session


def _opened(
    model: str | bytes, threads: int | None, providers: list[Provider], *, exact: bool
) -> onnxruntime.InferenceSession:
    """A graph in a session with so many threads; with those that all sessions of the process share if None."""
    options = onnxruntime.SessionOptions()
    if threads is None:
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads = threads
    options.log_severity_level = _SILENT
    options.add_session_config_entry(*_spinning(onnxruntime.__version__))
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    # A file that claims to be onnxruntime's own format would get past `check_self_contained`.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # A fallback would try again on the CPU, and print that on standard output. Old releases do not know the option;
    # there, `disable_fallback` turns it off at least for runs.
    return onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)


def _is_from_elsewhere(error: Exception) -> bool:
    """Whether a signal handler, such as that of a time limit, raised it meanwhile; it says nothing about the graphs.

    What onnxruntime raises is of its own types, or built in: pybind11 translates what is of C++.
    """
    its_own = {"builtins", "onnxruntime"} & set(type(error).__module__.split("."))
    return not its_own or isinstance(error, TimeoutError)


def _is_out_of_memory(error: Exception) -> bool:
    """onnxruntime's own errors, from C++ or from its arena, say so only in their text."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in ("bad_alloc", "allocate memory"))


def _as_text(path: Path) -> str | None:
    """The path, or None if onnxruntime cannot take it: it wants UTF-8, which a file's name need not be."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return None
    return str(path)


def _spinning(version: str) -> tuple[str, str]:
    """onnxruntime's option, and its value, for how long a thread without work looks for some before it sleeps.

    Waking a thread takes longer than the shortest operators; 20 microseconds bridge those between two that are shared,
    and nothing spins after a run. Before 1.26 a thread spins for milliseconds or not at all.
    """
    numbers = [int(number) for number in re.findall(r"\d+", version)[:2]]
    if numbers >= [1, 26]:
        return "session.intra_op.spin_duration_us", str(_SPIN_MICROSECONDS)
    return "session.intra_op.allow_spinning", "0"


def _may_saturate(cpu: Mapping[str, Any]) -> bool:
    """Whether this processor adds 8-bit products in 16 bits, in pairs: x86 without VNNI.

    onnxruntime has exact kernels, which are slower, and takes them on any x86 processor when asked to; so they are
    asked for only where instructions are known and none of VNNI is among them.
    """
    features = set(cpu["features"])
    return "avx2" in features and not features & {"avx512_vnni", "avx_vnni", "amx_int8"}


def _run(session: onnxruntime.InferenceSession, outputs: list[str], feeds: dict[str, Any]) -> list[Any]:
    with computing():
        try:
            return cast("list[Any]", session.run(outputs, feeds))
        except Exception as error:  # onnxruntime's exceptions share no base class
            if _is_out_of_memory(error):
                raise InferenceError("onnxruntime", NO_MEMORY, "free some") from error
            if _is_from_elsewhere(error):
                raise
            raise InferenceError("onnxruntime", _brief(error), RUN_CHECK) from error


def _numbers(contract: _Contract, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Each value's shape without the batch, with numbers for the letters."""
    return {
        name: tuple(size if isinstance(size, int) else sizes[size] for size in shape)
        for name, (_, shape) in contract.items()
    }


def _check_shapes(graph: str, outputs: list[Any], batch: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare what a graph gave with what it declares: onnxruntime lets them differ."""
    for output, (name, shape) in zip(outputs, shapes.items(), strict=True):
        if output.shape != (batch, *shape):
            cause = f"gives {name!r} the shape {list(output.shape)} instead of {[batch, *shape]}"
            raise InferenceError(graph, cause, "export the bundle again")


def _brief(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300] or type(error).__name__


def _check_contract(
    path: Path,
    session: onnxruntime.InferenceSession,
    inputs: _Contract,
    outputs: _Contract,
    sizes: dict[str, int],
) -> None:
    """Compare a graph's inputs and outputs with the contract; `sizes` collects what the letters stand for."""
    for role, expected, found in (
        ("input", inputs, session.get_inputs()),
        ("output", outputs, session.get_outputs()),
    ):
        try:
            values = {value.name: (value.type, value.shape) for value in found}
        except UnicodeDecodeError:  # a value's name, or that of a size
            raise _off_contract(path, "has a name that is not UTF-8") from None
        if set(values) != set(expected):
            raise _off_contract(path, f"has the {role}s {sorted(values)} instead of {sorted(expected)}")
        for name, (kind, shape) in expected.items():
            found_kind, found_shape = values[name]
            if found_kind != kind:
                raise _off_contract(path, f"{role} {name!r} is a {found_kind} instead of a {kind}")
            batch, *rest = found_shape or [0]
            whole = all(isinstance(size, int) and size >= 1 for size in rest)
            if isinstance(batch, int) or len(rest) != len(shape) or not whole:
                numbers = ", ".join(["N", *(str(size) if isinstance(size, int) else "a number" for size in shape)])
                raise _off_contract(path, f"{role} {name!r} has the shape {found_shape} instead of [{numbers}]")
            for size, wanted in zip(rest, shape, strict=True):
                known = wanted if isinstance(wanted, int) else sizes.setdefault(wanted, size)
                if size != known:
                    raise _off_contract(path, f"{role} {name!r} has a size of {size} where {known} was expected")


def _off_contract(path: Path, cause: str) -> BundleError:
    return BundleError(str(path), cause, "export the bundle again")
