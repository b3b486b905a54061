"""A folder of training texts: one text file per source, and ``sources.json``, which says what they are."""

import hashlib
import logging
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline_common.errors import UserError
from pipeline_common.files import check_way, read_json, sha256_of_file, write_json, write_text
from s0_dataset_generation.labelled_sentences import read_labelled_sentences
from s1_compute_all_features.saes.debian_packages import check_tools, fetch_package
from s1_compute_all_features.saes.general_texts import Source
from s1_compute_all_features.saes.overlap import OverlapFilter

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
SOURCES_FILE = "sources.json"


class TextCollection:
    """The training texts of one folder, none of which repeats a sentence of the data sets.

    Attributes:
        folder: of the texts.
        overlap: what is left out.
        records: per source what ``sources.json`` says about it, by name.
    """

    def __init__(self, folder: Path, datasets: Sequence[Path], overwrite: bool) -> None:
        """Open the folder, or make it.

        Args:
            folder: of the texts.
            datasets: labelled CSVs whose sentences must not be in the texts.
            overwrite: forget what is there; without it, texts that are there and unchanged are kept.

        Raises:
            UserError: a data set cannot be read, or the folder holds something else.
        """
        check_way(folder, True, "training texts", SOURCES_FILE)
        self.folder = folder
        self.overlap = OverlapFilter(
            [text for path in datasets for text in read_labelled_sentences(path).sentences]
        )
        self.compared_with = {path.name: sha256_of_file(path) for path in sorted(datasets)}
        self.records: dict[str, dict[str, Any]] = {}
        if not overwrite and (folder / SOURCES_FILE).exists():
            before = read_json(folder / SOURCES_FILE, "record of training texts")
            self._keep(before)
        self._save()

    def _keep(self, before: dict[str, Any]) -> None:
        """Take over the records of texts that are as they were, unless the data sets have changed.

        Raises:
            UserError: the record is of another version.
        """
        if before.get("format_version") != FORMAT_VERSION:
            raise UserError(
                f"{self.folder / SOURCES_FILE}: format version {before.get('format_version')}; this code "
                f"reads {FORMAT_VERSION}; add --overwrite or choose another --output"
            )
        if before["compared_with"] != self.compared_with:
            logger.info("the data sets have changed: every text is gathered again")
            return
        for record in before["sources"]:
            path = self.path_of(record["name"])
            if path.exists() and sha256_of_file(path) == record["text_sha256"]:
                self.records[record["name"]] = record

    def path_of(self, name: str) -> Path:
        """The text file of a source."""
        return self.folder / f"{name}.txt"

    def without_repeats(self, paragraphs: Sequence[str]) -> list[str]:
        """The paragraphs that repeat no sentence of the data sets."""
        repeated = self.overlap.repeated(paragraphs)
        return [paragraph for index, paragraph in enumerate(paragraphs) if index not in repeated]

    def write(self, name: str, paragraphs: Iterable[str], record: dict[str, Any]) -> dict[str, Any]:
        """Write a source's text, one paragraph a line, and what is known about it.

        Args:
            name: of the source.
            paragraphs: clean, each on one line.
            record: title, packages, licence, attribution, and whatever else there is to say.

        Returns:
            The record with the text's checksum and size.
        """
        text = "".join(f"{paragraph}\n" for paragraph in paragraphs)
        write_text(self.path_of(name), text)
        self.records[name] = {
            "name": name,
            **record,
            "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "n_paragraphs": text.count("\n"),
            "n_words": len(text.split()),
            "n_characters": len(text),
        }
        self._save()
        return self.records[name]

    def _save(self) -> None:
        write_json(
            self.folder / SOURCES_FILE,
            {
                "format_version": FORMAT_VERSION,
                "compared_with": self.compared_with,
                "sources": [self.records[name] for name in sorted(self.records)],
            },
        )


def gather(sources: Sequence[Source], collection: TextCollection) -> None:
    """Fetch, clean and write the sources that the collection does not hold yet.

    Raises:
        UserError: a package cannot be fetched or read.
    """
    missing = [source for source in sources if source.name not in collection.records]
    if missing:
        check_tools()
    for number, source in enumerate(missing, 1):
        logger.info("source %d of %d: %s", number, len(missing), source.title)
        with tempfile.TemporaryDirectory(prefix="gather_texts_") as name:
            versions: dict[str, str] = {}
            paragraphs: list[str] = []
            for names in source.packages:
                package = fetch_package(names, Path(name))
                versions[package.name] = package.version
                paragraphs += source.read(package)
        paragraphs = list(dict.fromkeys(paragraphs))
        kept = collection.without_repeats(paragraphs)
        record = collection.write(
            source.name,
            kept,
            {
                "title": source.title,
                "packages": versions,
                "licence": source.licence,
                "attribution": source.attribution,
                "n_paragraphs_left_out": len(paragraphs) - len(kept),
            },
        )
        logger.info(
            "  %d words; %d paragraphs left out that repeat a labelled sentence",
            record["n_words"],
            record["n_paragraphs_left_out"],
        )
