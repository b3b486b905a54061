"""Run the six stages and the report for one or more traits, skipping what is current.

Calls the scripts that a user would call, and prints each command before it runs it.
"""

import argparse
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline_common.claims import claim_output
from pipeline_common.command_line import HelpFormatter, Stopwatch
from pipeline_common.errors import UserError, exit_codes, on_interrupt
from pipeline_common.files import read_json, write_text
from pipeline_common.staged_runs import Stage, call, run_if_needed
from s1_compute_all_features.feature_store import FeatureStore
from s2_find_top_features.ranked_features import read_results

ROOT = Path(__file__).resolve().parent
S0, S1 = ROOT / "s0_dataset_generation", ROOT / "s1_compute_all_features"
S2, S3 = ROOT / "s2_find_top_features", ROOT / "s3_feature_activation_graphs"
S4, S5 = ROOT / "s4_classifier_data_prep", ROOT / "s5_classifier_training"
SHARED_CODE = (ROOT / "pipeline_common", ROOT / "concept_evaluation")
GEMMA_SCOPE = S1 / "gemma_scope_16k_configurations.json"
EXPERIMENTS = ("d1_embedding_to_feature", "d2_hidden_to_feature", "d3_hidden_to_concept", "d4_sae_to_concept")
QUICK_START_LAYERS = 6
ALL = "all"


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
        text: the same findings on one screen.
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
    text: Path
    state: Path

    @classmethod
    def of(cls, csv: Path, config: Path, name: str, group: str | None = None) -> "Paths":
        """The paths of a pipeline with this name; traits of one ``group`` share a layer sweep."""
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
            sweep=S5 / "runs" / (group or name) / "layer_sweep",
            report=S3 / "reports" / f"{name}.html",
            text=S3 / "reports" / f"{name}.txt",
            state=ROOT / "pipeline_state" / f"{name}.json",
        )


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


def ranking_stage(paths: Paths, others: Sequence[Paths] = ()) -> Stage:
    """s2: the ranked features, read on the other traits' sentences too where there are any."""
    command = ["analyze_features.py", "--input", os.path.relpath(paths.store, S2)]
    command += ["--output", os.path.relpath(paths.results, S2)]
    if others:
        command += ["--contrast", *(os.path.relpath(other.store, S2) for other in others)]
    inputs = [one.store / "manifest.json" for one in (paths, *others)]
    outputs = [paths.results / "ranked_features.csv", paths.results / "summary.json"]
    return Stage("s2", S2, [command], inputs, outputs)


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
    of_sae = ["--target-sae", sae.name]
    target = [*of_sae, "--target-feature", str(best.feature_id)]
    # The layer that the SAE reads would only recover its encoder; the one before asks something new.
    input_layer = max(sae.sink_layer - 1, 0)
    last_layer = min(QUICK_START_LAYERS, len(store.layers)) - 1
    strategies = (
        ["--strategy", "embedding-to-feature", *target],
        ["--strategy", "hidden-to-feature", *target, "--input-layer", str(input_layer)],
        ["--strategy", "hidden-to-concept", "--layers", f"0-{last_layer}"],
        # The whole SAE: s2's list was chosen by the labels of all folds, and s5 chooses in each anew.
        ["--strategy", "sae-to-concept", *of_sae],
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


def sweep_stage(all_paths: Sequence[Paths]) -> Stage:
    """s5 again: at which layer each trait becomes readable."""
    sweep = all_paths[0].sweep
    command = ["framework/sweep_layers.py", "--input"]
    command += [os.path.relpath(paths.store, S5) for paths in all_paths]
    command += ["--output", os.path.relpath(sweep, S5)]
    inputs = [paths.store / "manifest.json" for paths in all_paths]
    return Stage("sweep", S5, [command], inputs, [sweep / "layer_sweep.csv", sweep / "layer_sweep.json"])


def report_stage(paths: Paths) -> Stage:
    """s3 again, last because it shows the sweep: a page with everything that was found, and one screen."""
    sweep = paths.sweep / "layer_sweep.csv"
    command = ["build_report.py", "--s2-results", os.path.relpath(paths.results, S3)]
    command += ["--s1-data", os.path.relpath(paths.store, S3), "--output", os.path.relpath(paths.report, S3)]
    audit = S0 / "audits" / f"{paths.csv.stem}_audit.json"
    command += ["--layer-sweep", os.path.relpath(sweep, S3), "--audit", os.path.relpath(audit, S3)]
    command += ["--text", os.path.relpath(paths.text, S3)]
    inputs = [paths.results / "summary.json", paths.results / "ranked_features.csv", sweep, audit]
    return Stage("report", S3, [command], inputs, [paths.report, paths.text])


def index_stage(all_paths: Sequence[Paths], index: Path) -> Stage:
    """s3 once more: a page that lists the reports of several traits."""
    reports = [paths.report for paths in all_paths]
    command = ["build_report.py", "--index", *(os.path.relpath(report, S3) for report in reports)]
    return Stage("index", S3, [[*command, "--output", os.path.relpath(index, S3)]], reports, [index])


def run_stage(stage: Stage, state_file: Path) -> None:
    """Run a stage of this project, unless it is complete and current."""
    run_if_needed(stage, state_file, ROOT, SHARED_CODE, call)


def summarize(paths: Paths) -> str:
    """What was found, as the report's screen has it, and where everything is."""
    lines = [
        "",
        paths.text.read_text(encoding="utf-8"),
        f"ranked features     {os.path.relpath(paths.results / 'ranked_features.csv')}",
        f"plots               {os.path.relpath(paths.plots)}",
        "classifier metrics  " + os.path.relpath(paths.experiments[0].parent) + "/*/working/results.json",
        f"layer sweep         {os.path.relpath(paths.sweep / 'layer_sweep.csv')}",
        f"report              {os.path.relpath(paths.report)}",
    ]
    return "\n".join(lines)


def compared(all_paths: Sequence[Paths]) -> str:
    """Where the comparisons of several traits are."""
    sweep = all_paths[0].sweep
    rows = [
        ("specificity", all_paths[0].results / "specificity_matrix.csv"),
        ("emergence curves", sweep / "layer_sweep_all_traits.png"),
        ("all reports", S3 / "reports" / f"{sweep.parent.name}.html"),
    ]
    return "\n".join(["", *(f"{what:<20}{os.path.relpath(path)}" for what, path in rows)])


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        description="Run the six stages in order: audit the sentences, extract, rank, plot, prepare, train;\n"
        "then sweep over the layers and build the report. Of several traits the best features are read on\n"
        "each other's sentences too, and the emergence curves come in one picture.\n"
        "A stage is skipped while its command, its inputs, its code and its outputs are what they were.\n\n"
        "  uv run python run_pipeline.py --trait dishonesty --config "
        "s1_compute_all_features/gpt2_small_configurations.json\n"
        "  uv run python run_pipeline.py --trait caring aggression --config "
        "s1_compute_all_features/smollm2_configurations.json\n"
        "  uv run python run_pipeline.py --input my_sentences.csv",
        formatter_class=HelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--trait",
        nargs="+",
        help="traits with a file in s0_dataset_generation/expanded_data, or with seeds; or all of them",
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


def trait_csv(trait: str) -> Path:
    """The labelled CSV of a trait; it need not exist where there are seeds for it.

    Raises:
        UserError: there is neither.
    """
    name = re.sub(r"\W+", "_", trait.lower()).strip("_")
    csv = S0 / "expanded_data" / f"{name}.csv"
    seeds = S0 / "initial_hendrycks_data" / csv.name
    if not csv.is_file() and not seeds.exists():
        traits = ", ".join(sorted(path.stem for path in csv.parent.glob("*.csv")))
        raise UserError(
            f"{csv}: no such file, and no seeds at {seeds}; there are {traits}; stage 0's USAGE.md tells how "
            "to add one"
        )
    return csv


def shipped_traits() -> list[str]:
    """The traits with a dataset and seeds of their own."""
    seeds = sorted((S0 / "initial_hendrycks_data").glob("*.csv"))
    return [path.stem for path in seeds if (S0 / "expanded_data" / path.name).is_file()]


def run_pipelines(all_paths: Sequence[Paths], traits: Sequence[str | None], definition: str | None) -> None:
    """Every stage of every trait, those of several traits last."""
    group = all_paths[0] if len(all_paths) == 1 else None
    shared_state = (
        all_paths[0].state if group else ROOT / "pipeline_state" / f"{all_paths[0].sweep.parent.name}.json"
    )
    for paths in all_paths:
        claim_output(paths.state)
    if not group:
        claim_output(shared_state)
    for paths, trait in zip(all_paths, traits, strict=True):
        run_stage(data_stage(paths, trait, definition), paths.state)
        run_stage(extraction_stage(paths), paths.state)
    for paths in all_paths:
        run_stage(ranking_stage(paths, [other for other in all_paths if other != paths]), paths.state)
        for stage_of in (plotting_stage, dataset_stage, training_stage):
            run_stage(stage_of(paths), paths.state)  # made when it is due: some read earlier results
    run_stage(sweep_stage(all_paths), shared_state)
    for paths in all_paths:
        run_stage(report_stage(paths), paths.state)
    if not group:
        run_stage(index_stage(all_paths, S3 / "reports" / f"{shared_state.stem}.html"), shared_state)


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
    for trait in arguments.trait or ():
        if not re.fullmatch(r"\w[\w -]*", trait):
            parser.error(f"--trait {trait!r}: expected a word or phrase such as dishonesty")
    if arguments.definition is not None and len(arguments.trait or ()) != 1:
        parser.error("--definition says what one --trait means; sentences of --input have their labels")
    if not arguments.config.is_file():
        shipped = os.path.relpath(S1 / "gpt2_small_configurations.json")
        raise UserError(
            f"{arguments.config}: no such file; expected an SAE configuration file such as {shipped}"
        )
    watch = Stopwatch()
    config = arguments.config.resolve()
    if arguments.trait is None:
        traits: list[str | None] = [None]
        csvs = [arguments.input.resolve()]
        if not csvs[0].is_file():
            raise UserError(f"{csvs[0]}: no such file")
    else:
        traits = list(dict.fromkeys(shipped_traits() if arguments.trait == [ALL] else arguments.trait))
        csvs = [trait_csv(trait) for trait in traits if trait is not None]
    if len(csvs) == 1:
        all_paths = [Paths.of(csvs[0], config, arguments.name or default_name(csvs[0], config))]
    else:
        named = Path("_".join(csv.stem for csv in csvs) if arguments.trait != [ALL] else "all_traits.csv")
        group = arguments.name or default_name(named, config)
        all_paths = [Paths.of(csv, config, default_name(csv, config), group) for csv in csvs]
    run_pipelines(all_paths, traits, arguments.definition)
    for paths in all_paths:
        print(summarize(paths))
    if len(all_paths) > 1:
        print(compared(all_paths))
    print(f"in all {watch.seconds:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
