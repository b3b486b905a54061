"""What the documents say of the project's shape is so: its layout, its modules, who imports whom."""

import re
import subprocess

import pytest

from tests.docs.markdown_commands import FENCE, documents
from tests.source_rules import READERS, ROOT, imports_of, modules_of_the_project

MODULE_TABLES = [
    path for path in documents() if re.search(r"^## Modules$", path.read_text(encoding="utf-8"), re.MULTILINE)
]


def section(document: str, title: str) -> str:
    """The text under a heading, up to the next one of its kind."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"{document} has no section {title}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of a Markdown table, its two header lines left out."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def test_the_layout_in_the_readme_is_the_tree():
    block = FENCE.search(section("README.md", "Layout"))
    assert block
    shown = {re.split(r"  +", line)[0] for line in block[2].splitlines()}
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    paths = [name.split("/") for name in tracked.split("\0") if name and not name.startswith(".")]
    folders = {f"{parts[0]}/" for parts in paths if len(parts) > 1}
    programs = {parts[0] for parts in paths if len(parts) == 1 and parts[0].endswith(".py")}
    assert shown == folders | programs


def test_the_readme_has_a_row_for_every_stage():
    stages = [cells[0].strip("`") for cells in rows(section("README.md", "The six stages"))]
    assert stages == sorted(path.name for path in ROOT.glob("s[0-5]_*"))


@pytest.mark.parametrize("document", MODULE_TABLES, ids=lambda path: path.parent.name)
def test_a_table_of_modules_names_them_all(document):
    table = rows(section(str(document.relative_to(ROOT)), "Modules"))
    listed = [name for cells in table for name in re.findall(r"[\w/]+\.py", cells[0])]
    files = [path.name for path in document.parent.glob("*.py") if path.name != "__init__.py"]
    assert sorted(listed) == sorted(files)


def test_the_table_of_formats_is_the_import_rule_and_what_the_code_does():
    table = {
        cells[1].strip("`").removesuffix(".py").replace("/", "."): set(cells[2].split(", "))
        for cells in rows(section("CONTRIBUTING.md", "Architecture"))
    }
    allowed: dict[str, set[str]] = {}
    for reader, owners in READERS.items():
        for owner in owners:
            allowed.setdefault(owner, set()).add(short(reader))
    assert table == allowed
    importing: dict[str, set[str]] = {owner: set() for owner in table}
    for module, source in modules_of_the_project().items():
        for found in imports_of(source):
            for owner in table:
                if found.reaches({owner}) and short(module) != short(owner):
                    importing[owner].add(short(module))
    assert table == importing


def short(module: str) -> str:
    """``s3`` for a module of that stage, the name itself otherwise."""
    return re.sub(r"^(s\d)_.*", r"\1", module.split(".")[0])
