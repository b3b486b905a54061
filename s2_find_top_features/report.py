"""The ranking as a table for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from s1_compute_all_features.feature_store import key_form, model_name
from s2_find_top_features.ranked_features import FILTER_LETTERS, VERDICTS, RankedFeature, RankedResults

_SHOWN = (
    ("score", "interpretability_score"),
    ("r", "pearson"),
    ("rho", "spearman"),
    ("AUROC", "auroc_3_vs_0"),
    ("TPR", "tpr"),
    ("FPR", "fpr"),
)
_BASELINES = {
    "bag_of_words": "bag of words",
    "sentence_length": "sentence length",
    "difference_of_means": "difference of means",
    "logistic_probe": "logistic probe",
    "random_directions": "random directions",
}
_FILTER_KEY = "filter: what fails: r pearson, t TPR, f FPR, m monotonic"
_NAME_WIDTH = 38
_KEY_WIDTH = 16


def format_report(
    results: RankedResults,
    display_top: int,
    one_per_family: bool = False,
    explanations: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Counts, significance, baselines, the verdict against bag of words, and the best features.

    Args:
        results: as read from the folder.
        display_top: number of features to list.
        one_per_family: list only the best feature of each family.
        explanations: what Neuronpedia says of the features.
    """
    summary = results.summary
    listed = [feature for feature in results.features if feature.is_representative or not one_per_family]
    lines = [
        *_counts(summary),
        *(f"note: {message}" for message in summary["messages"]),
        *_significance(summary),
        "",
        *_baselines(results),
        "",
        *_order(results),
        *_table(results, listed[:display_top], one_per_family),
    ]
    lines.append(_FILTER_KEY)
    if results.falling:
        falling = _table(results, results.falling[:5], False)
        lines += ["", "features that fall with the label, by |rho|:", "", *falling]
    if summary["stability"]:
        lines += [
            "",
            f"stab: share of {summary['stability']['n_bootstraps']} bootstraps of train with the feature in "
            f"the top {summary['settings']['top_n']} of all features",
        ]
    lines += _poolings(summary["pooling_comparison"]) + _specificity(summary["specificity"])
    lines += _explanations(explanations, listed[:display_top])
    if summary["quick_list"]:
        lines += ["", f"the top features on Neuronpedia: {summary['quick_list']}"]
    return "\n".join(lines)


def _counts(summary: Mapping[str, Any]) -> list[str]:
    settings = summary["settings"]
    by_label = {
        name: " ".join(f"{label}:{count}" for label, count in counts.items())
        for name, counts in summary["sentences"].items()
    }
    return [
        f"{summary['n_features']:,} features of {model_name(summary['model'])}; "
        f"{summary['n_active_on_train']:,} active on train, {summary['n_passing']:,} pass "
        f"(pearson >= {settings['min_pearson']}, tpr >= {settings['min_tpr']}, fpr <= {settings['max_fpr']}, "
        f"monotonic); pooling {settings['pooling']}",
        f"sentences by label: train {by_label['train']}, held-out {by_label['held_out']}",
    ]


def _significance(summary: Mapping[str, Any]) -> list[str]:
    found = summary["significance"]
    if found is None:
        return ["no permutation null (--permutations 0): nothing here tells a finding from noise"]
    if not found["n_tested"]:
        return [f"no feature is active on {found['min_active']} train sentences: none was tested"]
    lines = [
        f"{found['n_tested']:,} features tested ({found['n_excluded']:,} left out: active on fewer than "
        f"{found['min_active']} train sentences), {found['n_permutations']} permutations: "
        f"{found['n_discoveries']:,} discoveries at q < {found['level']}",
        f"the best |rho| expected from noise alone is {_number(found['best_of_noise_mean'])}; above "
        f"{_number(found['best_of_noise_95'])} in 5% of noise. A discovery is associated with the label; it "
        "need not be the concept.",
    ]
    if found.get("n_fixed_sentences"):
        lines.append(
            f"note: {found['n_fixed_sentences']} train sentences belong to groups that no other group could "
            "trade labels with"
        )
    return lines


def _baselines(results: RankedResults) -> list[str]:
    best = results.features[0]
    name = f"best feature ({best.key})"
    width = max(_NAME_WIDTH, len(name) + 4)
    head = f"{'AUROC, label 3 against 0':<{width}}{'train':>7}{'CV':>7}{'held-out':>10}"
    lines = [
        head,
        _baseline_line(
            width,
            name,
            best.train["auroc_3_vs_0"],
            None,
            best.held_out["auroc_3_vs_0"],
            best.evidence["held_out_auroc_3_vs_0_low"],
            best.evidence["held_out_auroc_3_vs_0_high"],
        ),
    ]
    for name, baseline in results.summary["baselines"].items():
        where = ", ".join(f"{key} {baseline[key]}" for key in ("layer", "C") if key in baseline)
        lines.append(
            _baseline_line(
                width,
                _BASELINES.get(name, name) + (f" ({where})" if where else ""),
                baseline["train"],
                baseline["cross_validated"],
                baseline["held_out"],
                baseline["held_out_low"],
                baseline["held_out_high"],
            )
        )
    verdict = results.summary["verdict"]
    if verdict is not None:
        interval = _interval(verdict["difference_low"], verdict["difference_high"])
        lines.append(
            f"verdict on the held-out sentences: {VERDICTS[verdict['word']]}"
            + (f" (difference of AUROC, 95% interval{interval})" if interval else "")
        )
    return lines


def _baseline_line(
    width: int,
    name: str,
    train: float | None,
    cross_validated: float | None,
    held_out: float | None,
    low: float | None,
    high: float | None,
) -> str:
    values = f"{_number(train):>7}{_number(cross_validated):>7}{_number(held_out):>10}"
    return f"{'  ' + name:<{width}}{values}{_interval(low, high)}".rstrip()


def _order(results: RankedResults) -> list[str]:
    """What stands first and why, where that is not the best value of the metric ranked by."""
    first, best = results.features[0], results.first_by_metric
    if first is best:
        return []
    metric = results.summary["settings"]["rank_by"]
    n_passing = results.summary["n_passing"]
    return [
        f"features that pass the filters come first, here {n_passing:,}. The best {metric} is that of "
        f"{best.key}, {_number(best.train[metric])}, which fails {', '.join(results.failed_filters(best))}",
        "",
    ]


def _table(results: RankedResults, features: Sequence[RankedFeature], one_per_family: bool) -> list[str]:
    names = " ".join(f"{name:>5}" for name, _ in _SHOWN)
    form = key_form(feature.key for feature in features)
    width = max(_KEY_WIDTH, len(form), *(len(feature.key) for feature in features))
    head = f"{'rank':>4} {form:<{width}} {'filter':<6} {'fam':>3} {names} | held-out {names}"
    head += f" {'AUROC 95%':>12} | {'q':>5} {'fwer':>5} {'stab':>4}"
    lines = [head, "-" * len(head)]
    for feature in features:
        train = " ".join(f"{_number(feature.train[metric]):>5}" for _, metric in _SHOWN)
        held_out = " ".join(f"{_number(feature.held_out[metric]):>5}" for _, metric in _SHOWN)
        evidence = feature.evidence
        interval = _interval(evidence["held_out_auroc_3_vs_0_low"], evidence["held_out_auroc_3_vs_0_high"])
        family = "" if feature.family is None else str(feature.family)
        if not feature.is_representative and not one_per_family:
            family = f"={family}"
        failed = "".join(FILTER_LETTERS[name] for name in results.failed_filters(feature))
        passed = "pass" if feature.passes_filters else f"-{failed}"
        line = f"{feature.rank:>4} {feature.key:<{width}} {passed:<6} {family:>3} {train}"
        line += f" |          {held_out}"
        line += f"{interval:>13} | {_number(evidence['q_value'], 3):>5} {_number(evidence['fwer_p'], 3):>5}"
        line += f" {_number(evidence['stability']):>4}  {feature.neuronpedia_url}"
        lines.append(line.rstrip())
    return lines


def _poolings(rows: Sequence[Mapping[str, Any]] | None) -> list[str]:
    if not rows:
        return []
    names = {row["pooling"]: f"{row['sae_name']} {row['feature_id']}" for row in rows}
    width = max(28, *(len(name) + 1 for name in names.values()))
    lines = ["", f"{'pooling':<14}{'best feature':<{width}}{'score':>6} {'AUROC':>6} {'held-out AUROC':>15}"]
    lines[-1] += f"{'':>14}{'pass':>7}{'q < 0.05':>10}"
    for row in rows:
        interval = _interval(row["held_out_auroc_3_vs_0_low"], row["held_out_auroc_3_vs_0_high"])
        discoveries = "" if row["n_discoveries"] is None else f"{row['n_discoveries']:,}"
        lines.append(
            f"{row['pooling']:<14}{names[row['pooling']]:<{width}}{_number(row['score']):>6} "
            f"{_number(row['auroc_3_vs_0']):>6} "
            f"{_number(row['held_out_auroc_3_vs_0']):>15}{interval:<14}{row['n_passing']:>7,}{discoveries:>10}"
        )
    return lines


def _specificity(matrix: Mapping[str, Mapping[str, float | None]] | None) -> list[str]:
    if not matrix:
        return []
    traits = list(next(iter(matrix.values())))
    lines = ["", "held-out AUROC, label 3 against 0, of each trait's best feature on the sentences of:"]
    width = max(28, *(len(feature) + 1 for feature in matrix))
    lines.append(f"{'':<{width}}" + "".join(f"{trait:>13}" for trait in traits))
    for feature, values in matrix.items():
        lines.append(f"{feature:<{width}}" + "".join(f"{_number(values[trait]):>13}" for trait in traits))
    return lines


def _explanations(explanations: Sequence[Mapping[str, Any]], listed: Sequence[RankedFeature]) -> list[str]:
    by_rank = {entry["rank"]: entry for entry in explanations}
    told = [feature for feature in listed if feature.rank in by_rank]
    if not told:
        return []
    lines = ["", "what Neuronpedia says:"]
    width = max(_KEY_WIDTH + 2, *(len(feature.key) for feature in told))
    for feature in told:
        labels = "; ".join(by_rank[feature.rank]["labels"]) or "no label"
        lines.append(f"{feature.rank:>4} {feature.key:<{width}} {labels}")
    return lines


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"
