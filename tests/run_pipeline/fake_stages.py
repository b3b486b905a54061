"""Stand-ins for the stages: they write what a stage's script would write."""

import itertools
import shutil

from pipeline_common.errors import UserError
from s0_dataset_generation.generation_arguments import trait_file_name
from s1_compute_all_features.feature_store import FeatureStore
from s2_find_top_features.ranked_features import METRICS, RankedFeature, write_results
from tests.s3.report_inputs import full_summary
from tests.synthetic_store import write_synthetic_store

BEST = ((1, 24, 3), (0, 8, 3), (0, 24, 60), (1, 8, 7), (0, 8, 11), (1, 24, 12))


def feature(rank, layer, l0, feature_id):
    return RankedFeature(
        rank=rank,
        sae_name=f"layer_{layer:02d}_l0_{l0}",
        layer=layer,
        average_l0=l0,
        feature_id=feature_id,
        passes_filters=True,
        train=dict.fromkeys(METRICS) | {"interpretability_score": 1 - rank / 10, "auroc_3_vs_0": 0.875},
        held_out=dict.fromkeys(METRICS) | {"interpretability_score": 0.5 - rank / 20},
        neuronpedia_url="",
    )


class FakeStages:
    """In place of `call`: writes what the stage's script would write, and keeps the commands."""

    def __init__(self):
        self.commands = []
        self.failing = None
        self.versions = itertools.count()

    def __call__(self, folder, command):
        self.commands.append([folder.name[:2], *command])
        if command[0] == self.failing:
            raise UserError(f"{folder.name}: {command[0]} ended with exit code 1")
        given = dict(itertools.pairwise(command))
        output = folder / given.get("--output", "nowhere")
        if command[0] == "audit_dataset.py":
            source = folder / command[1]
            self.write(folder / "audits" / f"{source.stem}_audit.json", f"audit of {source.read_text()}")
        if command[0] == "expand_dataset.py":
            path = folder / "expanded_data" / f"{trait_file_name(given['--trait'])}.csv"
            path.parent.mkdir(exist_ok=True)
            path.write_text("sentence,concept_strength_label\nnew,0\n")
        if command[0] == "extract_sae_features.py":
            if command[-1] == "--overwrite":
                shutil.rmtree(output)
            write_synthetic_store(output, n_sentences=16, seed=len((folder / given["--input"]).read_text()))
        if command[0] == "analyze_features.py":
            store = FeatureStore(folder / given["--input"])
            summary = full_summary(store) | {"model": {"id": "tiny"}}
            write_results(output, [feature(rank, *key) for rank, key in enumerate(BEST, 1)], [], summary)
        if command[0] == "visualize_activations.py":
            self.write(output / "summary_statistics.json")
        if command[0] == "generate_datasets.py":
            self.write(output)
        if command[0] == "framework/train.py":
            for experiment in command[1:]:
                self.write(folder / experiment / "working" / "results.json")
        if command[0] == "framework/sweep_layers.py":
            self.write(output / "layer_sweep.csv", f"sweep of {(folder / given['--input']).name}")
            self.write(output / "layer_sweep.json", "{}")
        if command[0] == "build_report.py" and "--index" not in given:
            assert all((folder / given[flag]).is_file() for flag in ("--layer-sweep", "--audit"))
            self.write(output)
            self.write(folder / given["--text"], f"what was found, {output.stem}\n")
        elif command[0] == "build_report.py":
            assert (folder / given["--index"]).is_file()
            self.write(output)

    def write(self, path, text=None):
        """Write a text, or one that was never written before."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(next(self.versions)) if text is None else text)

    def scripts(self):
        """Stages and scripts since the last call."""
        scripts = [f"{stage} {script}" for stage, script, *_ in self.commands]
        self.commands = []
        return scripts
