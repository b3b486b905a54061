"""The report's script and its page as text: what is refused, what is escaped, what it may link to."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline_common.files import read_json, write_json
from s1_compute_all_features.feature_store import FeatureStore
from s2_find_top_features.analyze_features import main as analyze
from s2_find_top_features.ranked_features import read_results
from s2_find_top_features.report import format_report
from s3_feature_activation_graphs.activation_summary import as_text, source_line, summary_document
from s3_feature_activation_graphs.build_report import main
from s3_feature_activation_graphs.feature_traces import load_traces
from s3_feature_activation_graphs.report_rendering import TEMPLATES
from tests.s3.report_inputs import KEYS, PAGE, ranked, write_report_inputs, write_store, write_sweep

NEURONPEDIA = "https://www.neuronpedia.org/"
LARGEST = 5_000_000


class Page(HTMLParser):
    """A page's elements, attributes and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.words: list[str] = []
        self._script: str | None = None
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._script = dict(attrs).get("id") or tag

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is None:
            self.words.append(data)
        else:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data

    def json(self, name: str) -> Any:
        return json.loads(self.scripts[name])

    def links(self) -> list[str]:
        return [str(attributes["href"]) for _, attributes in self.elements if "href" in attributes]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_report_inputs(tmp_path_factory.mktemp("report"), n_sentences=40)


@pytest.fixture(scope="module")
def page(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("page")
    sweep = write_sweep(folder / "layer_sweep.csv")
    output = folder / "lies.html"
    assert main([*inputs, "--output", str(output), "--top-n", "5", "--layer-sweep", str(sweep)]) == 0
    return Page(output.read_text(encoding="utf-8"))


def build(inputs: list[str], output: Path, *more: str) -> Page:
    assert main([*inputs, "--output", str(output), *more]) == 0
    return Page(output.read_text(encoding="utf-8"))


def test_the_page_shows_what_the_files_say(page: Page) -> None:
    for words in (
        "lies",
        "2 of 240 tested features survive",
        "From noise alone the best |rho| is 0.31 on average and above 0.42 in 5% of cases",
        "Cannot tell",
        "feature 1:24:3 0.61 [0.46, 0.75], bag of words 0.72 [0.55, 0.88]. Difference, paired [-0.30, 0.10].",
        "Optimism 0.65",
        "is 0.90 on the train sentences, where it was chosen as the best of 3 that pass the filters, out of "
        "256, and 0.25 [0.01, 0.01]",
        "It need not be the concept",
        "no train sentence has label 9 <b>",
        "logistic, mean pooling: best by cross-validation on train at layer 0, "
        "held-out there 0.70 [0.60, 0.80]",
        "bag of words: 0.72",
        "--permutations 200 --seed 7",
    ):
        assert words in page.text


def test_limits_that_the_sentences_break_stand_in_the_verdict(inputs, page, tmp_path, capsys) -> None:
    store = read_json(Path(inputs[inputs.index("--s1-data") + 1]) / "manifest.json", "manifest")
    audit = tmp_path / "lies_audit.json"
    told = "99.2% of sentences have a neighbour <b>"
    write_json(audit, {"input_sha256": store["input"]["sha256"], "broken_limits": [told]})
    broken = build(inputs, tmp_path / "broken.html", "--audit", str(audit))
    assert "The sentences break limits of stage 0's audit" in broken.text
    assert told in broken.text
    assert "--audit lies_audit.json" in broken.text
    write_json(audit, {"input_sha256": store["input"]["sha256"], "broken_limits": []})
    sound = build(inputs, tmp_path / "sound.html", "--audit", str(audit))
    for one in (sound, page):
        assert "break limits" not in one.text
    write_json(audit, {"input_sha256": "f" * 64, "broken_limits": []})
    assert main([*inputs, "--output", str(tmp_path / "other.html"), "--audit", str(audit)]) == 1
    assert "an audit of other sentences than those of" in capsys.readouterr().err
    write_json(audit, {"input_sha256": 7})
    assert main([*inputs, "--output", str(tmp_path / "other.html"), "--audit", str(audit)]) == 1
    assert "input_sha256: expected a text, found 7; run audit_dataset.py" in capsys.readouterr().err
    assert not (tmp_path / "other.html").exists()


def test_every_ranked_feature_has_a_row_and_the_best_a_section(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    anchors = [f"feature-{layer}-{l0}-{feature}" for layer, l0, feature in KEYS]
    assert set(anchors) <= set(ids)
    sections = [values["id"] for tag, values in page.elements if values.get("class") == "feature"]
    assert sections == anchors[:5]
    rows = [values for tag, values in page.elements if tag == "tr" and "data-layer" in values]
    assert len(rows) == len(KEYS)
    assert [row["data-strongest_label"] for row in rows] == ["3", "3", "3", "2", "3", "3"]
    assert [heat["id"] for heat in page.json("heat-maps")["features"]] == anchors[:5]


def test_nothing_from_a_file_becomes_markup(page: Page) -> None:
    assert "<b>" in page.text  # of the message, as text
    assert not any(tag == "b" for tag, _ in page.elements)
    assert len([tag for tag, _ in page.elements if tag == "script"]) == 3
    assert any("<script>alert(1)</script>" in token for token in page.json("heat-maps")["vocabulary"])
    assert "</" not in page.scripts["heat-maps"]
    assert not any(name.startswith("on") for _, values in page.elements for name in values)


def test_the_only_links_that_leave_the_page_are_neuronpedias(page: Page, inputs: list[str]) -> None:
    leaving = [link for link in page.links() if not link.startswith("#")]
    assert leaving
    assert set(leaving) == {PAGE}
    forbidden = {"src", "srcset", "action", "formaction", "data", "poster", "background", "ping", "manifest"}
    assert not any(forbidden & set(values) for _, values in page.elements)
    assert not {"link", "img", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.elements}
    style, script = page.scripts["style"], page.scripts["script"]
    assert not re.search(r"url\(|@import|//", style)
    assert not re.search(r"https?:|fetch\(|XMLHttpRequest|WebSocket|import\(|sendBeacon", script)
    policies = [values["content"] for _, values in page.elements if "http-equiv" in values]
    assert policies[0] is not None
    assert policies[0].startswith("default-src 'none'; ")


def test_every_address_in_the_whole_file_is_neuronpedias(
    page: Page, inputs: list[str], tmp_path: Path
) -> None:
    build(inputs, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert set(re.findall(r"(?:https?|wss?|ftp)://[^\s\"'<)]*", text)) == {PAGE}


def test_missing_parts_are_said(tmp_path: Path) -> None:
    nothing = {"significance": None, "baselines": {}, "verdict": None, "libraries": {}}
    page = build(write_report_inputs(tmp_path, nothing, n_sentences=16), tmp_path / "r.html")
    for words in (
        "Nothing here tells a finding from noise",
        "Not compared",
        "The ranking has no baselines",
        "No layer sweep was given",
        "No other trait was compared",
    ):
        assert words in page.text
    assert page.json("overview")["n_discoveries"] is None
    assert "nan" not in page.text.lower().split()


def test_1000_sentences_and_20_features_take_less_than_5_mb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Denser than an SAE's features ever are together: every second token of every sentence fires.
    keys = [(layer, l0, feature) for layer in (0, 1) for l0 in (8, 24) for feature in range(5)]
    monkeypatch.setattr("tests.s3.report_inputs.KEYS", keys)
    monkeypatch.setattr("tests.s3.report_inputs.ranked", lambda rank, key: ranked(rank % 5 + 1, key))
    options: dict[str, Any] = {"n_sentences": 1000, "tokens_per_sentence": (12, 28), "density": 0.5}
    inputs = write_report_inputs(tmp_path, d_sae=48, **options)
    page = build(inputs, tmp_path / "r.html")
    heat = page.json("heat-maps")
    assert len(heat["features"]) == 20
    assert len(heat["index"]) == 1000
    assert len(heat["features"][0]["values"]) > 0.4 * len(heat["tokens"])
    assert (tmp_path / "r.html").stat().st_size < LARGEST


def test_the_same_inputs_give_the_same_bytes(inputs: list[str], tmp_path: Path) -> None:
    build(inputs, tmp_path / "r.html")
    first = (tmp_path / "r.html").read_bytes()
    build(inputs, tmp_path / "r.html", "--overwrite")
    assert (tmp_path / "r.html").read_bytes() == first
    build(inputs, tmp_path / "r.html", "--overwrite", "--seed", "1")
    assert (tmp_path / "r.html").read_bytes() != first
    assert str(tmp_path).encode() not in first


def test_it_shows_what_stage_2_found_other_traits_included(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = write_store(tmp_path / "lies_features", n_sentences=60)
    other = write_store(tmp_path / "other_features", n_sentences=40, seed=5)
    results = tmp_path / "results"
    ranking = ["--input", str(store), "--output", str(results), "--permutations", "20", "--top-n", "8"]
    assert analyze([*ranking, "--contrast", str(other)]) == 0
    capsys.readouterr()
    page = build(["--s2-results", str(results), "--s1-data", str(store)], tmp_path / "r.html", "--top-n", "3")
    assert capsys.readouterr().out.endswith("r.html\n")
    found = read_results(results)
    overview = page.json("overview")
    assert overview["best"] == found.features[0].key
    assert overview["bag_of_words"] == found.summary["baselines"]["bag_of_words"]["held_out"]
    assert overview["n_discoveries"] == found.summary["significance"]["n_discoveries"]
    for feature, values in found.summary["specificity"].items():
        assert feature in page.text
        assert all(f"{value:.2f}" in page.text for value in values.values())
    assert "on other_features" in page.text
    assert "--contrast STORE_OF_other_features" in page.text
    assert FeatureStore(store).fingerprint in page.text


def test_a_model_from_a_folder_is_named_without_the_way_to_it(tmp_path: Path) -> None:
    model = {"id": "/home/ada/models/gemma", "revision": "0" * 64, "weights": "Q4_1, dequantised"}
    inputs = write_report_inputs(tmp_path, change_model=model, n_sentences=16)
    page = build(inputs, tmp_path / "r.html")
    assert "/home/ada" not in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.json("overview")["model"] == "gemma"
    assert "Q4_1, dequantised" in page.text
    results = read_results(Path(inputs[1]))
    traces = load_traces(FeatureStore(Path(inputs[3])), results, 2, [])
    for text in (
        source_line(traces.store),
        as_text(summary_document(traces, [0, 3], {}, [])),
        format_report(results, 5),
    ):
        assert "gemma" in text
        assert "/home/ada" not in text


def test_an_index_lists_reports_and_links_to_their_best_feature(
    inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "some reports").mkdir()
    first, second = tmp_path / "some reports" / "lies #1.html", tmp_path / "second.html"
    build(inputs, first)
    unknown = {"significance": None, "baselines": {}, "verdict": None}
    build(write_report_inputs(tmp_path, unknown, n_sentences=16), second)
    of_before = re.sub('(id="overview">){', r'\1{"demonstration": true, ', second.read_text(encoding="utf-8"))
    assert '"demonstration": true' in of_before
    second.write_text(of_before, encoding="utf-8")
    index = tmp_path / "index.html"
    arguments = ["--index", str(second), str(first), "--output", str(index)]
    assert main(arguments) == 0
    text = index.read_text(encoding="utf-8")
    page = Page(text)
    folder, anchor = "some%20reports/lies%20%231.html", "#feature-1-24-3"
    assert [link for link in page.links() if link != "#main"] == [
        "second.html", f"second.html{anchor}", folder, f"{folder}{anchor}"
    ]  # fmt: skip
    for words in ("2 of 240", "not tested", "not compared", "cannot tell", "0.72"):
        assert words in page.text
    assert "://" not in text
    # A pattern names the index of an earlier run as well.
    assert main(["--index", str(index), str(second), str(first), "--output", str(index), "--overwrite"]) == 0
    assert index.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; expected a report made by build_report.py"),
        ("<html></html>", "holds no report; make it with build_report.py"),
        ('<script type="application/json" id="overview">{</script>', "holds no report"),
        (
            '<script type="application/json" id="overview">'
            '{"format":"feature_report","format_version":9}</script>',
            "report format 9, this program reads format 1; make it with build_report.py",
        ),
    ],
)
def test_an_index_refuses_what_is_no_report(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.html"
    if content is not None:
        other.write_text(content)
    assert main(["--index", str(other), "--output", str(tmp_path / "index.html")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "index.html").exists()


def test_an_index_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = str(tmp_path / "index.html")
    assert main(["--index", index, "--output", index]) == 1
    assert "the index itself; name the reports" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--s2-results", "r", "--output", "a.html"], "--s1-data is needed"),
        (["--s2-results", "r", "--s1-data", "s", "--output", "a.txt"], "expected the name of an HTML file"),
        (["--index", "r.html", "--s1-data", "s", "--output", "a.html"], "takes no --s1-data"),
        (["--index", "r.html", "--s2-results", "r", "--output", "a.html"], "not allowed with"),
        (["--output", "a.html"], "one of the arguments --s2-results --index is required"),
    ],
)
def test_wrong_usage(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_what_stands_there_is_not_replaced_unasked(
    inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "r.html"
    output.write_text("mine")
    assert main([*inputs, "--output", str(output)]) == 1
    assert "already exists; choose another --output for the report" in capsys.readouterr().err
    assert output.read_text() == "mine"
    (tmp_path / "folder.html").mkdir()
    assert main([*inputs, "--output", str(tmp_path / "folder.html"), "--overwrite"]) == 1
    assert "a folder; name the HTML file to write" in capsys.readouterr().err


def test_results_of_another_store_are_refused(
    inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_store(tmp_path / "other_features", n_sentences=16)
    assert main([*inputs[:2], "--s1-data", str(other), "--output", str(tmp_path / "r.html")]) == 1
    assert "the results were made from another store" in capsys.readouterr().err


def test_a_sweep_of_another_trait_is_refused(
    inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = write_sweep(tmp_path / "sweep.csv", ("caring", "bravery"))
    assert main([*inputs, "--output", str(tmp_path / "r.html"), "--layer-sweep", str(sweep)]) == 1
    error = capsys.readouterr().err
    assert "no row of the trait lies or lies_features with the model synthetic" in error
    assert "traits in the file: bravery, caring" in error


def test_the_templates_are_files_of_the_package_and_the_results_stay_as_they_were(inputs: list[str]) -> None:
    assert {path.name for path in TEMPLATES.iterdir()} == {
        "base.html", "index.html", "macros.html", "report.css", "report.html", "report.js"
    }  # fmt: skip
    assert "</script" not in (TEMPLATES / "report.js").read_text(encoding="utf-8")
    assert read_json(Path(inputs[1]) / "summary.json", "summary")["n_passing"] == 3
