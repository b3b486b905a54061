"""SAE configuration files: which model, which SAEs, read where. Also the script that builds such a file.

A configuration is one JSON file. Nothing else in the pipeline knows which model it runs.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline_common.command_line import HelpFormatter
from pipeline_common.errors import UserError, exit_codes
from pipeline_common.files import make_way, read_json, write_json
from s1_compute_all_features.feature_store import NEURONPEDIA_ID
from s1_compute_all_features.saes.sites import Site, site_of

FORMAT_VERSION: Literal[1] = 1
STAGE_FOLDER = Path(__file__).resolve().parent
GEMMA_SCOPE = STAGE_FOLDER / "gemma_scope_16k_configurations.json"
GPT2_SMALL = STAGE_FOLDER / "gpt2_small_configurations.json"

_HOOK_OF_BLOCK = re.compile(r"blocks\.(\d+)\.hook_resid_(?:pre|post)")


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

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
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
        weights_format: ``gemma_scope`` (PATH/params.npz), ``gemma_scope_2`` (PATH/params.safetensors and
            config.json), ``sae_lens`` (PATH/sae_weights.safetensors and cfg.json) or ``registry``
            (whatever ``SAE.from_pretrained`` converts).
        saes: the SAEs, in the order in which they are run; with none, a store holds hidden states alone.
    """

    format_version: Literal[1]
    description: str
    model: ModelEntry
    release: str
    repo_id: str
    sae_root: str = ""
    weights_format: Literal["gemma_scope", "gemma_scope_2", "sae_lens", "registry"]
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
        nearest_l0: of each layer keep the SAE whose published l0 is nearest to this, the sparser of two.
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
        best: dict[int, SaeEntry] = {}
        for sae in sorted(
            kept, key=lambda sae: (abs((sae.average_l0 or 0) - nearest_l0), sae.average_l0 or 0)
        ):
            best.setdefault(sae.layer, sae)
        kept = [sae for sae in kept if best[sae.layer] is sae]
    if configurations.saes and not kept and names != []:
        smallest = min((sae.average_l0 or 0 for sae in configurations.saes), default=0)
        raise UserError(
            f"no SAE of the configuration is left by --layers, --saes, --max-l0 or --l0; it has the layers "
            f"{sorted({sae.layer for sae in configurations.saes})} and l0 from {smallest} upwards"
        )
    return configurations.model_copy(update={"saes": tuple(kept)})


def build_from_registry(release: str, model_id: str, width: str | None) -> SaeConfigurations:
    """The configuration of a release, from sae-lens's registry.

    Args:
        release: e.g. ``gemma-scope-2b-pt-res``.
        model_id: Hugging Face id of the model that the SAEs belong to.
        width: e.g. ``16k`` keeps the ids with the part ``width_16k``; None keeps all.

    Returns:
        Residual-stream SAEs only, sorted by layer and l0. A Neuronpedia id is the release's own, or that
        of the SAE's canonical name in the ``-canonical`` release.

    Raises:
        UserError: unknown release, or nothing of that width.
    """
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    directory = get_pretrained_saes_directory()
    if release not in directory:
        raise UserError(
            f"release {release!r} is not in sae-lens's registry; see the pretrained SAEs in its documentation"
        )
    entry = directory[release]
    canonical = directory.get(f"{release}-canonical")
    canonical_pages = (
        {path: canonical.neuronpedia_id.get(sae_id) for sae_id, path in canonical.saes_map.items()}
        if canonical
        else {}
    )
    saes = []
    for sae_id, path in entry.saes_map.items():
        if width is not None and f"width_{width}" not in sae_id.split("/"):
            continue
        hook = _hook_of(release, sae_id, path)
        if not _HOOK_OF_BLOCK.fullmatch(hook):
            continue
        page = entry.neuronpedia_id.get(sae_id) or canonical_pages.get(path) or ""
        saes.append(_sae_entry(sae_id, path, hook, page, (entry.expected_l0 or {}).get(sae_id)))
    if not saes:
        raise UserError(
            f"release {release!r} has no residual-stream SAE" + (f" of width {width}" if width else "")
        )
    formats: dict[str | None, Literal["gemma_scope", "sae_lens"]] = {
        "gemma_2": "gemma_scope",
        None: "sae_lens",
    }
    model_arguments = (entry.config_overrides or {}).get("model_from_pretrained_kwargs", {})
    return SaeConfigurations(
        format_version=FORMAT_VERSION,
        description=f"{len(saes)} residual-stream SAEs of {release} for {model_id}",
        model=ModelEntry(id=model_id, center_residual=model_arguments.get("center_writing_weights", False)),
        release=release,
        repo_id=entry.repo_id,
        weights_format=formats.get(entry.conversion_func, "registry"),
        saes=tuple(sorted(saes, key=lambda sae: (sae.layer, sae.average_l0 or 0, sae.name))),
    )


def _hook_of(release: str, sae_id: str, path: str) -> str:
    """The hook from the id where it says so, from the SAE's own configuration (the hub) where not."""
    if _HOOK_OF_BLOCK.fullmatch(sae_id):
        return sae_id
    if path.startswith("embedding/"):
        return "hook_embed"
    if match := re.match(r"layer_(\d+)/width_", path):
        return f"blocks.{match[1]}.hook_resid_post"
    from sae_lens.loading.pretrained_sae_loaders import load_sae_config_from_huggingface

    configuration = load_sae_config_from_huggingface(release, sae_id)
    return str(configuration.get("metadata", {}).get("hook_name") or configuration.get("hook_name") or "")


def _sae_entry(sae_id: str, path: str, hook: str, page: str, expected_l0: float | None) -> SaeEntry:
    in_page = re.search(r"/(\d+)-", page)
    in_hook = _HOOK_OF_BLOCK.fullmatch(hook)
    assert in_hook is not None
    layer = int(in_page[1]) if in_page else int(in_hook[1])
    in_path = re.search(r"average_l0_(\d+)", path)
    average_l0 = int(in_path[1]) if in_path else round(expected_l0) if expected_l0 else None
    return SaeEntry(
        name=f"layer_{layer:02d}_l0_{average_l0}" if in_path else f"layer_{layer:02d}",
        layer=layer,
        average_l0=average_l0,
        hook=hook,
        sae_id=sae_id,
        path=path,
        neuronpedia_id=page,
    )


def configurations_as_json(configurations: SaeConfigurations) -> dict[str, Any]:
    """What is written to the file."""
    return json.loads(configurations.model_dump_json())


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        description="Build an SAE configuration file from sae-lens's registry of pretrained SAEs.\n\n"
        "  uv run python sae_configurations.py --release gemma-scope-2b-pt-res --width 16k \\\n"
        "      --model google/gemma-2-2b --output gemma_scope_16k_configurations.json",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--release", required=True, help="release name in sae-lens's registry")
    parser.add_argument("--model", required=True, help="Hugging Face id of the language model")
    parser.add_argument("--width", help="keep the SAEs of this width only, e.g. 16k")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return parser


@exit_codes
def main(argv: Sequence[str] | None = None) -> int:
    """Build a configuration file; exit code 0, or 1 with one line on stderr."""
    arguments = build_parser().parse_args(argv)
    make_way(arguments.output, arguments.overwrite, "configuration file")
    configurations = build_from_registry(arguments.release, arguments.model, arguments.width)
    write_json(arguments.output, configurations_as_json(configurations))
    pages = sum(bool(sae.neuronpedia_id) for sae in configurations.saes)
    print(f"{arguments.output}: {len(configurations.saes)} SAEs, {pages} with a Neuronpedia page")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
