"""From content to one HTML file, and back to the overview that an index needs."""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pipeline_common.errors import UserError
from pipeline_common.json_shape import NATURAL, JsonFormat
from s3_feature_activation_graphs.report_verdict import interval, number

TEMPLATES = Path(__file__).resolve().parent / "templates"

_NUMBER = (None, float)
FORMAT = JsonFormat(
    "feature_report",
    1,
    "report",
    {
        **dict.fromkeys(("trait", "model", "best", "anchor"), str),
        **dict.fromkeys(("n_sentences", "n_features", "n_passing"), NATURAL),
        **dict.fromkeys(("n_discoveries", "n_tested"), (None, NATURAL)),
        **dict.fromkeys(("optimism", "held_out_auroc", "low", "high", "bag_of_words"), _NUMBER),
        "verdict": (None, str),
    },
    "make it with build_report.py",
)
_OVERVIEW = re.compile(r'<script type="application/json" id="overview">(.*?)</script>', re.DOTALL)


def render(template: str, content: dict[str, Any]) -> str:
    """A page, complete in itself: style and script stand in it, and its policy forbids it to load anything.

    Args:
        template: a file of `TEMPLATES`.
        content: its variables; every text is escaped, JSON for scripts too.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "grouped": lambda value: f"{value:,}"}
    environment.globals["interval"] = interval
    # Compact; the filter tojson itself escapes what could end the script element.
    environment.policies["json.dumps_kwargs"] = {
        "ensure_ascii": False,
        "allow_nan": False,
        "separators": (",", ":"),
    }
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        **content,
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'",
        format_name=FORMAT.name,
        format_version=FORMAT.version,
    )


def read_overview(path: Path) -> dict[str, Any]:
    """What a report says of itself for an index.

    Raises:
        UserError: the file is missing, is no report, or one of another format version.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a report made by build_report.py") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a report: {error}") from None
    match = _OVERVIEW.search(text)
    try:
        overview: Any = json.loads(match[1]) if match else None
    except (ValueError, RecursionError):
        overview = None
    return FORMAT.check(path, overview)
