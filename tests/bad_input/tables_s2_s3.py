"""Bad input between stages 2 and 3: rankings, their summary, what stands beside them, sweeps, reports."""

from pathlib import Path

from tests.bad_input.cases import Kind, case, cell, content, cut, entry, folder_instead, gone, swap, without


def header_alone(path):
    """No row below the header."""
    path.write_text(path.read_text().split("\n")[0] + "\n")


def feature_outside(path):
    """The first feature is one that its SAE does not have, by number and key."""
    cell("feature_id", "5000")(path)
    cell("key", "0:8:5000")(path)


RANKING = Kind(
    name="ranked features",
    script="s4_classifier_data_prep.generate_datasets",
    arguments="--strategy sae-to-concept --features results/ranked_features.csv --input lies_features "
    "--output out.npz",
    parts="lies_features results",
    file="results/ranked_features.csv",
    where="ranked_features.csv",
    cases=(
        case("missing", gone, "no such file"),
        case("empty", content(""), "empty"),
        case("cut", cut(0.6), "line"),
        case("a column missing", swap("feature_id", "feature"), "'feature_id'"),
        case("a rank in words", swap("\n1,", "\nfirst,"), "line 2", "first"),
        case("a score that is NaN", cell("interpretability_score", "nan"), "line 2", "nan"),
        case("an infinite score", cell("held_out_tpr", "-inf", row=2), "line 3", "-inf"),
        case("a negative rank", cell("rank", "-1"), "line 2", "rank"),
        case("a layer as a fraction", cell("layer", "1.5"), "line 2", "layer", "1.5"),
        case("a feature outside", feature_outside, "rank 1", "5000"),
        case("a key of another feature", cell("feature_id", "5"), "line 2", "key is '0:8:3', not 0:8:5 or "),
        case("no rows", header_alone, "0 features"),
        case("an SAE that the store lacks", cell("sae_name", "layer_99"), "rank 1", "layer_99"),
        case("an SAE outside", cell("sae_name", "../../x"), "rank 1", "../../x"),
    ),
)

SUMMARY = Kind(
    name="ranking summary",
    script="s3_feature_activation_graphs.build_report",
    arguments="--s2-results results --s1-data lies_features --output out.html",
    parts="lies_features results",
    file="results/summary.json",
    where="results",
    cases=(
        case("missing", gone, "summary.json"),
        case("cut", cut(0.5), "summary.json", "JSON"),
        case("a list", content("[1, 2]"), "summary.json"),
        case("of another program", entry("format", "report", seal=True), "summary.json"),
        case("another version", entry("format_version", 1, seal=True), "format 1"),
        case("of another store", entry("store.fingerprint", "0" * 64, seal=True), "another store"),
        case("no store", without("store"), "store"),
        case("no settings", without("settings"), "summary.json", "settings"),
        case(
            "a metric that there is not",
            entry("settings.rank_by", "beauty", seal=True),
            "settings.rank_by",
            "beauty",
        ),
        case(
            "a pooling that there is not",
            entry("settings.pooling", "sum", seal=True),
            "settings.pooling",
            "sum",
        ),
        case("baselines as a list", entry("baselines", [], seal=True), "summary.json", "baselines"),
        case(
            "a baseline in words",
            entry("baselines.bag_of_words.held_out", "good", seal=True),
            "baselines.bag_of_words",
        ),
        case(
            "significance as text", entry("significance", "high", seal=True), "summary.json", "significance"
        ),
        case("a count as text", entry("n_features", "many", seal=True), "summary.json", "n_features"),
    ),
)

EXPLANATIONS = Kind(
    name="explanations of features",
    script="s3_feature_activation_graphs.build_report",
    arguments="--s2-results results --s1-data lies_features --output out.html",
    parts="lies_features results",
    file="results/explanations.json",
    where="explanations.json",
    cases=(
        case("not JSON", content("{"), "line 1"),
        case("an object", content("{}"), "list"),
        case("entries as text", content('["x"]'), "0"),
        case("an entry without rank", content('[{"labels": []}]'), "0.rank"),
        case("an entry without labels", content('[{"rank": 1}]'), "0.labels"),
        case("labels as numbers", content('[{"rank": 1, "labels": [1]}]'), "0.labels.0"),
        case("half a character", content('[{"rank": 1, "labels": ["\\ud800"]}]'), "surrogate"),
        case("not UTF-8", content(b'["\xff"]'), "utf-8"),
        case("a folder", Path.mkdir, "directory"),
    ),
)

SPECIFICITY_HEADER = (
    "rank,sae_name,layer,average_l0,feature_id,other_trait,held_out_auroc_3_vs_0,"
    "held_out_auroc_3_vs_0_of_other,held_out_auroc_3_vs_3_of_other,n_label_3,n_label_3_of_other,"
    "n_label_0_of_other,n_left_out\n"
)
SPECIFICITY = Kind(
    name="table of specificity",
    script="s3_feature_activation_graphs.build_report",
    arguments="--s2-results results --s1-data lies_features --output out.html",
    parts="lies_features results",
    file="results/specificity.csv",
    where="specificity.csv",
    cases=(
        case("empty", content(""), "empty"),
        case("a column missing", content("rank,layer\n1,2\n"), "'sae_name'"),
        case("a rank in words", content(SPECIFICITY_HEADER + "x,s,0,8,3,caring,1,1,1,1,1,1,1\n"), "line 2"),
        case("no rank", content(SPECIFICITY_HEADER + ",s,0,8,3,caring,1,1,1,1,1,1,1\n"), "line 2", "rank"),
        case("a number in words", content(SPECIFICITY_HEADER + "1,s,0,8,3,caring,x,1,1,1,1,1,1\n"), "line 2"),
        case(
            "an infinite number", content(SPECIFICITY_HEADER + "1,s,0,8,3,caring,inf,1,1,1,1,1,1\n"), "line 2"
        ),
        case("not UTF-8", content(b"\xff"), "byte 0"),
        case("a cell too few", content(SPECIFICITY_HEADER + "1,s,0\n"), "line 2"),
    ),
)

SWEEP = Kind(
    name="layer sweep",
    script="s3_feature_activation_graphs.build_report",
    arguments="--s2-results results --s1-data lies_features --layer-sweep sweep/layer_sweep.csv "
    "--output out.html",
    parts="lies_features results sweep",
    file="sweep/layer_sweep.csv",
    where="layer_sweep.csv",
    cases=(
        case("missing", gone, "no such file"),
        case("a folder", folder_instead, "directory"),
        case("empty", content(""), "empty"),
        case("a column missing", swap("estimator", "model_kind"), "'estimator'"),
        case("of another trait", content(b"trait,layer\nlies,1\n"), "'estimator'"),
        case("a layer in words", cell("layer", "one"), "line 2", "one"),
        case("an AUROC that is NaN", cell("test_auroc", "nan"), "line 2", "nan"),
        case("cut", cut(0.7), "line"),
        case("semicolons between cells", swap("trait,layer,", "trait;layer;"), "line 2"),
        case("a quote inside", content('trait\n"x"y\n'), "line 2"),
    ),
)

REPORT = Kind(
    name="reports of an index",
    script="s3_feature_activation_graphs.build_report",
    arguments="--index lies.html --output index.html",
    parts="lies.html",
    file="lies.html",
    where="lies.html",
    cases=(
        case("missing", gone, "no such file"),
        case("a folder", folder_instead, "directory"),
        case("another page", content("<html><body>Hello</body></html>"), "holds no report"),
        case("not UTF-8", content(b"\xff\xfe"), "report"),
        case(
            "the overview is no JSON",
            content('<script type="application/json" id="overview">{</script>'),
            "holds no report",
        ),
        case(
            "the overview is a list",
            content('<script type="application/json" id="overview">[]</script>'),
            "holds no report",
        ),
        case("another version", swap('"format_version":1', '"format_version":7'), "7"),
        case("no trait", swap('"trait":', '"train":'), "trait"),
        case("sentences in words", swap('"n_sentences":', '"n_sentences":"x","n":'), "n_sentences"),
    ),
)

KINDS = (RANKING, SUMMARY, EXPLANATIONS, SPECIFICITY, SWEEP, REPORT)
