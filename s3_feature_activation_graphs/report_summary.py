"""The report on one screen of a terminal: the same findings as the page, in its order of importance."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from concept_evaluation.comparisons import FEW_HELD_OUT
from pipeline_common.errors import UserError
from pipeline_common.files import read_json
from s1_compute_all_features.feature_store import key_form
from s3_feature_activation_graphs.report_emergence import SweepRow
from s3_feature_activation_graphs.report_verdict import interval, number

N_BEST = 3
N_WORDS = 6
WIDTH = 100

_BASELINES = {
    "bag_of_words": "bag of words",
    "sentence_length": "sentence length",
    "difference_of_means": "difference of means",
    "logistic_probe": "probe",
    "random_directions": "random directions",
}


def first_layers_as_good(sweep: Path, trait: str) -> dict[str, int | str | None]:
    """Per estimator the first layer that is as good as the best, as stage 5's sweep says beside its CSV.

    Args:
        sweep: the CSV of sweep_layers.py; its layer_sweep.json lies in the same folder.
        trait: whose layers are wanted.

    Returns:
        Empty where there is no such file, or it does not know the trait.

    Raises:
        UserError: the file is not what sweep_layers.py writes.
    """
    path = sweep.with_name("layer_sweep.json")
    if not path.is_file():
        return {}
    try:
        return {
            entry["estimator"]: entry["first_layer_as_good"]
            for of_trait in read_json(path, "layer sweep")["traits"]
            if of_trait["trait"] == trait
            for entry in of_trait["emergence"]
        }
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: {error} is missing; run sweep_layers.py again") from None


def summary_text(
    content: Mapping[str, Any], sweep: Sequence[SweepRow], first_as_good: Mapping[str, int | str | None]
) -> str:
    """The screen.

    Args:
        content: what the page shows, from `report_content`.
        sweep: rows of the layer sweep; empty without one.
        first_as_good: from `first_layers_as_good`.
    """
    summary = content["summary"]
    lines = [
        f"{content['trait']} in {content['store']['model']}",
        "",
        *_findings(summary),
        *_best_features(content),
        *_baselines(content, summary),
        *_layers(sweep, first_as_good),
        *_warnings(content, summary),
    ]
    return "\n".join(lines)


def _findings(summary: Mapping[str, Any]) -> list[str]:
    found = summary["significance"]
    if found is None:
        return ["No permutation null was computed: nothing here tells a finding from noise."]
    return [
        f"{found['n_discoveries']:,} of {found['n_tested']:,} tested features go with the label beyond "
        f"chance (q < {found['level']}, {found['n_permutations']} permutations)."
    ]


def _best_features(content: Mapping[str, Any]) -> list[str]:
    lines = ["", "The best features, chosen on train; AUROC on held-out sentences with 95% intervals:", ""]
    best = content["features"][:N_BEST]
    form = key_form(section["key"] for section in best)
    width = max(len(text) for text in (form, *(section["key"] for section in best))) + 1
    lines.append(f"  {form:<{width}}{'3 against 0':<19}{'3 against 1':<13}fires on (sentences)")
    for section in best:
        against_0 = f"{number(section['held_out_auroc'])}{interval(section['low'], section['high'])}"
        words = ", ".join(
            f"{token['token'].strip()} {token['n_sentences']}" for token in section["peak_tokens"][:N_WORDS]
        )
        lines.append(
            f"  {section['key']:<{width}}{against_0:<19}{number(section['held_out_auroc_3_vs_1']):<13}{words}"
        )
    return lines


def _baselines(content: Mapping[str, Any], summary: Mapping[str, Any]) -> list[str]:
    known = [
        f"{_BASELINES.get(name, name)} {number(baseline['held_out'])}"
        for name, baseline in summary["baselines"].items()
        if baseline["held_out"] is not None
    ]
    if not known:
        return []
    verdict = summary["verdict"]
    told = {
        "beats": "the best feature beats bag of words",
        "loses": "the best feature loses to bag of words",
        "cannot tell": "these sentences cannot tell the best feature from bag of words",
    }
    against = f"; {told[verdict['word']]}" if verdict is not None else ""
    return ["", *_wrapped(f"Baselines, 3 against 0 on the same sentences: {', '.join(known)}{against}.")]


def _layers(sweep: Sequence[SweepRow], first_as_good: Mapping[str, int | str | None]) -> list[str]:
    lines = []
    for estimator in dict.fromkeys(row.estimator for row in sweep if row.layer is not None):
        rows = [
            row
            for row in sweep
            if row.estimator == estimator
            and row.layer is not None
            and row.values["cv_auroc_mean"] is not None
        ]
        if not rows:
            continue
        best = max(rows, key=lambda row: row.values["cv_auroc_mean"] or 0.0)
        embeddings = [f"the embeddings alone have {number(row.auroc)}" for row in rows if row.layer == -1]
        first = first_as_good.get(estimator)
        as_good = [] if first is None or first == best.layer else [f"{_layer(first)} is already as good"]
        where = ", ".join([*as_good, *embeddings])
        lines += _wrapped(
            f"Layers: a classifier of hidden states ({best.name}) reads the trait best at "
            f"{_layer(best.layer)}, held-out AUROC {number(best.auroc)}"
            f"{interval(best.values['test_auroc_low'], best.values['test_auroc_high'])}"
            + (f"; {where}." if where else ".")
        )
    return ["", *lines] if lines else []


def _layer(layer: int | str | None) -> str:
    return "the embeddings" if layer in (-1, "embeddings") else f"layer {layer}"


def _warnings(content: Mapping[str, Any], summary: Mapping[str, Any]) -> list[str]:
    warnings = [f"The audit of the sentences warns: {limit}." for limit in content["broken_limits"]]
    few = {label: count for label, count in summary["sentences"]["held_out"].items() if count < FEW_HELD_OUT}
    warnings += [
        f"Only {count} held-out sentences have label {label}: intervals this small are not to be trusted."
        for label, count in few.items()
    ]
    warnings += [f"Note: {message}" for message in summary["messages"]]
    if not content["broken_limits"] and content["audited"]:
        warnings.append("The audit of the sentences has no warning.")
    return ["", *(line for warning in warnings for line in _wrapped(warning))] if warnings else []


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ")
