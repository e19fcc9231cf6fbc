"""The model card of a bundle: how it was made and of what, how good it is, and what it must not be used for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from caplet_export.metrics import TITLES, note_on_limit
from caplet_export.outputs import ATTENTION, CHART
from caplet_export.stages import ALL

_HUB_LICENCES = (
    "agpl-3.0 apache-2.0 bsd-2-clause bsd-3-clause cc-by-4.0 cc-by-nc-4.0 cc-by-nc-sa-4.0 cc-by-sa-4.0 cc0-1.0 gpl-3.0 "
    "lgpl-3.0 mit mpl-2.0 unlicense"
)
"""Some of the licences that the Hugging Face Hub knows, by SPDX's names in small letters; it refuses unknown ones."""


def render_card(
    manifest: Mapping[str, Any],
    ablations: Sequence[Mapping[str, Any]],
    comparison: str | None,
    findings: str | None,
    limits: str | None,
    *,
    figure: bool,
    chart: bool,
) -> str:
    """The card as Markdown.

    Args:
        manifest: as in manifest.json; of its `files` it needs only the graphs, and no golden captions.
        ablations: tables of runs, each `{"title": "...", "columns": [...], "rows": [[...], ...], "note": "..."}`.
        comparison: Markdown: what quantisation cost, if it is known.
        findings: Markdown: what was found out while the model was made, such as what limits it and what did not help.
        limits: Markdown: what the captioner must not be used for.
        figure: whether the bundle has the drawing of its first golden photo.
        chart: whether it has a chart of the `ablations`.
    """
    sections = [
        _front_matter(manifest["license"]["weights"]) + _introduction(manifest),
        _use(),
        _figure() if figure else "",
        f"## Scores\n\n{render_scores(manifest['metrics'], manifest['decoding'])}",
        f"## What it is not for\n\n{limits.strip()}" if limits else "",
        _licence(manifest["license"]),
        f"## What 8 bits cost\n\n{comparison.strip()}" if comparison else "",
        _chart() if chart else "",
        *map(_ablation, ablations),
        f"## What was found out\n\n{findings.strip()}" if findings else "",
        _making(manifest),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; the first column is aligned to the left, as text, the others to the right, as numbers."""
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _front_matter(weights_licence: str) -> str:
    """What the Hugging Face Hub reads, in YAML.

    It is what is true of every bundle, and the licence, if that is the first sentence of the terms. Language and data
    set, without which the Hub takes no scores, are not in a manifest by the Hub's names.
    """
    licence = weights_licence.strip().split(". ")[0].removesuffix(".").lower()
    lines = [f"license: {licence}"] if licence in _HUB_LICENCES.split() else []
    lines += ["library_name: caplet", "pipeline_tag: image-to-text", "tags: [image-captioning, onnx]"]
    return "\n".join(["---", *lines, "---", "", ""])


def _use() -> str:
    return """## How to use it

With caplet, where FOLDER is the folder of these files:

```python
from caplet import Captioner

print(Captioner("FOLDER").caption("photo.jpg").text)
```

```sh
caplet --model FOLDER photo.jpg
caplet check --model FOLDER  # are the files whole, and the captions as they should be on this machine?
```

For use without caplet, docs/bundle-format.md in its repository specifies the files, with a reader as an example."""


def _introduction(manifest: Mapping[str, Any]) -> str:
    sizes = {name: manifest["files"][name]["bytes"] / 1e6 for name in ("encoder.onnx", "decoder.onnx")}
    size = manifest["preprocessing"]
    return f"""# {manifest["name"]}

Writes a one-sentence caption for a photo. A *Show, Attend and Tell* captioner (Xu et al., ICML 2015) in ONNX
for caplet: InceptionV3 without its classifier, additive attention over 8×8 locations, a GRU, a
vocabulary of {manifest["vocabulary"]["size"]} words.{_members(manifest["provenance"].get("recipe", {}))}

| file | what | MB |
|---|---|---:|
| `encoder.onnx` | uint8 RGB {size["height"]}×{size["width"]}, squashed, to features, attention keys and first state | {
        sizes["encoder.onnx"]:.1f} |
| `decoder.onnx` | one word further: the likeliest words, the next state, the attention | {sizes["decoder.onnx"]:.1f} |
| `vocabulary.txt` | one word a line | |
| `manifest.json` | settings of preprocessing and search, where it comes from, and the hashes of the others | |
| `golden/` | photos with the captions that `caplet check` expects | |"""


def _members(recipe: Mapping[str, Any]) -> str:
    """The sentence that says that it is an ensemble; empty if it is not one."""
    model = recipe.get("model", {})
    count = model.get("members", 1)
    if count == 1:
        return ""
    names = model["feature_block"].split()
    blocks = f"block{'s' if len(names) > 1 else ''} {', '.join(names)}"
    return f""" It is an ensemble of {count} captioners, which read
the Inception {blocks}: at each word the mean of their logits counts."""


def render_scores(metrics: Mapping[str, Any], decoding: Mapping[str, Any]) -> str:
    """The scores in a manifest as a Markdown table, with a note of how they were measured."""
    if not metrics["results"]:
        return "Not measured yet."
    rows = []
    greedy = metrics["results"].get("1", {}).get("milliseconds")
    for beam, result in metrics["results"].items():
        scores, intervals, taken = result["scores"], result["intervals"], result["milliseconds"]
        name = f"**{beam}** (default)" if int(beam) == decoding["beam_size"] else beam
        cells = [f"{scores[metric]:.1f}{_interval(intervals.get(metric))}" for metric in TITLES]
        rows.append([name, *cells, f"{taken / greedy:.2f}" if taken and greedy else ""])
    part = note_on_limit(metrics["limit"])
    return f"""{metrics["images"]} photos of the {metrics["split"]} split{part}, free-running, by the graphs of the
bundle as it ships, through caplet's runtime; percent, with 95% bootstrap intervals over photos. Scorer: {
        metrics["scorer"]
    }.

{markdown_table(["beam", *TITLES.values(), "time ÷ greedy"], rows)}

Time is from the file to the sentence, photos in batches of 8.
Settings: length penalty {decoding["length_penalty"]:g}, at most {decoding["max_length"]} words, repeated trigrams {
        "blocked" if decoding["block_repeated_trigrams"] else "allowed"
    }{_once(decoding)}{_forms(decoding)}.{_human(metrics, decoding)}{_by_score(metrics, decoding)}"""


def render_summary(metrics: Mapping[str, Any], decoding: Mapping[str, Any]) -> str:
    """A Markdown table for the README: scores of the default and the greedy search, and a comparison with people."""
    shown = ("bleu_4", "rouge_l", "cider_d")
    rows = []
    searches = {"1": "greedy", str(decoding["beam_size"]): "as it ships"}
    for beam, name in reversed(searches.items()):
        if result := metrics["results"].get(beam):
            scores, intervals = result["scores"], result["intervals"]
            rows.append([f"caplet, {name}", *(f"{scores[key]:.1f}{_interval(intervals.get(key))}" for key in shown)])
    for name, scores in _beside_people(metrics, decoding):
        rows.append([name, *(f"{scores[key]:.1f}" for key in shown)])
    return markdown_table([f"{metrics['images']} {metrics['split']} photos", *(TITLES[key] for key in shown)], rows)


def _once(decoding: Mapping[str, Any]) -> str:
    """The words and pairs that may be said twice, if that is limited."""
    if decoding["repeatable"] is None:
        return ""
    words, pairs = (sum(len(ngram) == size for ngram in decoding["repeatable"]) for size in (1, 2))
    return f", words and pairs of words said once but for {words} and {pairs} that people repeat"


def _forms(decoding: Mapping[str, Any]) -> str:
    """Before how many words another takes another form, if any does."""
    count = len(decoding["forms"])
    return f', "an" for "a" before {count} words' if count else ""


def _beside_people(metrics: Mapping[str, Any], decoding: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float]]]:
    """Scores of the default search and of people, against equally many references; empty if they are not known."""
    result = metrics["results"].get(str(decoding["beam_size"]), {})
    if not metrics["human"] or not result.get("leave_one_out"):
        return []
    return [
        ("caplet, against one reference fewer", result["leave_one_out"]),
        ("one person, against as many references", metrics["human"]),
    ]


def _human(metrics: Mapping[str, Any], decoding: Mapping[str, Any]) -> str:
    """How near the default search comes to people; empty if that is not known."""
    rows = [[name, *(f"{scores[key]:.1f}" for key in TITLES)] for name, scores in _beside_people(metrics, decoding)]
    if not rows:
        return ""
    return f"""

Beside people. A person's caption can only be scored against those of the others, and BLEU and ROUGE-L rise with every
reference. So here each reference is left out in turn, for caplet as well; the mean over them:

{markdown_table(["default search", *TITLES.values()], rows)}"""


def _by_score(metrics: Mapping[str, Any], decoding: Mapping[str, Any]) -> str:
    """How well a caption's score predicts its CIDEr-D; empty if that is not known."""
    fifths = metrics["results"].get(str(decoding["beam_size"]), {}).get("cider_d_by_score", ())
    if len(fifths) < 5:
        return ""
    table = markdown_table(
        ["score", "lowest", "low", "middle", "high", "highest"], [["CIDEr-D", *(f"{value:.1f}" for value in fifths)]]
    )
    return f"""

How much a caption's score tells, by the default search: CIDEr-D of the fifth of the photos with the lowest scores, of
the next fifth, and so on.

{table}"""


def _interval(interval: Mapping[str, float] | None) -> str:
    return f" ({interval['low']:.1f}-{interval['high']:.1f})" if interval else ""


def _ablation(ablation: Mapping[str, Any]) -> str:
    note = f"\n\n{ablation['note']}" if ablation.get("note") else ""
    return f"## {ablation['title']}\n\n{markdown_table(ablation['columns'], ablation['rows'])}{note}"


def _chart() -> str:
    return f"""## What each part gave

![the scores of the runs in the tables below, and by how much each differs from the one it is compared with]({CHART})

Dots are values, lines 95% bootstrap intervals over photos; a difference whose interval holds 0 is hollow."""


def _making(manifest: Mapping[str, Any]) -> str:
    provenance = manifest["provenance"]
    lines = ["## How it was made", ""]
    if stages := provenance.get("stages"):
        lines += [_stages(stages), ""]
    else:
        for section, switches in provenance.get("recipe", {}).items():
            lines.append(f"- {section}: " + ", ".join(f"{name} {value}" for name, value in switches.items()))
    conversion = provenance.get("conversion")
    if conversion:
        differences = ", ".join(f"{name} {value:.0e}" for name, value in conversion["max_difference"].items())
        lines.append(
            f"- conversion by tf2onnx: {conversion['identical_captions']} of {conversion['photos']} greedy captions "
            f"the same as in Keras; largest differences: {differences}"
        )
        lines.append(f"- feature extractor: sha256 of the weights it started from `{conversion['encoder_weights']}`")
    quantization = provenance.get("quantization")
    if quantization:
        corrected = f", biases corrected {quantization['biases']}" if "biases" in quantization else ""
        lines.append(
            f"- 8 bits: static, activations per tensor and weights per channel, ranges by {quantization['method']} on "
            f"{quantization['photos']} training photos (seed {quantization['seed']}), weights rounded by "
            f"{quantization['rounding']}{corrected}"
        )
    versions = ", ".join(f"{name} {version}" for name, version in manifest["created_with"].items())
    return "\n".join([*lines, f"- with {versions}"])


def _stages(stages: Sequence[Mapping[str, Any]]) -> str:
    """Every training stage with its cost; each member of an ensemble has stages of its own."""
    rows = [
        [
            stage["run"],
            _as_one(stage["member"]),
            stage["epochs"],
            _minutes(stage),
            "" if stage["dev_cider"] is None else f"{stage['dev_cider']:.1f}",
            ", ".join(f"{name} {value}" for name, value in stage["switches"].items()),
        ]
        for stage in stages
    ]
    columns = ["stage", "captioner", "epochs", "minutes", "dev CIDEr-D, greedy", "switches not at their defaults"]
    return f"""{markdown_table(columns, rows)}

Each stage continues the last one of its captioner above it, unless it names another run; averaged stages share a start.
Minutes are wall time."""


def _minutes(stage: Mapping[str, Any]) -> str:
    if stage["seconds"] is None:
        return "not recorded"
    device = f" ({stage['device']})" if stage["device"] else ""
    return f"{stage['seconds'] / 60:.0f}{device}"


def _as_one(member: int | str) -> str:
    """`Stage.member` in words."""
    if member == ALL:
        return "all, as one"
    return f"{member}, as one" if isinstance(member, str) else f"{member}"


def _figure() -> str:
    return f"## Where it looks\n\n![the first golden photo, and where each word of its caption looked]({ATTENTION})"


def _licence(texts: Mapping[str, str]) -> str:
    weights, data = (texts[part].rstrip().removesuffix(".") for part in ("weights", "data"))
    return f"## Licence\n\n- Weights: {weights}.\n- Data: {data}."
