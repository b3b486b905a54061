"""Whether a model's files hold all of its weights: what they lack would be random, without a word.

Everything here goes by what transformers says of a loading (``output_loading_info``).
"""

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline_common.errors import UserError

logger = logging.getLogger(__name__)

_MOST_NAMED = 3
_NOT_READ = "pooler"
"""A module behind the blocks that many checkpoints lack, and whose output nobody reads."""
_WRAPPERS = {
    "base_model.model.": "PEFT puts it there; save the merged model (merge_and_unload)",
    "_orig_mod.": "torch.compile puts it there; save the model that was compiled",
    "_fsdp_wrapped_module.": "FSDP puts it there; save the model that was wrapped",
    "_checkpoint_wrapped_module.": "activation checkpointing puts it there; save the model that was wrapped",
    "module.": "DataParallel puts it there; save the model that was wrapped",
}
"""What other programs put into the names of weights, and what to do about each."""


@dataclass(frozen=True)
class LoadingReport:
    """What transformers found when it loaded a model.

    Attributes:
        missing: weights of the model that its files lack, in the model's order; tied ones are not among them.
        unexpected: weights of the files that the model has no place for, by the files' names.
        mismatched: name, shape in the files and shape in the model of weights that do not fit.
    """

    missing: Sequence[str]
    unexpected: Sequence[str]
    mismatched: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]]


def load_with_report(auto_class: Any, source: str, **options: Any) -> tuple[Any, LoadingReport]:
    """Load a model by one of transformers' auto classes, and tell what was not in its files.

    Args:
        auto_class: such as ``AutoModel``.
        source: folder or hub id.
        options: further arguments of ``from_pretrained``.
    """
    with _without_table():
        model, told = auto_class.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False, **options
        )
    missing = set(told["missing_keys"])
    shapes = [
        (name, tuple(in_files), tuple(in_model)) for name, in_files, in_model in told["mismatched_keys"]
    ]
    return model, LoadingReport(
        missing=[name for name in model.state_dict() if name in missing],
        unexpected=sorted(told["unexpected_keys"]),
        mismatched=sorted(shapes),
    )


@contextmanager
def _without_table() -> Iterator[None]:
    """Keep back transformers' table of what it could not load, which `check_whole` says in a line.

    Its table of failed conversions is shown: the error that it raises then points to it.
    """
    log = logging.getLogger("transformers.modeling_utils")

    def is_wanted(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return "LOAD REPORT" not in text or "CONVERSION" in text

    log.addFilter(is_wanted)
    try:
        yield
    finally:
        log.removeFilter(is_wanted)


def check_whole(what: str, model: Any, report: LoadingReport, read: Sequence[Any] = ()) -> None:
    """Make sure that every weight that is read came from the model's files.

    Args:
        what: the model, for the message.
        model: as it was loaded.
        report: of the loading.
        read: modules of the model whose weights are read; without any, all but a pooler's are.

    Raises:
        UserError: one is missing, or has another shape; the message names it.
    """
    own = {id(module): name for name, module in model.named_modules()}
    places = tuple(f"{own[id(module)]}." for module in read if module is not model)

    def is_read(name: str) -> bool:
        return (not places or name.startswith(places)) and _NOT_READ not in name.split(".")

    mismatched = [entry for entry in report.mismatched if is_read(entry[0])]
    if mismatched:
        shown = [
            f"{name} {list(in_files)} instead of {list(in_model)}" for name, in_files, in_model in mismatched
        ]
        raise UserError(
            f"{what}: its files hold weights of other shapes than its config.json asks for: {_some(shown)}; "
            "give it the config.json that belongs to these weights"
        )
    missing = [name for name in report.missing if is_read(name)]
    if missing:
        n_read = sum(is_read(name) for name in model.state_dict())
        raise UserError(
            f"{what}: {len(missing)} of {n_read} weights are not in its files and would be random: "
            f"{_some(missing)}; {_remedy(missing, report.unexpected, str(model.base_model_prefix))}"
        )


def _remedy(missing: Sequence[str], unexpected: Sequence[str], base: str) -> str:
    again = "fetch or save the model again, whole, with the config.json that belongs to it"
    extra, how = _extra_part(set(missing), unexpected, base)
    if extra:
        return f'the names of its weights carry "{extra}", which the model does not know: {how}'
    # A head that was not asked for is no surprise; it has no numbered parts, as blocks have.
    others = [key for key in unexpected if any(part.isdigit() for part in key.split("."))]
    if others:
        return f"there are others, which the model has no place for ({_some(others)}); {again}"
    return again


def _extra_part(missing: Collection[str], unexpected: Sequence[str], base: str) -> tuple[str, str]:
    """What stands too much in the names of a checkpoint, and what to do about it; empty where nothing does.

    A file may name a weight with or without the name of the base model in front.
    """
    for wrapper, how in _WRAPPERS.items():
        if any(f".{wrapper}" in f".{key}" for key in unexpected):
            return wrapper, how
    found: Counter[str] = Counter()
    for key in unexpected:
        parts = key.split(".")
        end = next((n for n in range(1, len(parts)) if ".".join(parts[n:]) in missing), None)
        if end is not None:
            found[".".join([*parts[:end], ""])] += 1
    if not found:
        return "", ""
    prefix = found.most_common(1)[0][0]
    return prefix.removesuffix(f"{base}.") or prefix, "save the model without it"


def check_blocks(what: str, unexpected: Sequence[str], base: Any, blocks: Any) -> None:
    """Make sure that nothing of the blocks was left out: such a model computes something else.

    Blocks behind the last one of config.json change nothing in those before, so they are only told.

    Args:
        what: the model, for the message.
        unexpected: weights of the files that the model has no place for.
        base: the model without its head.
        blocks: its transformer blocks.

    Raises:
        UserError: the files hold weights for a block that the block has no place for.
    """
    path = next(name for name, module in base.named_modules() if module is blocks)
    inside = re.compile(rf"(?:^|\.){re.escape(path)}\.(\d+)\.(.+)\.(weight|bias)$")
    left_out, behind = [], []
    for key in unexpected:
        match = inside.search(key)
        if match is None:
            continue
        if int(match[1]) >= len(blocks):
            behind.append(key)
        elif not _is_mask(blocks[int(match[1])], match[2], match[3]):
            left_out.append(key)
    if left_out:
        raise UserError(
            f"{what}: its files hold weights that its config.json has no place for: {_some(left_out)}; give "
            "it the config.json that belongs to these weights, or merge an adapter into the model"
        )
    if behind:
        logger.warning(
            "warning: %s: its files hold more than the %d blocks that its config.json names (%s); the others "
            "are left out",
            what,
            len(blocks),
            _some(behind),
        )


def _is_mask(block: Any, module: str, leaf: str) -> bool:
    """Whether a name is that of a causal mask, which old checkpoints hold as the bias of the attention."""
    known = dict(block.named_modules())
    return leaf == "bias" and module in known and any(True for _ in known[module].children())


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
