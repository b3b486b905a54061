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
BETWEEN = re.compile(
    r"(<!-- begin: update_registry_table.py -->\n).*?(<!-- end: update_registry_table.py -->\n)", re.DOTALL
)


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    return argparse.ArgumentParser(
        description="Put the table of sae-lens's registry, by loader, into REGISTRY.md.\n\n"
        "  uv run python docs/update_registry_table.py",
        formatter_class=HelpFormatter,
    )


@exit_codes
def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite the table; exit code 0, or 1 where the document has no place for it."""
    build_parser().parse_args(argv)
    from s1_compute_all_features.saes.registry_listing import table_of_loaders

    text = DOCUMENT.read_text(encoding="utf-8")
    replaced, n_places = BETWEEN.subn(lambda match: match[1] + table_of_loaders() + match[2], text)
    if n_places != 1:
        raise UserError(f"{DOCUMENT}: {n_places} places for the table, expected one between the markers")
    write_text(DOCUMENT, replaced)
    print(f"{DOCUMENT.relative_to(ROOT)}: table of the registry")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
