"""`caplet check`: whether the model is as released, and gives the same captions on this machine."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass

from caplet.captioner import Captioner
from caplet.errors import RUN_CHECK, BundleError, InferenceError
from caplet.output import tell

# Other CPUs and versions of onnxruntime may round 8-bit arithmetic differently, which moves scores by hundredths.
SCORE_TOLERANCE = 0.1


@dataclass(frozen=True)
class GoldenResult:
    """A golden caption and what this machine makes of its photo; scores are log-probabilities per word."""

    file: str
    beam_size: int
    expected: str
    text: str
    expected_score: float
    score: float

    @property
    def same(self) -> bool:
        """The same words with about the same score."""
        return self.text == self.expected and abs(self.score - self.expected_score) <= SCORE_TOLERANCE


def run(arguments: argparse.Namespace) -> int:
    """Check and print; returns 0 if all is well, 1 if a caption differs. Raises CapletError for a damaged model."""
    captioner = Captioner(arguments.model, threads=arguments.threads)
    results = check_golden(captioner)
    if arguments.json:
        tell(json.dumps(_as_json(captioner, results), indent=2) + "\n")
    else:
        tell(_as_text(captioner, results))
    return 0 if all(result.same for result in results) else 1


def check_golden(captioner: Captioner) -> list[GoldenResult]:
    """Caption the golden photos of the captioner's bundle. Raises CapletError."""
    results = []
    bundle, widest = captioner.bundle, captioner.sessions.widest_beam
    if any(golden.beam_size > widest for golden in bundle.manifest.golden):
        cause = f"a golden caption's beam_size is above the decoder's limit of {widest}"
        raise BundleError(str(bundle.path), cause, "export the bundle again")
    for golden in bundle.manifest.golden:
        try:
            caption = captioner.caption(bundle.path / golden.file, beam_size=golden.beam_size)
        except InferenceError as error:
            # The files are those of the manifest, so what is wrong was exported so, or is onnxruntime's.
            if error.remedy != RUN_CHECK:
                raise
            raise InferenceError(error.subject, error.cause, "export the bundle again, or open an issue") from error
        results.append(
            GoldenResult(golden.file, golden.beam_size, golden.text, caption.text, golden.score, caption.score)
        )
    return results


def _as_json(captioner: Captioner, results: list[GoldenResult]) -> dict[str, object]:
    manifest = captioner.bundle.manifest
    return {
        "model": manifest.name,
        "model_sha256": captioner.bundle.digest,
        "files_verified": len(manifest.files),
        "golden": [{**asdict(result), "same": result.same} for result in results],
        "ok": all(result.same for result in results),
    }


def _as_text(captioner: Captioner, results: list[GoldenResult]) -> str:
    manifest = captioner.bundle.manifest
    lines = [f"{manifest.name}: {len(manifest.files)} files are as the manifest says"]
    for result in results:
        photo = f"{result.file}, beam {result.beam_size}"
        difference = round(result.score - result.expected_score, 4) + 0.0  # -0.0 becomes 0.0
        change = f"score {result.score:.4f}, {difference:+.4f}"
        if result.same:
            lines.append(f"same     {photo}: {result.text} ({change})")
        else:
            instead = "with another score" if result.text == result.expected else f"instead of {result.expected!r}"
            lines.append(f"DIFFERS  {photo}: {result.text!r} {instead} ({change})")
    same = sum(result.same for result in results)
    lines.append(f"{same} of {len(results)} golden captions are the same")
    return "".join(line + "\n" for line in lines)
