"""Run the six stages and the report for one trait and one configuration, skipping what is current.

Calls the scripts that a user would call, and prints each command before it runs it.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_common.claims import claim_output
from pipeline_common.command_line import HelpFormatter, Stopwatch
from pipeline_common.errors import UserError, exit_codes, on_interrupt
from pipeline_common.files import read_json, sha256_of_file, write_json, write_text
from s1_compute_all_features.feature_store import FeatureStore
from s2_find_top_features.ranked_features import VERDICTS, read_results

ROOT = Path(__file__).resolve().parent
S0, S1 = ROOT / "s0_dataset_generation", ROOT / "s1_compute_all_features"
S2, S3 = ROOT / "s2_find_top_features", ROOT / "s3_feature_activation_graphs"
S4, S5 = ROOT / "s4_classifier_data_prep", ROOT / "s5_classifier_training"
SHARED_CODE = (ROOT / "pipeline_common", ROOT / "concept_evaluation")
GEMMA_SCOPE = S1 / "gemma_scope_16k_configurations.json"
EXPERIMENTS = ("d1_embedding_to_feature", "d2_hidden_to_feature", "d3_hidden_to_concept", "d4_sae_to_concept")
QUICK_START_LAYERS = 6
N_BEST = 5


@dataclass(frozen=True)
class Paths:
    """Where a pipeline reads and writes.

    Attributes:
        csv: the labelled sentences.
        config: the SAE configuration file.
        store: feature store of s1.
        results: ranked features of s2.
        plots: pictures of s3.
        datasets: one NPZ of s4 per experiment of `EXPERIMENTS`.
        experiments: their experiment folders of s5.
        sweep: the layer sweep of s5.
        report: the page of s3 that shows it all.
        state: what was run on what, and what came out.
    """

    csv: Path
    config: Path
    store: Path
    results: Path
    plots: Path
    datasets: tuple[Path, ...]
    experiments: tuple[Path, ...]
    sweep: Path
    report: Path
    state: Path

    @classmethod
    def of(cls, csv: Path, config: Path, name: str) -> "Paths":
        """The paths of a pipeline with this name."""
        return cls(
            csv=csv,
            config=config,
            store=S1 / f"{name}_features",
            results=S2 / "results" / f"{name}_results",
            plots=S3 / f"plots_{name}",
            datasets=tuple(
                S4 / "generated_datasets" / f"{name}_{experiment}.npz" for experiment in EXPERIMENTS
            ),
            experiments=tuple(S5 / "runs" / name / experiment for experiment in EXPERIMENTS),
            sweep=S5 / "runs" / name / "layer_sweep",
            report=S3 / "reports" / f"{name}.html",
            state=ROOT / "pipeline_state" / f"{name}.json",
        )


@dataclass(frozen=True)
class Stage:
    """One stage of the run.

    Attributes:
        name: ``s0`` to ``s5``, ``sweep`` or ``report``.
        folder: where its commands run.
        commands: scripts with their arguments; ``--overwrite`` and ``--resume`` are added when needed.
        inputs: files that decide the outcome.
        outputs: files that show the outcome, all of them written when the stage is complete.
        resumes: its script goes on with an unfinished output by ``--resume``.
    """

    name: str
    folder: Path
    commands: list[list[str]]
    inputs: list[Path]
    outputs: list[Path]
    resumes: bool = False


def data_stage(paths: Paths, trait: str | None, definition: str | None = None) -> Stage:
    """s0: audit and plot the dataset; write it with an LLM where there is none yet."""
    csv = os.path.relpath(paths.csv, S0)
    commands = [["audit_dataset.py", csv], ["visualize_labels.py", csv]]
    inputs = [paths.csv]
    seeds = S0 / "initial_hendrycks_data" / f"{paths.csv.stem}.csv"
    if trait is not None and not paths.csv.exists():
        generate = ["expand_dataset.py", "--trait", trait, "--seed-file", os.path.relpath(seeds, S0)]
        generate += ["--definition", definition] if definition else []
        commands.insert(0, [*generate, "--output-name", paths.csv.stem])
        inputs = [seeds]
    return Stage("s0", S0, commands, inputs, [paths.csv, S0 / "audits" / f"{paths.csv.stem}_audit.json"])


def extraction_stage(paths: Paths) -> Stage:
    """s1: the feature store."""
    command = ["extract_sae_features.py", "--input", os.path.relpath(paths.csv, S1)]
    command += ["--output", os.path.relpath(paths.store, S1), "--config", os.path.relpath(paths.config, S1)]
    inputs = [paths.csv, paths.config, *fetched_model(paths.config)]
    return Stage("s1", S1, [command], inputs, [paths.store / "manifest.json"], resumes=True)


def fetched_model(config: Path) -> list[Path]:
    """The record of a model that fetch_demo_model.py wrote: with other weights the store is another."""
    content = read_json(config, "SAE configuration")
    model = content.get("model") if isinstance(content, dict) else None
    record = config.parent / str(model.get("id")) / "fetched.json" if isinstance(model, dict) else None
    return [record] if record and record.is_file() else []


def ranking_stage(paths: Paths) -> Stage:
    """s2: the ranked features."""
    command = ["analyze_features.py", "--input", os.path.relpath(paths.store, S2)]
    command += ["--output", os.path.relpath(paths.results, S2)]
    outputs = [paths.results / "ranked_features.csv", paths.results / "summary.json"]
    return Stage("s2", S2, [command], [paths.store / "manifest.json"], outputs)


def plotting_stage(paths: Paths) -> Stage:
    """s3: the pictures."""
    command = ["visualize_activations.py", "--s2-results", os.path.relpath(paths.results, S3)]
    command += ["--s1-data", os.path.relpath(paths.store, S3), "--output", os.path.relpath(paths.plots, S3)]
    return Stage(
        "s3",
        S3,
        [[*command, "--top-n", "10"]],
        [paths.results / "summary.json", paths.results / "ranked_features.csv"],
        [paths.plots / "summary_statistics.json"],
    )


def dataset_stage(paths: Paths) -> Stage:
    """s4: one dataset per strategy; the target feature is the best one of s2."""
    store = FeatureStore(paths.store)
    best = read_results(paths.results).features[0]
    sae = next(sae for sae in store.saes if sae.name == best.sae_name)
    l0 = [] if best.average_l0 is None else ["--target-l0", str(best.average_l0)]
    target = ["--target-layer", str(best.layer), "--target-feature", str(best.feature_id), *l0]
    # The layer that the SAE reads would only recover its encoder; the one before asks something new.
    input_layer = max(sae.input_layer - 1, 0)
    last_layer = min(QUICK_START_LAYERS, len(store.layers)) - 1
    strategies = (
        ["--strategy", "embedding-to-feature", *target],
        ["--strategy", "hidden-to-feature", *target, "--input-layer", str(input_layer)],
        ["--strategy", "hidden-to-concept", "--layers", f"0-{last_layer}"],
        # The whole SAE: s2's list was chosen by the labels of all folds, and s5 chooses in each anew.
        ["--strategy", "sae-to-concept", "--layer", str(best.layer), *l0],
    )
    commands = []
    for strategy, dataset in zip(strategies, paths.datasets, strict=True):
        files = ["--input", os.path.relpath(paths.store, S4), "--output", os.path.relpath(dataset, S4)]
        commands.append(["generate_datasets.py", *strategy, *files])
    inputs = [paths.store / "manifest.json", paths.results / "ranked_features.csv"]
    return Stage("s4", S4, commands, inputs, list(paths.datasets))


def training_stage(paths: Paths) -> Stage:
    """s5: the three shipped experiments, copied beside one another and pointed at the datasets of s4."""
    working = [experiment / "working" for experiment in paths.experiments]
    for name, folder, dataset in zip(EXPERIMENTS, working, paths.datasets, strict=True):
        if not (folder / "config.yaml").exists():
            shipped = S5 / name / "working" / "config.yaml"
            write_text(folder / "config.yaml", shipped.read_text(encoding="utf-8"))
        write_text(folder / "dataset.config", f"dataset: {json.dumps(os.path.relpath(dataset, folder))}\n")
    folders = [os.path.relpath(experiment, S5) for experiment in paths.experiments]
    commands = [["framework/train.py", *folders], ["framework/compare.py", *folders]]
    configs = [folder / "config.yaml" for folder in working]
    return Stage(
        "s5", S5, commands, [*paths.datasets, *configs], [folder / "results.json" for folder in working]
    )


def sweep_stage(paths: Paths) -> Stage:
    """s5 again: at which layer the trait becomes readable."""
    command = ["framework/sweep_layers.py", "--input", os.path.relpath(paths.store, S5)]
    command += ["--output", os.path.relpath(paths.sweep, S5)]
    outputs = [paths.sweep / "layer_sweep.csv", paths.sweep / "layer_sweep.json"]
    return Stage("sweep", S5, [command], [paths.store / "manifest.json"], outputs)


def report_stage(paths: Paths) -> Stage:
    """s3 again, last because it shows the sweep: one page with everything that was found."""
    sweep = paths.sweep / "layer_sweep.csv"
    command = ["build_report.py", "--s2-results", os.path.relpath(paths.results, S3)]
    command += ["--s1-data", os.path.relpath(paths.store, S3), "--output", os.path.relpath(paths.report, S3)]
    audit = S0 / "audits" / f"{paths.csv.stem}_audit.json"
    command += ["--layer-sweep", os.path.relpath(sweep, S3), "--audit", os.path.relpath(audit, S3)]
    inputs = [paths.results / "summary.json", paths.results / "ranked_features.csv", sweep, audit]
    return Stage("report", S3, [command], inputs, [paths.report])


def record_of(stage: Stage) -> dict[str, Any]:
    """What decides the outcome of a stage: its commands, its input files and its code."""
    code = hashlib.sha256()
    for folder in (stage.folder, *SHARED_CODE):
        for path in sorted([*folder.rglob("*.py"), *folder.glob("templates/*")]):
            code.update(f"{path.relative_to(ROOT)} {sha256_of_file(path)}\n".encode())
    return {
        "commands": stage.commands,
        "inputs": {os.path.relpath(path, ROOT): sha256_of_file(path) for path in stage.inputs},
        "code": code.hexdigest(),
    }


def digests(paths: Sequence[Path]) -> dict[str, str | None]:
    """SHA-256 of each file, None where it is missing."""
    return {os.path.relpath(path, ROOT): sha256_of_file(path) if path.is_file() else None for path in paths}


def run_stage(stage: Stage, state_file: Path) -> None:
    """Run a stage, unless the same commands on the same files and code left the outputs that stand there.

    An output that an earlier run of this pipeline made is replaced; one that somebody else made is left to
    the stage's own script to refuse.

    Raises:
        UserError: a command failed; its own message stands above.
    """
    state = read_json(state_file, "pipeline state") if state_file.exists() else {}
    before = state.get(stage.name, {})
    record = record_of(stage)
    unchanged = {key: before.get(key) for key in record} == record
    finished = before.get("outputs") or before.get("replaces")
    as_finished = finished == digests(stage.outputs)
    if unchanged and as_finished and "outputs" in before:
        print(f"{stage.name}: complete and current, skipped", flush=True)
        return
    if before or not any(path.exists() for path in stage.outputs):
        # Not recorded otherwise: what somebody else made must be refused again next time.
        state[stage.name] = {**record, "replaces": finished}
        write_json(state_file, state)
    watch = Stopwatch()
    # A rerun that was stopped before it replaced the finished output finds it as it was.
    resume = not before or (unchanged and not as_finished)
    for command in stage.commands:
        extra = []
        if stage.resumes:
            extra = ["--resume"] if resume else ["--overwrite"]
        elif before and "--output" in command:
            extra = ["--overwrite"]
        call(stage.folder, [*command, *extra])
    missing = [path for path in stage.outputs if not path.is_file()]
    if missing:
        raise UserError(f"{stage.name}: {missing[0]} was not written, although every command succeeded")
    state[stage.name] = {**record, "outputs": digests(stage.outputs)}
    write_json(state_file, state)
    print(f"{stage.name}: done in {watch.seconds:.0f} s", flush=True)


def call(folder: Path, command: Sequence[str]) -> None:
    """Print a command as a user would type it, and run it in its stage's folder.

    Raises:
        UserError: it did not end with exit code 0.
    """
    shown = f"cd {folder.name} && uv run python {shlex.join(command)}"
    print(f"\n$ {shown}", flush=True)
    script = str(folder / command[0])
    code = subprocess.run([sys.executable, script, *command[1:]], cwd=folder).returncode
    if code:
        raise UserError(
            f"{folder.name}: {command[0]} ended with exit code {code}, see above; when it is mended, run the "
            "same pipeline command again: what is complete is skipped"
        )


def summarize(paths: Paths) -> str:
    """Where everything is, and the best features with their train and held-out metrics."""
    results = read_results(paths.results)
    lines = [
        "",
        f"ranked features     {os.path.relpath(paths.results / 'ranked_features.csv')}",
        f"plots               {os.path.relpath(paths.plots)}",
        "classifier metrics  " + os.path.relpath(paths.experiments[0].parent) + "/*/working/results.json",
        f"layer sweep         {os.path.relpath(paths.sweep / 'layer_sweep.csv')}",
        "",
        f"the {N_BEST} features ranked first on train, those that pass the filters before the others:",
        f"{'layer:l0:feature':<18}{'filters':<9}{'score':>7}{'pearson':>9}{'AUROC':>7}  | "
        f"held-out{'score':>7}{'pearson':>9}{'AUROC':>7}",
    ]
    for feature in results.features[:N_BEST]:
        train, held_out = (
            "".join(
                f"{'' if values[metric] is None else format(values[metric], '.2f'):>{width}}"
                for metric, width in (("interpretability_score", 7), ("pearson", 9), ("auroc_3_vs_0", 7))
            )
            for values in (feature.train, feature.held_out)
        )
        passed = "pass" if feature.passes_filters else "-"
        row = f"{feature.key:<18}{passed:<9}{train}  |         {held_out}  {feature.neuronpedia_url}"
        lines.append(row.rstrip())
    lines += findings(results.summary)
    return "\n".join(lines)


def findings(summary: dict[str, Any]) -> list[str]:
    """What the permutation null and the bag of words say of the ranking."""
    null, verdict = summary["significance"], summary["verdict"]
    lines = []
    if null is not None and null["n_tested"]:
        n_found, n_tested = null["n_discoveries"], null["n_tested"]
        lines.append(f"discoveries: {n_found:,} of {n_tested:,} tested features at q < {null['level']}")
    if verdict is not None:
        lines.append(f"verdict on the held-out sentences: {VERDICTS[verdict['word']]}")
    return lines


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        description="Run the six stages in order: audit the sentences, extract, rank, plot, prepare, train;\n"
        "then sweep over the layers and build the report.\n"
        "A stage is skipped while its command, its inputs, its code and its outputs are what they were.\n\n"
        "  uv run python run_pipeline.py --trait dishonesty --config "
        "s1_compute_all_features/gpt2_small_configurations.json\n"
        "  uv run python run_pipeline.py --input my_sentences.csv",
        formatter_class=HelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--trait", help="a trait with a file in s0_dataset_generation/expanded_data, or with seeds"
    )
    source.add_argument("--input", type=Path, help="any labelled CSV")
    parser.add_argument("--definition", help="what --trait means, where stage 0 is to write its sentences")
    parser.add_argument("--config", type=Path, default=GEMMA_SCOPE, help="SAE configuration file")
    parser.add_argument("--name", help="of the outputs (default: trait or CSV, and an unusual configuration)")
    return parser


def default_name(csv: Path, config: Path) -> str:
    """``dishonesty`` on the default configuration, ``dishonesty_gpt2_small`` on another: they never mix."""
    if config.resolve() == GEMMA_SCOPE:
        return csv.stem
    return f"{csv.stem}_{config.stem.removesuffix('_configurations')}"


@exit_codes
@on_interrupt("what is complete is kept; run the same command again to go on")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the pipeline; exit code 0 done, 1 a stage failed, 2 wrong usage."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.name is not None and (
        arguments.name in ("", "..") or Path(arguments.name).name != arguments.name
    ):
        parser.error(f"--name {arguments.name!r}: expected a name without slashes")
    if arguments.trait is not None and not re.fullmatch(r"\w[\w -]*", arguments.trait):
        parser.error(f"--trait {arguments.trait!r}: expected a word or phrase such as dishonesty")
    if arguments.definition is not None and arguments.trait is None:
        parser.error("--definition says what a --trait means; sentences of --input have their labels")
    if not arguments.config.is_file():
        shipped = os.path.relpath(S1 / "gpt2_small_configurations.json")
        raise UserError(
            f"{arguments.config}: no such file; expected an SAE configuration file such as {shipped}"
        )
    trait = None if arguments.trait is None else re.sub(r"\W+", "_", arguments.trait.lower()).strip("_")
    csv = arguments.input.resolve() if trait is None else S0 / "expanded_data" / f"{trait}.csv"
    seeds = S0 / "initial_hendrycks_data" / csv.name
    if not csv.is_file() and (trait is None or not seeds.exists()):
        traits = ", ".join(sorted(path.stem for path in csv.parent.glob("*.csv")))
        advice = f", and no seeds at {seeds}; there are {traits}; stage 0's USAGE.md tells how to add one"
        raise UserError(f"{csv}: no such file{advice if trait else ''}")
    config = arguments.config.resolve()
    paths = Paths.of(csv, config, arguments.name or default_name(csv, config))
    claim_output(paths.state)
    watch = Stopwatch()
    run_stage(data_stage(paths, arguments.trait, arguments.definition), paths.state)
    later = (extraction_stage, ranking_stage, plotting_stage, dataset_stage, training_stage, sweep_stage)
    for stage_of in (*later, report_stage):  # each is made when it is due: some read earlier results
        run_stage(stage_of(paths), paths.state)
    print(summarize(paths))
    print(f"in all {watch.seconds:.0f} s")
    print(f"report: {os.path.relpath(paths.report)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
