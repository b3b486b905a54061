"""The ranking as a table for the terminal."""

from collections.abc import Sequence

from s2_find_top_features.ranked_features import RankedFeature, RankedResults

_SHOWN = (
    ("score", "interpretability_score"),
    ("r", "pearson"),
    ("rho", "spearman"),
    ("AUROC", "auroc_3_vs_0"),
    ("TPR", "tpr"),
    ("FPR", "fpr"),
)


def format_report(results: RankedResults, display_top: int) -> str:
    """Counts, baselines, the verdict against bag of words, and the best features.

    Args:
        results: as read from the folder.
        display_top: number of features to list.
    """
    summary = results.summary
    settings = summary["settings"]
    lines = [
        f"{summary['n_features']:,} features of {summary['model']['id']}; "
        f"{summary['n_active_on_train']:,} active on "
        f"train, {summary['n_passing']:,} pass (pearson >= {settings['min_pearson']}, tpr >= "
        f"{settings['min_tpr']}, "
        f"fpr <= {settings['max_fpr']}, monotonic); pooling {settings['pooling']}",
        f"sentences by label: train {_counts(summary['sentences']['train'])}, "
        f"held-out {_counts(summary['sentences']['held_out'])}",
        *(f"note: {message}" for message in summary["messages"]),
    ]
    if summary["model"]["demonstration"]:
        lines.append(
            "DEMONSTRATION MODEL: it shows the mechanics; what it finds says nothing about real models"
        )
    lines += [
        "",
        "held-out AUROC, label 3 against 0:",
        *_verdict(results),
        "",
        *_table(results.features[:display_top]),
    ]
    if summary["quick_list"]:
        lines += ["", f"the top features on Neuronpedia: {summary['quick_list']}"]
    return "\n".join(lines)


def _verdict(results: RankedResults) -> list[str]:
    bag_of_words = results.summary["baselines"]["bag_of_words"]["held_out"]
    length = results.summary["baselines"]["sentence_length"]["held_out"]
    best = results.features[0]
    held_out = best.held_out["auroc_3_vs_0"]
    lines = [
        f"  best feature ({best.key})  {_number(held_out)}   (on train "
        f"{_number(best.train['auroc_3_vs_0'])})",
        f"  bag of words   {_number(bag_of_words)}",
        f"  sentence length  {_number(length)}",
    ]
    if held_out is not None and bag_of_words is not None:
        word = "above" if held_out > bag_of_words else "not above"
        lines.append(f"  The best feature is {word} bag of words on the held-out sentences.")
    return lines


def _table(features: Sequence[RankedFeature]) -> list[str]:
    head = f"{'rank':>4}  {'layer:l0:feature':<18} {'filters':<8}"
    head += (
        " ".join(f"{name:>6}" for name, _ in _SHOWN)
        + "  | held-out "
        + " ".join(f"{name:>6}" for name, _ in _SHOWN)
    )
    lines = [head, "-" * len(head)]
    for feature in features:
        train = " ".join(f"{_number(feature.train[metric]):>6}" for _, metric in _SHOWN)
        held_out = " ".join(f"{_number(feature.held_out[metric]):>6}" for _, metric in _SHOWN)
        passed = "pass" if feature.passes_filters else "-"
        link = f"  {feature.neuronpedia_url}" if feature.neuronpedia_url else ""
        lines.append(f"{feature.rank:>4}  {feature.key:<18} {passed:<8}{train}  |          {held_out}{link}")
    return lines


def _counts(counts: dict[str, int]) -> str:
    return " ".join(f"{label}:{count}" for label, count in counts.items())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
