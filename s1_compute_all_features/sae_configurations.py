"""SAE configuration files: which model, which SAEs, read where. Also the script that builds such a file.

A configuration is one JSON file. Nothing else in the pipeline knows which model it runs.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline_common.command_line import HelpFormatter, configure_logging, index_ranges
from pipeline_common.errors import UserError, exit_codes
from pipeline_common.files import make_way, read_json, write_json
from s1_compute_all_features.feature_store import NEURONPEDIA_ID
from s1_compute_all_features.saes.registry_entries import L0_WORDS
from s1_compute_all_features.saes.registry_names import l0_or_word
from s1_compute_all_features.saes.sites import Site, site_of

logger = logging.getLogger(__name__)

FORMAT_VERSION: Literal[1] = 1
WeightsFormat = Literal["gemma_scope", "gemma_scope_2", "sae_lens", "registry"]
STAGE_FOLDER = Path(__file__).resolve().parent
GEMMA_SCOPE = STAGE_FOLDER / "gemma_scope_16k_configurations.json"
GPT2_SMALL = STAGE_FOLDER / "gpt2_small_configurations.json"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelEntry(_Strict):
    """The language model whose hidden states the SAEs read.

    Attributes:
        id: a Hugging Face model id, or a folder relative to the configuration file.
        revision: branch, tag or commit of a hub model; None for its default branch.
        prepend_bos: whether the SAEs were trained with a BOS token in front of the text.
        center_residual: the SAEs were trained on a model whose writing weights were centred
            (TransformerLens' ``center_writing_weights``): the mean over d_model is subtracted from
            the residual stream before encoding.
        weights: how the weights were stored, where that is not full precision, e.g.
            ``Q4_1, dequantised``.
    """

    id: str
    revision: str | None = None
    prepend_bos: bool = True
    center_residual: bool = False
    weights: str = ""

    @model_validator(mode="before")
    @classmethod
    def _without_an_old_key(cls, content: Any) -> Any:
        """Files of before have a key that marked a toy model, which is gone."""
        if isinstance(content, dict):
            content = {key: value for key, value in content.items() if key != "demonstration"}
        return content


class SaeEntry(_Strict):
    """One SAE.

    Attributes:
        name: unique, used in file names.
        layer: the layer its publisher counts it to.
        average_l0: published mean number of active latents per token, rounded; None where unknown.
        hook: the site that it reads, as `site_of` takes it, e.g. ``blocks.5.hook_resid_post``.
        sae_id: its id within the sae-lens release.
        path: its folder in the repository, or below ``--sae-root``; never one outside.
        neuronpedia_id: empty where Neuronpedia has no page.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    layer: int = Field(ge=0)
    average_l0: int | None = Field(ge=0)
    hook: str
    sae_id: str
    path: str
    neuronpedia_id: str = Field(pattern=f"^({NEURONPEDIA_ID})$")

    @field_validator("path")
    @classmethod
    def _stays_below(cls, path: str) -> str:
        for kind in (PurePosixPath(path), PureWindowsPath(path)):
            if kind.is_absolute() or kind.drive or ".." in kind.parts:
                raise ValueError(
                    f"{path!r} leaves the repository or the SAE folder; write it without / and .."
                )
        return path

    @field_validator("name")
    @classmethod
    def _is_no_number(cls, name: str) -> str:
        if name.isdigit():
            raise ValueError(f"{name!r} is a number; begin the name with a letter, e.g. layer_{name}")
        return name

    @field_validator("hook")
    @classmethod
    def _names_a_site(cls, hook: str) -> str:
        return site_of(hook).hook

    @property
    def site(self) -> Site:
        """The place in the model that it reads."""
        return site_of(self.hook)


class SaeConfigurations(_Strict):
    """The content of a configuration file.

    Attributes:
        format_version: of the file's format.
        description: one line for people.
        model: the language model.
        release: sae-lens release; empty for SAEs from a folder.
        repo_id: Hugging Face repository of the weights; empty for SAEs from a folder.
        sae_root: folder of the weights, relative to the configuration file; empty for the hub.
        weights_format: ``gemma_scope`` (PATH/params.npz), ``gemma_scope_2`` (PATH/params.safetensors with
            lower-case names, and config.json), ``sae_lens`` (PATH/cfg.json and sae_weights.safetensors) or
            ``registry`` (whatever ``SAE.from_pretrained`` converts).
        saes: the SAEs, in the order in which they are run; with none, a store holds hidden states alone.
    """

    format_version: Literal[1]
    description: str
    model: ModelEntry
    release: str
    repo_id: str
    sae_root: str = ""
    weights_format: WeightsFormat
    saes: tuple[SaeEntry, ...]

    @model_validator(mode="after")
    def _names_are_unique(self) -> "SaeConfigurations":
        names = [sae.name for sae in self.saes]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"two SAEs have the same name {twice[0]!r}")
        return self


def read_sae_configurations(path: Path) -> SaeConfigurations:
    """Read and check a configuration file.

    Raises:
        UserError: missing, not JSON, an unknown or missing key, or a value out of range; the message
            names the key.
    """
    content = read_json(path, "SAE configuration file")
    try:
        return SaeConfigurations.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file as a whole"
        problem = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
        raise UserError(f"{path}: {key}: {problem}; compare with {GPT2_SMALL.name}") from None


def select_saes(
    configurations: SaeConfigurations,
    layers: Sequence[int] | None = None,
    max_l0: int | None = None,
    nearest_l0: int | None = None,
    names: Sequence[str] | None = None,
) -> SaeConfigurations:
    """Part of a configuration.

    Args:
        configurations: the whole.
        layers: keep the SAEs of these layers.
        max_l0: keep the SAEs whose published l0 is at most this.
        nearest_l0: of each layer and site keep the SAE whose published l0 is nearest to this, the sparser
            of two; SAEs of that same l0 are all kept, those without a published one never.
        names: keep these SAEs; with an empty list none is left, and that is no error.

    Raises:
        UserError: no SAE of a configuration that has some is left, or there is none of a name.
    """
    kept = [sae for sae in configurations.saes if layers is None or sae.layer in layers]
    if names is not None:
        unknown = sorted(set(names) - {sae.name for sae in configurations.saes})
        if unknown:
            names_there = [sae.name for sae in configurations.saes[:1]]
            raise UserError(
                f"--saes: the configuration has no SAE {unknown[0]}; "
                + (f"its names are such as {names_there[0]}" if names_there else "it has none at all")
            )
        kept = [sae for sae in kept if sae.name in names]
    if max_l0 is not None:
        kept = [sae for sae in kept if sae.average_l0 is not None and sae.average_l0 <= max_l0]
    if nearest_l0 is not None:
        best: dict[tuple[int, str], tuple[int, int]] = {}
        for sae in kept:
            if sae.average_l0 is not None:
                distance = (abs(sae.average_l0 - nearest_l0), sae.average_l0)
                best[sae.layer, sae.hook] = min(distance, best.get((sae.layer, sae.hook), distance))
        nearest = {(*place, l0) for place, (_, l0) in best.items()}
        kept = [sae for sae in kept if (sae.layer, sae.hook, sae.average_l0) in nearest]
    if configurations.saes and not kept and names != []:
        known = [sae.average_l0 for sae in configurations.saes if sae.average_l0 is not None]
        raise UserError(
            f"no SAE of the configuration is left by --layers, --saes, --max-l0 or --l0; it has the layers "
            f"{sorted({sae.layer for sae in configurations.saes})} and "
            + (f"l0 from {min(known)} upwards" if known else "no published l0")
        )
    return configurations.model_copy(update={"saes": tuple(kept)})


def configurations_as_json(configurations: SaeConfigurations) -> dict[str, Any]:
    """What is written to the file."""
    return json.loads(configurations.model_dump_json())


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        description="Build an SAE configuration file from sae-lens's registry of pretrained SAEs.\n\n"
        "  uv run python sae_configurations.py --list-releases --model google/gemma-2-2b\n"
        "  uv run python sae_configurations.py --release gemma-scope-2b-pt-res --width 16k \\\n"
        "      --output gemma_scope_16k_configurations.json",
        formatter_class=HelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--release", help="release name in sae-lens's registry")
    what.add_argument("--list-releases", action="store_true", help="print the registry's releases and end")
    parser.add_argument(
        "--model",
        metavar="ID",
        help="Hugging Face id of the language model, instead of the registry's; with --list-releases, list "
        "the releases for this model",
    )
    parser.add_argument(
        "--layers", type=index_ranges, metavar="5,12-15", help="keep the SAEs of these layers only"
    )
    parser.add_argument("--width", help="keep the SAEs of this width only, as their ids write it, e.g. 16k")
    parser.add_argument(
        "--l0",
        type=l0_or_word,
        metavar="WORD|N",
        help=f"keep the SAEs of this sparsity: {', '.join(L0_WORDS)} (Gemma Scope 2's words), or a number, "
        "the nearest published l0 of each layer, site and width",
    )
    parser.add_argument("--ids", metavar="GLOB", help="keep the SAEs whose id matches, e.g. '*_affine'")
    parser.add_argument("--output", type=Path, help="the JSON file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return parser


def _check_usage(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.list_releases:
        for name in ("layers", "width", "l0", "ids", "output", "overwrite"):
            if getattr(arguments, name):
                parser.error(f"--list-releases goes with --model alone; leave out --{name}")
    elif arguments.output is None:
        parser.error("--release needs --output, the file to write")


@exit_codes
def main(argv: Sequence[str] | None = None) -> int:
    """Build a configuration file, or list releases; exit code 0, or 1 with one line on stderr."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    _check_usage(parser, arguments)
    if not arguments.list_releases:
        make_way(arguments.output, arguments.overwrite, "configuration file")
    configure_logging("s1_compute_all_features")
    logger.info("reading sae-lens's registry ...")
    if arguments.list_releases:
        from s1_compute_all_features.saes.registry_listing import list_releases

        print(list_releases(arguments.model))
        return 0
    from huggingface_hub.utils import logging as hub_logging

    from s1_compute_all_features.saes.registry import Selection, build_from_registry

    hub_logging.set_verbosity_error()  # it tells of every try; how it ended is told here, in one line
    selection = Selection(arguments.layers, arguments.width, arguments.l0, arguments.ids)
    built = build_from_registry(arguments.release, selection, arguments.model)
    for note in built.notes:
        logger.warning("note: %s", note)
    for reason, ids in built.left_out.items():
        shown = ", ".join(ids[:3]) + (" and more" if len(ids) > 3 else "")
        logger.warning("left out: %d SAEs (%s): %s", len(ids), shown, reason)
    write_json(arguments.output, configurations_as_json(built.configurations))
    pages = sum(bool(sae.neuronpedia_id) for sae in built.configurations.saes)
    print(f"{arguments.output}: {built.configurations.description}, {pages} with a Neuronpedia page")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
