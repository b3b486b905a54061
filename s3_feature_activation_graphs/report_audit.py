"""What stage 0's audit found wrong with the sentences that the report's numbers rest on."""

from pathlib import Path

from pipeline_common.errors import UserError
from pipeline_common.files import read_json
from pipeline_common.json_shape import check_shape
from s1_compute_all_features.feature_store import FeatureStore

_SHAPE = {"input_sha256": str, "broken_limits": [str]}
_REMEDY = "run audit_dataset.py on the sentences of the store"


def read_broken_limits(path: Path, store: FeatureStore) -> list[str]:
    """The limits that the sentences break, in words; empty where they break none.

    Args:
        path: the JSON that audit_dataset.py wrote.
        store: made from the sentences that were audited.

    Raises:
        UserError: no such file, no audit, or that of other sentences.
    """
    audit = read_json(path, "audit of labelled sentences")
    check_shape(path, audit, _SHAPE, _REMEDY)
    if audit["input_sha256"] != store.manifest["input"].get("sha256"):
        raise UserError(f"{path}: an audit of other sentences than those of {store.path}; {_REMEDY}")
    limits: list[str] = audit["broken_limits"]
    return limits
