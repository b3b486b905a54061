"""Running prose out of books, web pages and games: one paragraph per line, nothing but sentences."""

import re
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser

MIN_WORDS = 5
_PLAIN = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u00ad": None, "\ufeff": None}
)
"""Curled quotation marks to straight ones; soft hyphens and byte-order marks to nothing."""
_CODE = re.compile(
    r"[{}<>|\\=^~`]|https?:|\w/\w+/|\s--\w|\$\w|(?:^|\s)#|\*\*|::|\(\)|\w_\w|\.(?:deb|conf|txt)\b"
)
"""What stands in commands, paths, listings and markup, and not in prose."""
_ITEM_NUMBER = re.compile(r"^(?:\[\d+\]|\d+[.)])\s+")


def collapse(text: str) -> str:
    """The text on one line with single blanks and plain quotation marks.

    >>> collapse("  It  was “late”. ")
    'It was "late".'
    """
    return " ".join(text.translate(_PLAIN).split())


def is_prose(paragraph: str, whole_sentences: bool = True) -> bool:
    """Whether a paragraph is running text: no heading, listing, table or command.

    Args:
        paragraph: one line.
        whole_sentences: it must also end as a sentence does.

    >>> is_prose("She came in and sat down."), is_prose("apt-get install -y foo --quiet now")
    (True, False)
    """
    words = paragraph.split()
    if len(words) < MIN_WORDS or _CODE.search(paragraph):
        return False
    if whole_sentences and not re.search(r"[.!?][\"')]*$", paragraph):
        return False
    letters = sum(character.isalpha() or character == " " for character in paragraph)
    lower = sum(character.islower() for character in paragraph)
    return letters >= 0.85 * len(paragraph) and lower >= 0.6 * letters


def clean_paragraphs(paragraphs: Iterable[str], whole_sentences: bool = True) -> list[str]:
    """The paragraphs that are prose, each on one line and each once, in their order.

    Args:
        paragraphs: as their source has them, with line breaks and ornaments.
        whole_sentences: see `is_prose`.
    """
    kept: dict[str, None] = {}
    for paragraph in paragraphs:
        # Underscores around a word are the plain-text way of writing italics.
        line = _ITEM_NUMBER.sub("", collapse(re.sub(r"\b_|_\b", "", paragraph)))
        if is_prose(line, whole_sentences):
            kept[line] = None
    return list(kept)


def paragraphs_of_lines(lines: Iterable[str]) -> Iterator[str]:
    """Paragraphs of a plain text, which blank lines set apart."""
    current: list[str] = []
    for line in lines:
        if line.strip():
            current.append(line.strip())
        elif current:
            yield " ".join(current)
            current = []
    if current:
        yield " ".join(current)


class _Paragraphs(HTMLParser):
    """Collects the text of ``<p>`` and ``<div class="para">``, leaving out what is in listings and tables."""

    SKIPPED = frozenset({"pre", "table", "script", "style", "nav", "head", "h1", "h2", "h3", "h4", "footer"})
    WITHOUT_END = frozenset({"br", "hr", "img", "meta", "link", "input", "col", "area", "base", "wbr"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self.open: list[tuple[str, bool]] = []
        self.skipped = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.WITHOUT_END:
            self.handle_data(" ")
            return
        starts = tag == "p" or (tag == "div" and "para" in (dict(attrs).get("class") or "").split())
        self.skipped += tag in self.SKIPPED
        self.open.append((tag, starts))
        if starts:
            self.found.append("")

    def handle_endtag(self, tag: str) -> None:
        while self.open and tag in (name for name, _ in self.open):
            name, starts = self.open.pop()
            self.skipped -= name in self.SKIPPED
            if starts:
                self.found.append("")
            if name == tag:
                break

    def handle_data(self, data: str) -> None:
        if self.found and not self.skipped and any(starts for _, starts in self.open):
            self.found[-1] += data


def paragraphs_of_html(page: str) -> list[str]:
    """The text paragraphs of a web page, without its listings, tables, headings and menus."""
    parser = _Paragraphs()
    parser.feed(page)
    return [paragraph for paragraph in parser.found if paragraph.strip()]
