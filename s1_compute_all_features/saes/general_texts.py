"""General English text whose licence allows its use, out of Debian packages: novels, handbooks, games."""

import gzip
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from pipeline_common.errors import UserError
from s1_compute_all_features.saes.debian_packages import UnpackedPackage
from s1_compute_all_features.saes.prose import (
    clean_paragraphs,
    paragraphs_of_html,
    paragraphs_of_lines,
)
from s1_compute_all_features.saes.r_data import read_r_strings

R_LIBRARY = Path("usr/lib/R/site-library")
AUSTEN = (
    "emma",
    "mansfieldpark",
    "northangerabbey",
    "persuasion",
    "prideprejudice",
    "sensesensibility",
)
CAMPAIGNS = (
    "did", "dm", "dw", "ei", "httt", "l", "low", "nr",
    "sof", "sota", "sotbe", "thot", "trow", "tsg", "ttb", "utbs",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """One text to gather.

    Attributes:
        name: of the text file, without its suffix.
        title: of the work.
        packages: per package its names in several Debian releases, in order of preference.
        licence: of the text, as the package's copyright file states it.
        attribution: whom to name.
        read: takes an unpacked package and gives its paragraphs, clean.
    """

    name: str
    title: str
    packages: tuple[tuple[str, ...], ...]
    licence: str
    attribution: str
    read: Callable[[UnpackedPackage], list[str]]


def read_austen(package: UnpackedPackage) -> list[str]:
    """The paragraphs of the six novels."""
    data = package.root / R_LIBRARY / "janeaustenr" / "data" / "Rdata"
    lines = chain.from_iterable([*read_r_strings(data, novel), ""] for novel in AUSTEN)
    return clean_paragraphs(paragraphs_of_lines(lines))


def read_moby_dick(package: UnpackedPackage) -> list[str]:
    """The paragraphs of the novel, without what Project Gutenberg put around it.

    Raises:
        UserError: the marks of its beginning and end are not there.
    """
    data = package.root / R_LIBRARY / "tokenizers" / "data" / "Rdata"
    text = "\n".join(read_r_strings(data, "mobydick"))
    novel = re.search(r"\nCall me Ishmael\..*?(?=\n\W*End of (?:the )?Project Gutenberg)", text, re.DOTALL)
    if novel is None:
        raise UserError(f"{data}: mobydick is not the text that was expected; leave out moby_dick")
    return clean_paragraphs(paragraphs_of_lines(novel.group().splitlines()))


def read_web_pages(folder: str, pattern: str) -> Callable[[UnpackedPackage], list[str]]:
    """A reader of the prose on the HTML pages of a folder.

    Args:
        folder: in the package.
        pattern: of the pages' names.
    """

    def read(package: UnpackedPackage) -> list[str]:
        pages = sorted((package.root / folder).glob(pattern))
        return clean_paragraphs(
            chain.from_iterable(paragraphs_of_html(page.read_text(encoding="utf-8")) for page in pages)
        )

    return read


def read_jargon(package: UnpackedPackage) -> list[str]:
    """The paragraphs of the dictionary's entries, cross references as plain words."""
    with gzip.open(package.root / "usr/share/dictd/jargon.dict.dz", "rt", encoding="utf-8") as handle:
        text = handle.read()
    text = re.sub(r"\{\s*([^{}]*?)\s*\}", lambda found: " ".join(found[1].split()), text)
    # Entries' heads stand at the margin, their text is indented by four blanks.
    lines = (line if line.startswith("    ") else "" for line in text.splitlines())
    paragraphs = (re.sub(r"^\[[^\]]*\]\s*", "", paragraph) for paragraph in paragraphs_of_lines(lines))
    return clean_paragraphs(paragraphs)


def read_wesnoth(package: UnpackedPackage) -> list[str]:
    """What a campaign's persons say and its narrator tells, in the order of its files."""
    found: list[str] = []
    for path in sorted((package.root / "usr/share/games/wesnoth").rglob("*.cfg")):
        found += strings_of_wml(path.read_text(encoding="utf-8"))
    return clean_paragraphs(found)


def strings_of_wml(text: str) -> Iterator[str]:
    """The translatable strings of a file of Wesnoth's markup language, markup and joins resolved.

    >>> list(strings_of_wml('message= _ "He said " + _"<i>no</i>, and ""no"" again."'))
    ['He said no, and "no" again.']
    """
    text = re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)
    for joined in re.finditer(r'_\s*"(?:[^"]|"")*"(?:\s*\+\s*_?\s*"(?:[^"]|"")*")*', text):
        parts = re.findall(r'"((?:[^"]|"")*)"', joined.group())
        whole = re.sub(r"<[^<>]*>", "", "".join(parts).replace('""', '"'))
        yield from re.split(r"\n\s*\n", whole)


def read_endless_sky(package: UnpackedPackage) -> list[str]:
    """What the game tells: places, people met, conversations, mostly in the second person."""
    found: list[str] = []
    for path in sorted((package.root / "usr/share/games/endless-sky/data").rglob("*.txt")):
        found += strings_of_endless_sky(path.read_text(encoding="utf-8").splitlines())
    return clean_paragraphs(found)


_FILLED_IN = {"first": "Robin", "last": "Hale", "planet": "the planet", "system": "the system"}


def strings_of_endless_sky(lines: Iterable[str]) -> Iterator[str]:
    """The texts between backquotes, and dialogs, with names for the gaps that stand for them.

    Other gaps stay, such as ``<payment>``: the cleaning drops what holds one.

    >>> list(strings_of_endless_sky(['  choice', '    `Hello, <first>."`', '  dialog "It is late."']))
    ['Hello, Robin."', 'It is late.']
    """
    for line in lines:
        if line.lstrip().startswith("#"):
            continue
        text = re.search(r'`([^`]*)`|dialog "([^"]*)"', line)
        if text is not None:
            told = text[1] if text[1] is not None else text[2]
            yield re.sub(r"<(\w+)>", lambda gap: _FILLED_IN.get(gap[1], gap[0]), told)


SOURCES = (
    Source(
        name="jane_austen",
        title="Jane Austen: the six novels",
        packages=(("r-cran-janeaustenr",),),
        licence="public domain; the package's own work is MIT",
        attribution="Jane Austen; Project Gutenberg's texts, packaged by Julia Silge",
        read=read_austen,
    ),
    Source(
        name="moby_dick",
        title="Herman Melville: Moby Dick",
        packages=(("r-cran-tokenizers",),),
        licence="public domain; the package's own work is MIT",
        attribution="Herman Melville; Project Gutenberg's text, packaged by Lincoln Mullen and others",
        read=read_moby_dick,
    ),
    Source(
        name="wesnoth_campaigns",
        title="Battle for Wesnoth: what is told and said in its campaigns",
        packages=tuple((f"wesnoth-1.16-{name}", f"wesnoth-1.18-{name}") for name in CAMPAIGNS),
        licence="GPL-2.0-or-later",
        attribution="David White and the Battle for Wesnoth contributors",
        read=read_wesnoth,
    ),
    Source(
        name="endless_sky",
        title="Endless Sky: descriptions and conversations",
        packages=(("endless-sky-data",),),
        licence="GPL-3.0-or-later",
        attribution="Michael Zahniser and the Endless Sky contributors",
        read=read_endless_sky,
    ),
    Source(
        name="jargon_file",
        title="The Jargon File",
        packages=(("dict-jargon",),),
        licence="public domain",
        attribution="The Jargon File 4.4.7, edited by Eric S. Raymond",
        read=read_jargon,
    ),
    Source(
        name="debian_handbook",
        title="The Debian Administrator's Handbook",
        packages=(("debian-handbook",),),
        licence="GPL-2.0-or-later or CC-BY-SA-3.0",
        attribution="Raphaël Hertzog and Roland Mas",
        read=read_web_pages("usr/share/doc/debian-handbook/html/en-US", "*.html"),
    ),
    Source(
        name="debian_reference",
        title="Debian Reference",
        packages=(("debian-reference-en",),),
        licence="GPL-2.0-or-later",
        attribution="Osamu Aoki",
        read=read_web_pages("usr/share/debian-reference", "*.en.html"),
    ),
    Source(
        name="debian_developers_reference",
        title="Debian Developer's Reference",
        packages=(("developers-reference",),),
        licence="GPL-2.0-or-later",
        attribution="Christian Schwarz, Adam Di Carlo, Raphaël Hertzog, Andreas Barth, Lucas Nussbaum, "
        "Hideki Yamane, Holger Levsen",
        read=read_web_pages("usr/share/developers-reference", "*.html"),
    ),
    Source(
        name="debian_faq",
        title="The Debian GNU/Linux FAQ",
        packages=(("debian-faq",),),
        licence="the FAQ's own permission: copies and modified versions under the same notice",
        attribution="Software in the Public Interest, 1996-2003; the FAQ's authors",
        read=read_web_pages("usr/share/doc/debian/FAQ", "*.en.html"),
    ),
)
