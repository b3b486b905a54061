"""The report in a real browser, opened from disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s3_feature_activation_graphs.build_report import main
from tests.browser import started_browser
from tests.s3.report_inputs import write_report_inputs, write_sweep

pytestmark = pytest.mark.browser

SIZES = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
FEATURE = "#feature-1-24-3"
SHOWN_ROWS = "#ranked tbody tr:not([hidden])"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from started_browser()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report in a browser")
    inputs = write_report_inputs(folder, n_sentences=60)
    sweep = write_sweep(folder / "sweep.csv")
    output = folder / "lies #1.html"
    assert main([*inputs, "--output", str(output), "--top-n", "5", "--layer-sweep", str(sweep)]) == 0
    return output


class Watched:
    """A page that remembers every request and whatever the console said."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": SIZES["desktop"], **options})
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog {dialog.message}"))
        self.address = path.resolve().as_uri()

    def open(self, fragment: str = "") -> Any:
        self.page.goto(self.address + fragment)
        return self.page


@pytest.fixture
def watched(browser: Any, report: Path) -> Iterator[Watched]:
    opened = Watched(browser, report)
    yield opened
    opened.context.close()
    assert opened.complaints == []
    assert [url.partition("#")[0] for url in opened.requests] == [opened.address] * len(opened.requests)
    assert opened.requests


def keys(page: Any) -> list[str]:
    return page.locator(f"{SHOWN_ROWS} .key").all_inner_texts()


def test_it_loads_without_a_complaint_and_without_the_network(watched: Watched) -> None:
    page = watched.open()
    assert page.title() == "lies: SAE features of synthetic"
    assert page.locator(".feature").count() == 5
    # Five top and five random sentences of each of the four labels.
    assert page.locator(f"{FEATURE} .sentences li").count() == 40
    assert page.locator(f"{FEATURE} .hot").count() > 0
    assert len(watched.requests) == 1


def test_a_page_that_loads_something_would_be_seen(browser: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.html"
    other.write_text("<script>console.error('x')</script><img src='http://127.0.0.1:9/x.png'>")
    opened = Watched(browser, other)
    opened.open()
    opened.context.close()
    assert "x" in opened.complaints
    assert "http://127.0.0.1:9/x.png" in opened.requests


def test_the_policy_forbids_what_a_sentence_could_smuggle_in(browser: Any, report: Path) -> None:
    opened = Watched(browser, report)
    page = opened.open()
    with page.expect_event("requestfailed") as stopped:
        page.evaluate("document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/'}))")
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'ran = 1'}))")
    assert stopped.value.failure == "csp"
    assert page.evaluate("window.ran") is None
    opened.context.close()
    assert len(opened.complaints) == 2
    assert all("Content Security Policy" in complaint for complaint in opened.complaints)


def test_markup_in_a_sentence_is_shown_as_text(watched: Watched) -> None:
    page = watched.open()
    page.locator('form[data-for="heat"] [name=text]').fill("<script>")
    texts = page.locator(f"{FEATURE} .sentences .text").all_inner_texts()
    assert texts
    assert all("<script>alert(1)</script>" in text for text in texts)
    assert page.locator("main script").count() == 0
    assert page.get_by_text("no train sentence has label 9 <b>").count() == 1


def test_the_table_sorts_both_ways_and_keeps_empty_cells_last(watched: Watched) -> None:
    page = watched.open()
    assert keys(page) == ["1:24:3", "0:8:3", "0:8:60", "1:8:7", "0:24:11"]
    heading = page.locator("#ranked thead th", has_text="held\u2011out AUROC")
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert keys(page) == ["1:8:7", "0:8:60", "0:8:3", "1:24:3", "0:24:11"]
    heading.get_by_role("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert keys(page) == ["1:24:3", "0:8:3", "0:8:60", "1:8:7", "0:24:11"]


def test_the_table_filters_by_layer_l0_label_and_words(watched: Watched) -> None:
    page = watched.open()
    form = page.locator('form[data-for="ranked"]')
    form.locator("[name=fold]").uncheck()
    for name, value, expected in (
        ("layer", "1", ["1:24:3", "1:8:7"]),
        ("average_l0", "8", ["0:8:3", "0:8:60", "1:8:7"]),
        ("strongest_label", "2", ["0:8:60"]),
    ):
        form.locator(f"[name={name}]").select_option(value)
        assert keys(page) == expected
        form.locator(f"[name={name}]").select_option("")
    form.locator("[name=find]").fill("24:1")
    assert keys(page) == ["0:24:11"]
    assert form.locator("[name=count]").inner_text() == "1 of 6 features"
    form.locator("[name=find]").fill("")
    form.locator("[name=passing]").check()
    assert keys(page) == ["1:24:3", "0:8:3", "0:24:3"]


def test_families_fold_and_unfold(watched: Watched) -> None:
    page = watched.open()
    unfold = page.locator(f"{SHOWN_ROWS} .unfold")
    assert unfold.all_inner_texts() == ["+1"]
    assert unfold.get_attribute("aria-expanded") == "false"
    unfold.press("Enter")
    assert keys(page) == ["1:24:3", "0:8:3", "0:24:3", "0:8:60", "1:8:7", "0:24:11"]
    assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"
    page.keyboard.press("Enter")
    assert keys(page) == ["1:24:3", "0:8:3", "0:8:60", "1:8:7", "0:24:11"]
    # Where a filter leaves the member alone, it stands for its family.
    page.locator('form[data-for="ranked"] [name=average_l0]').select_option("24")
    assert keys(page) == ["1:24:3", "0:24:3", "0:24:11"]


def test_a_tokens_value_shows_on_hover_and_by_keyboard(watched: Watched) -> None:
    page = watched.open(FEATURE)
    tip = page.locator("#tip")
    peak = page.locator(f"{FEATURE} .sentences .peak").first
    value = page.locator(f"{FEATURE} .sentences .meta b").first.inner_text()
    peak.hover()
    assert tip.is_visible()
    assert value in tip.inner_text()
    page.locator(f"{FEATURE} h3").hover()
    assert tip.is_hidden()
    page.locator(f"{FEATURE} .sentences").first.locator('[tabindex="0"]').focus()
    first = tip.inner_text()
    assert value in first
    page.keyboard.press("End")
    assert "\u201c.\u201d" in tip.inner_text()
    page.keyboard.press("Home")
    assert "token 1 of" in tip.inner_text()
    page.keyboard.press("ArrowRight")
    assert "token 2 of" in tip.inner_text()
    page.keyboard.press("ArrowDown")
    sentence = (
        "[...document.activeElement.closest('ul').children].indexOf(document.activeElement.closest('li'))"
    )
    assert page.evaluate(sentence) == 1
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    # One stop of the Tab key per list, wherever one has moved in it.
    assert page.locator(f'{FEATURE} .sentences >> nth=0 >> [tabindex="0"]').count() == 1
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "more"


def test_a_tap_shows_the_value(browser: Any, report: Path) -> None:
    opened = Watched(browser, report, viewport=SIZES["phone"], has_touch=True)
    page = opened.open(FEATURE)
    page.locator(f"{FEATURE} .sentences .peak").first.tap()
    box = page.locator("#tip").bounding_box()
    opened.context.close()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= SIZES["phone"]["width"]


def test_the_script_shows_the_stores_activations(watched: Watched, report: Path) -> None:
    from s1_compute_all_features.feature_store import FeatureStore

    store = FeatureStore(report.parent / "lies_features")
    values = store.feature_activations(store.find_sae(1, 24), [3])[:, 0]
    page = watched.open(FEATURE)
    page.locator('form[data-for="heat"] [name=label]').select_option("3")
    items = page.locator(f"{FEATURE} .sentences").first.locator("li")
    shown = []
    for place in range(items.count()):
        sentence = int(items.nth(place).locator(".meta").get_attribute("title").removeprefix("sentence "))
        first, last = store.starts[sentence], store.starts[sentence + 1]
        tips = items.nth(place).locator("[data-tip]").evaluate_all("all => all.map(one => one.dataset.tip)")
        told = [float(tip.split("\u201d  ")[1].split("\n")[0]) for tip in tips]
        assert told == pytest.approx(values[first:last].tolist(), rel=5.1e-3)  # three significant digits
        shown.append((sentence, max(told)))
    peaks = {
        s: values[store.starts[s] : store.starts[s + 1]].max() for s in range(60) if store.labels[s] == 3
    }
    assert [sentence for sentence, _ in shown] == sorted(peaks, key=lambda s: -peaks[s])[:5]


def test_more_sentences_come_on_request_and_by_split(watched: Watched) -> None:
    page = watched.open(FEATURE)
    page.locator('form[data-for="heat"] [name=label]').select_option("3")
    random = page.locator(f"{FEATURE} .by-label > div").nth(1)
    assert random.locator("li").count() == 5
    random.locator(".more").click()
    assert random.locator("li").count() == 15
    assert random.locator(".more").is_hidden()
    page.locator('form[data-for="heat"] [name=split]').select_option("1")
    splits = page.locator(f"{FEATURE} .meta span").all_inner_texts()
    assert set(splits) == {"held-out"}


def test_a_link_leads_to_a_feature(watched: Watched) -> None:
    page = watched.open("#feature-1-8-7")
    assert page.locator("#feature-1-8-7").evaluate("one => one === document.activeElement")
    assert page.locator(".found").get_attribute("id") == "feature-1-8-7"
    page.locator("#feature-1-8-7").get_by_text("#4").last.click()
    assert page.evaluate("location.hash") == "#feature-0-8-60"
    page.wait_for_function("document.querySelector('.found').id === 'feature-0-8-60'")
    # One that the report lists without a section: its row, whatever the filters hide.
    page.locator('form[data-for="ranked"] [name=layer]').select_option("1")
    page.evaluate("location.hash = '#feature-0-24-11'")
    page.wait_for_function("document.querySelector('.found')?.id === 'feature-0-24-11'")
    assert page.locator("#feature-0-24-11").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", list(SIZES))
def test_nothing_is_wider_than_the_screen_and_text_stands_out(
    size: str, scheme: str, browser: Any, report: Path, tmp_path: Path
) -> None:
    opened = Watched(browser, report, viewport=SIZES[size], color_scheme=scheme)
    page = opened.open()
    width = page.evaluate("document.documentElement.scrollWidth")
    back, front = (
        page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color")
    )
    page.screenshot(path=tmp_path / "page.png")
    opened.context.close()
    assert width == SIZES[size]["width"]
    brightness = {
        name: sum(map(float, text[4:-1].split(","))) / 765
        for name, text in (("back", back), ("front", front))
    }
    assert (brightness["back"] > 0.9) == (scheme == "light")
    assert abs(brightness["back"] - brightness["front"]) > 0.75
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_it_prints_what_it_shows_in_light_colours(browser: Any, report: Path) -> None:
    opened = Watched(browser, report, color_scheme="dark")
    page = opened.open()
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("form:visible").count() == 0
    assert page.locator(f"{FEATURE} .sentences li:visible").count() == 40
    assert page.pdf().startswith(b"%PDF")
    opened.context.close()


def test_without_javascript_it_says_what_is_missing_and_shows_the_rest(browser: Any, report: Path) -> None:
    opened = Watched(browser, report, java_script_enabled=False)
    page = opened.open()
    assert "need JavaScript, which is switched off" in page.locator("noscript p").inner_text()
    assert page.locator("#ranked tbody tr").count() == 6
    assert page.locator(f"{FEATURE} svg").is_visible()
    assert page.locator("form:visible").count() == 0
    opened.context.close()


def test_the_index_opens_the_report_at_its_best_feature(browser: Any, report: Path, tmp_path: Path) -> None:
    index = tmp_path / "index.html"
    assert main(["--index", str(report), "--output", str(index)]) == 0
    opened = Watched(browser, index)
    page = opened.open()
    page.locator("thead .sort").first.click()
    page.locator(".key").click()
    page.wait_for_function("document.querySelector('.found')?.id === 'feature-1-24-3'")
    opened.context.close()
    assert opened.complaints == []


def test_a_piece_of_a_character_names_the_character(watched: Watched) -> None:
    pieces = watched.open().locator(f"{FEATURE} .sentences [data-tip^='piece of']")
    assert pieces.count() > 5
    assert set(pieces.all_inner_texts()) == {"\u00b7"}
    assert "piece of \u201c\u201d" not in pieces.first.get_attribute("data-tip")


def test_a_sink_is_hatched_and_has_no_value(browser: Any, tmp_path: Path) -> None:
    inputs = write_report_inputs(tmp_path, n_sentences=24, sink_layers=(1,))
    output = tmp_path / "sinks.html"
    assert main([*inputs, "--output", str(output), "--top-n", "5"]) == 0
    opened = Watched(browser, output)
    page = opened.open()
    sinks = page.locator(f"{FEATURE} .sentences .sink")
    assert sinks.count() > 5
    assert "attention sink, left out" in sinks.first.get_attribute("data-tip")
    assert "gradient" in sinks.first.evaluate("element => getComputedStyle(element).backgroundImage")
    assert page.locator(f"{FEATURE} .sink.hot, #feature-0-8-3 .sink").count() == 0  # layer 0 has none
    opened.context.close()
    assert opened.complaints == []
