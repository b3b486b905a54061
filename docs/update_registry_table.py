"""Put what sae-lens's registry holds into REGISTRY.md of stage 1, after an update of sae-lens."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline_common.command_line import HelpFormatter
from pipeline_common.errors import UserError, exit_codes
from pipeline_common.files import write_text

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "s1_compute_all_features" / "REGISTRY.md"
TABLES = ("loaders", "releases")


def between(table: str) -> re.Pattern[str]:
    """What finds one of `TABLES` in the document, with its two markers as groups."""
    marker = f"update_registry_table.py, {table} -->\\n"
    return re.compile(f"(<!-- begin: {marker}).*?(<!-- end: {marker})", re.DOTALL)


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    return argparse.ArgumentParser(
        description="Put the tables of sae-lens's registry, by loader and by release, into REGISTRY.md.\n\n"
        "  uv run python docs/update_registry_table.py",
        formatter_class=HelpFormatter,
    )


@exit_codes
def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite the tables; exit code 0, or 1 where the document has no place for one."""
    build_parser().parse_args(argv)
    text = DOCUMENT.read_text(encoding="utf-8")
    for table in TABLES:
        found = between(table).findall(text)
        if len(found) != 1:
            raise UserError(f"{DOCUMENT}: {len(found)} places for the {table}, expected one by its markers")
        begin, end = found[0]
        before, after = text.split(begin)[0], text.split(end)[1]
        text = before + begin + content_of(table) + end + after
    write_text(DOCUMENT, text)
    print(f"{DOCUMENT.relative_to(ROOT)}: tables of the registry")
    return 0


def content_of(table: str) -> str:
    """What stands between the markers of one of `TABLES`."""
    from s1_compute_all_features.saes.registry_listing import table_of_loaders, table_of_releases

    if table == "loaders":
        return table_of_loaders()
    return f"<details><summary>The same by release</summary>\n\n{table_of_releases()}\n</details>\n"


if __name__ == "__main__":
    raise SystemExit(main())
