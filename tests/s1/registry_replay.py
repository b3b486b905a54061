"""Stands in for the hub: small configuration files of the registry's loaders, filled in for each SAE."""

import json
import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import LocalEntryNotFoundError
from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

SAMPLES = Path(__file__).parent / "registry_samples"
CACHED = frozenset({"gemma_3", "dictionary_learning_1", "connor_rob_hook_z"})
"""Loaders whose files are read where the local cache holds them, beside what is known without."""

LETTERS = {"R": "hook_resid_post", "A": "hook_attn_out", "M": "hook_mlp_out"}
WITHOUT_BOS = "pythia-70m-deduped-"
FROM_SAE_LENS_6 = "matryoshka"


class Replay:
    """Answers for the hub, and counts.

    Attributes:
        folder: where the filled-in files are written.
        cached: loaders whose files the local cache holds; those of the others are asked for.
        asked: (repository, file) of every request.
        changed: (repository, file) to a content that takes the place of the sample's.
    """

    def __init__(self, folder: Path, cached: frozenset[str] = CACHED) -> None:
        self.folder = folder
        self.cached = cached
        self.asked: list[tuple[str, str]] = []
        self.changed: dict[tuple[str, str], str] = {}
        self.files = files_of_the_registry()

    def install(self, monkeypatch) -> None:
        """Put it in the place of huggingface_hub's functions, for this project and for sae-lens."""
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", self._from_cache)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self._asked_for)
        monkeypatch.setattr(loaders, "hf_hub_download", self._given)
        monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", lambda repo_id, name: _Shapes())

    def _from_cache(self, repo_id, filename):
        found = self.files.get((repo_id, filename))
        return self._path(repo_id, filename) if found and found[0] in self.cached else None

    def _asked_for(self, repo_id, filename):
        self.asked.append((repo_id, filename))
        return self._path(repo_id, filename)

    def _given(self, repo_id, filename, force_download=False, **_):
        return self._path(repo_id, filename)

    def _path(self, repo_id, filename) -> str:
        path = self.folder / repo_id / filename
        if (repo_id, filename) in self.changed:
            path = path.with_name(f"changed_{path.name}")
            text = self.changed[repo_id, filename]
        elif (repo_id, filename) in self.files:
            _, name, layer, hook, model = self.files[repo_id, filename]
            text = filled_in(name, layer, hook, model)
        else:
            raise LocalEntryNotFoundError(f"{repo_id}/{filename}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)


class _Shapes(dict):
    """Shapes of tensors in a file that is not there."""

    def __missing__(self, name):
        return [8, 16]


def filled_in(name: str, layer: int, hook: str = "hook_resid_post", model: str = "") -> str:
    """A sample for a layer, a hook within the block, and a model."""
    text = (SAMPLES / name).read_text().replace("MODEL", model)
    text = text.replace("layers.12.", f"layers.{layer}.").replace(
        "blocks.12.hook_resid_post", f"blocks.{layer}.{hook}"
    )
    text = text.replace("blocks.12.", f"blocks.{layer}.").replace(
        "resid_post_layer_12", f"resid_post_layer_{layer}"
    )
    return re.sub(r'"(layer|hook_layer|hook_point_layer)": 12', rf'"\1": {layer}', text)


def files_of_the_registry() -> dict[tuple[str, str], tuple[str, str, int, str, str]]:
    """(repository, file) to its loader, sample, layer, hook within the block, and model."""
    files = {}
    for release, entry in get_pretrained_saes_directory().items():
        loader = entry.conversion_func or "sae_lens"
        for sae_id, path in entry.saes_map.items():
            for name, sample, layer, hook in _files_of(release, loader, sae_id, path):
                files[entry.repo_id, name] = (loader, sample, layer, hook, entry.model)
    return files


def _files_of(release, loader, sae_id, path):
    number = [int(digits) for digits in re.findall(r"\d+", sae_id)]
    if loader == "gemma_3":
        kind = path.split("/")[0].removesuffix("_all")
        yield f"{path}/config.json", f"gemma_3_{kind}.config.json", number[0], ""
    elif loader.startswith("llama_scope"):
        name = "hyperparams.json" if loader == "llama_scope" else "config.json"
        yield f"{path}/{name}", f"{loader}.{name}", number[0], LETTERS[re.search(r"L\d+([A-Z])", path)[1]]
    elif loader == "dictionary_learning_1":
        yield f"{path}/config.json", "dictionary_learning_1.config.json", number[0], ""
    elif loader == "connor_rob_hook_z":
        yield path.replace(".pt", "_cfg.json"), "connor_rob_hook_z.cfg.json", number[0], ""
    elif loader == "sae_lens":
        sample = "sae_lens_6" if FROM_SAE_LENS_6 in release else "sae_lens_first"
        sample = "sae_lens_3" if release.startswith(WITHOUT_BOS) else sample
        hook = re.sub(r"_\d+$", "", sae_id.split(".", 2)[2])
        yield f"{path}/cfg.json", f"{sample}.cfg.json", number[0], hook
    elif loader == "temporal":
        yield f"{path}/conf.yaml", "temporal.conf.yaml", number[0], ""
    elif loader == "mwhanna_transcoder":
        for name in ("wandb-config.yaml", "config.yaml"):
            yield name, f"{loader}.{name}", number[0], ""
    elif loader == "mntss_clt_layer_transcoder":
        yield "config.yaml", f"{loader}.config.yaml", number[0], ""


def said_by_sae_lens(release: str, sae_id: str) -> dict:
    """What sae-lens's own reader of configurations says of an SAE, from the same files."""
    metadata = loaders.load_sae_config_from_huggingface(release, sae_id)["metadata"]
    return json.loads(json.dumps(metadata, default=str))
