"""The verdict in words: how many features survive, does the best beat bag of words, how much is optimism."""

from s2_find_top_features.ranked_features import RankedResults

GOOD, BAD, OPEN = "good", "bad", "open"


def verdict_cards(results: RankedResults) -> list[dict[str, str]]:
    """One card per question: a headline, the numbers behind it, and its tone."""
    return [_survivors(results), _repeated(results), _against_words(results), _optimism(results)]


def _card(question: str, headline: str, text: str, tone: str) -> dict[str, str]:
    return {"question": question, "headline": headline, "text": text, "tone": tone}


def _survivors(results: RankedResults) -> dict[str, str]:
    question = "Is anything there at all?"
    found = results.summary["significance"]
    if found is None:
        return _card(
            question,
            "Nothing here tells a finding from noise",
            "The ranking was run without permutations (--permutations 0).",
            OPEN,
        )
    if not found["n_tested"]:
        text = f"No feature is active on {found['min_active']} train sentences."
        return _card(question, "No feature was tested", text, OPEN)
    n_found = found["n_discoveries"]
    headline = f"{n_found:,} of {found['n_tested']:,} tested features survive"
    rho = results.features[0].train["spearman"]
    text = (
        f"Survive: q below {found['level']} against {found['n_permutations']} permutations of the train "
        f"labels. From noise alone the best |rho| is {number(found['best_of_noise_mean'])} on average and "
        f"above {number(found['best_of_noise_95'])} in 5% of cases. The feature ranked first has rho "
        f"{number(rho)}. Not tested: {found['n_excluded']:,} features active on fewer than "
        f"{found['min_active']} train sentences."
    )
    return _card(question, headline, text, GOOD if n_found else BAD)


def _repeated(results: RankedResults) -> dict[str, str]:
    question = "Does it repeat on sentences nobody chose on?"
    summary, settings = results.summary, results.summary["settings"]
    lows = [feature.evidence.get("held_out_auroc_3_vs_0_low") for feature in results.features]
    known = [low for low in lows if low is not None]
    filters = (
        f"{summary['n_passing']:,} of {summary['n_features']:,} features pass the filters on train "
        f"(pearson at least {settings['min_pearson']}, TPR at least {settings['min_tpr']}, FPR at most "
        f"{settings['max_fpr']}, means rising with the label)."
    )
    if not known:
        return _card(question, "No held-out interval exists", filters, OPEN)
    n_above = sum(low > 0.5 for low in known)
    headline = f"{n_above} of the {len(known)} listed features stay above chance"
    text = (
        "Above chance: the whole 95% interval of the held-out AUROC, label 3 against label 0, lies above "
        f"0.5. One in forty would do so by chance alone. {filters}"
    )
    return _card(question, headline, text, OPEN if n_above else BAD)


def _against_words(results: RankedResults) -> dict[str, str]:
    question = "Does the best feature beat bag of words?"
    verdict, best = results.summary["verdict"], results.features[0]
    if verdict is None:
        text = "The ranking has no baseline of bag of words; its messages stand below, if there are any."
        return _card(question, "Not compared", text, OPEN)
    words = results.summary["baselines"]["bag_of_words"]
    headline, tone = {
        "beats": ("Yes, it beats bag of words", GOOD),
        "loses": ("No, it loses to bag of words", BAD),
        "cannot tell": ("Cannot tell", OPEN),
    }[verdict["word"]]
    evidence = best.evidence
    text = (
        f"Held-out AUROC, label 3 against label 0: feature {best.key} {number(best.held_out['auroc_3_vs_0'])}"
        f"{interval(evidence.get('held_out_auroc_3_vs_0_low'), evidence.get('held_out_auroc_3_vs_0_high'))}, "
        f"bag of words {number(words['held_out'])}{interval(words['held_out_low'], words['held_out_high'])}. "
        f"Difference, paired{interval(verdict['difference_low'], verdict['difference_high'])}. "
        "Brackets are 95% intervals."
    )
    return _card(question, headline, text, tone)


def _optimism(results: RankedResults) -> dict[str, str]:
    question = "How much of the best score is selection?"
    best = results.features[0]
    metric = results.summary["settings"]["rank_by"]
    train, held_out = best.train[metric], best.held_out[metric]
    optimism = best.evidence.get("optimism")
    if optimism is None or train is None or held_out is None:
        text = f"The {metric.replace('_', ' ')} of feature {best.key} does not exist on both splits."
        return _card(question, "Not known", text, OPEN)
    span = interval(best.evidence.get("held_out_score_low"), best.evidence.get("held_out_score_high"))
    n_features, n_passing = results.summary["n_features"], results.summary["n_passing"]
    among = f"the best of {n_features:,}"
    if best.passes_filters:
        among = f"the best of {n_passing:,} that pass the filters, out of {n_features:,}"
    if best.passes_filters and n_passing == 1:
        among = f"the only one of {n_features:,} that passes the filters"
    text = (
        f"The {metric.replace('_', ' ')} of feature {best.key} is {number(train)} on the train sentences, "
        f"where it was chosen as {among}, and {number(held_out)}{span} on the held-out ones, which count."
    )
    highest = results.first_by_metric
    if highest is not best:
        text += (
            f" Feature {highest.key} has {number(highest.train[metric])} on train and "
            f"{number(highest.held_out[metric])} held-out, but fails the filter on "
            f"{', '.join(results.failed_filters(highest))}."
        )
    return _card(question, f"Optimism {number(optimism)}", text, OPEN)


def number(value: float | None, digits: int = 2) -> str:
    """A number to read, or a dash where it does not exist; never a negative zero."""
    if value is None:
        return "\N{EN DASH}"
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def interval(low: float | None, high: float | None) -> str:
    """`` [0.33, 0.68]``, or nothing where there is no interval."""
    return "" if low is None or high is None else f" [{number(low)}, {number(high)}]"
