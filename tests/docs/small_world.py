"""What the documented commands find when a test runs them: everything is there, and everything is small.

The commands themselves are run as they stand, but for `SUBSTITUTIONS`. What differs is the world:

- the hub is a local cache, off line, with tiny models and SAEs of random weights under their real ids
  (`google/gemma-2-2b` with the SAEs of layers 5 and 12, `openai-community/gpt2` with all 13);
- SmolLM2 and its SAEs are tiny random ones in their place;
- the language model that writes and labels sentences is a server on loopback, its key a made-up one;
- the shipped datasets are whole for stage 0, then cut to `SENTENCES_PER_LABEL` sentences per label;
- Neuronpedia cannot be reached (`tests/s2/test_neuronpedia.py` has one that answers);
- the files that a reader is to bring, `READERS_FILES`, are there.
"""

import csv
import json
import shutil
from pathlib import Path

from s0_dataset_generation.labelled_sentences import write_labelled_sentences
from tests.copied_project import copy_of_the_project, environment_of_a_user

S0 = "s0_dataset_generation"
S1 = "s1_compute_all_features"
DATASETS = ("aggression", "bravery", "caring", "dishonesty", "unfairness")
SENTENCES_PER_LABEL = 12
LAYERS_OF_GEMMA = (5, 12)
"""Those of the features that s3's USAGE picks by hand."""

WIDE_SAES = ("layer_05_l0_18", "layer_12_l0_82")
"""The SAEs of these features."""

D_SAE = 128
D_SAE_OF_WIDE = 1768
"""Feature 1767 is among those picked by hand; the shipped d4 experiment asks for 100 features."""

READERS_FILES = {
    f"{S0}/my_seeds.csv": """\
sentence,concept_strength_label
"The gale tore the roof off the school hall.",3
"The forecast spoke of gusts, so the captain doubled the ropes.",2
"Their quarrel blew over like a storm.",1
"Her new bicycle has three gears and a bell.",0
""",
    f"{S0}/virtue_test.csv": """\
label,scenario
1,The tiler billed us for a wall he never touched. [SEP] dishonest
0,Otto walked back with the extra coin. [SEP] dishonest
1,She mended her own boots and kept the old coat. [SEP] thrifty
0,He bought a fourth pair of skis in May. [SEP] thrifty
""",
    f"{S1}/my_texts.txt": "".join(
        f"The baker of house {number} sold {number * 3} loaves before the rain came.\n"
        for number in range(200)
    ),
}

SUBSTITUTIONS = {
    "http://localhost:8000/v1": "$OPENAI_BASE_URL",
    "--nproc-per-node 8": "--nproc-per-node 2",
    "--permutations 1000": "--permutations 50",
    "--dpi 300": "--dpi 60",
    "--max-sentences 0": "--max-sentences 8",
    "--layers 10,16,22 --width 3072 --l0 40 --tokens 1500000": "--layers 0,2 --width 32 --l0 4 --tokens 2000 "
    "--held-out-tokens 200 --step-tokens 128",
}
"""Text of a command to what stands there when it is run: a free port, and less of the same."""

TRUE_SIZE = "measures at true size: gigabytes and minutes"
SMALL_SIZE = f"{TRUE_SIZE}; the stage's tests run its code at small size"
INSTALLS = "installs into the running environment"
RUNS_TESTS = "runs the tests, of which this is one"
NOT_RUN = {
    "make demo": "installs and fetches 93 MB; tests/run_pipeline covers its steps",
    "make test": RUNS_TESTS,
    "make test-browser": RUNS_TESTS,
    "make test-slow": RUNS_TESTS,
    "make check": "lints the checkout, not a copy",
    "make format": "rewrites the checkout",
    ".ci/run": RUNS_TESTS,
    "make test UV=": RUNS_TESTS,
    "make demo UV=": "fetches 93 MB, as make demo does",
    "make demo TRAIT=aggression": "fetches 93 MB, as make demo does",
    "make demo-all": "fetches 93 MB, as make demo does",
    "make figures": "fetches 93 MB, as make demo does",
    "uv sync": INSTALLS,
    "pip install -e .": INSTALLS,
    "pip install --group dev": INSTALLS,
    "uv run playwright install chromium": "fetches a browser",
    "uv run pre-commit install": "writes into the repository's hooks",
    "uv run": "not a command: the words to leave out with pip",
    "chmod -R u+w": "not a command: to be followed by the version that is to go",
    "uv run python fetch_demo_model.py": "fetches 93 MB; tests/s1 does so with a small file",
    "uv run python gather_texts.py --output texts --model MODEL_FOLDER --written-tokens 400000": "fetches "
    "Debian packages; tests/s1 gathers from made ones",
    "uv run python train_saes.py --config smollm2_configurations.json --texts "
    "general_texts/debian_developers_reference.txt general_texts/debian_faq.txt "
    "general_texts/debian_handbook.txt general_texts/debian_reference.txt "
    "general_texts/endless_sky.txt general_texts/jane_austen.txt "
    "general_texts/jargon_file.txt general_texts/moby_dick.txt "
    "general_texts/wesnoth_campaigns.txt general_texts/written_by_model.txt --layers "
    "10,16,22 --width 3072 --l0 40 --tokens 1600000 --held-out-tokens 60000 --measure "
    "../s0_dataset_generation/expanded_data/aggression.csv "
    "../s0_dataset_generation/expanded_data/bravery.csv "
    "../s0_dataset_generation/expanded_data/caring.csv "
    "../s0_dataset_generation/expanded_data/dishonesty.csv "
    "../s0_dataset_generation/expanded_data/unfairness.csv --dtype bfloat16 --autocast "
    "--weights-dtype float16 --threads 2 --output smollm2_saes": "trains for "
    "an hour; the line in USAGE.md is run with less",
    "srun --nodes 4 --ntasks-per-node 1 uv run torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d "
    "--rdzv-endpoint $HEAD:29500 extract_sae_features.py --input "
    "../s0_dataset_generation/expanded_data/dishonesty.csv --output ./dishonesty_4_nodes_features": "needs "
    "Slurm and four nodes; the line for one node is run",
    "uv run python benchmarks/bench_extract.py": TRUE_SIZE,
    "uv run python benchmarks/bench_extract.py --quick --json figures.json": TRUE_SIZE,
    "uv run python benchmarks/bench_extract.py --device cuda": "needs a GPU",
    "uv run python benchmarks/bench_rank.py": SMALL_SIZE,
    "uv run python benchmarks/bench_rank.py --quick --json figures.json": SMALL_SIZE,
    "uv run python benchmarks/bench_plots.py": SMALL_SIZE,
    "uv run python benchmarks/bench_plots.py --quick --json figures.json": SMALL_SIZE,
    "uv run python benchmarks/bench_scale.py": TRUE_SIZE,
    "uv run python benchmarks/bench_scale.py --quick --json figures.json": TRUE_SIZE,
    "uv run python benchmarks/bench_sweep.py": SMALL_SIZE,
    "uv run python benchmarks/bench_sweep.py --quick --json figures.json": SMALL_SIZE,
}
"""Command to the reason why this test does not run it."""


def build_world(folder: Path, tiny_configuration: Path, base_url: str) -> tuple[Path, dict[str, str]]:
    """A copy of the project in that world, and the environment of its reader."""
    from tests.fake_hub import write_fake_gemma, write_fake_gpt2, write_fake_gpt2_saes, write_params

    project = copy_of_the_project(folder / "project")
    hub = folder / "hub"
    write_fake_gemma(hub, n_layers=max(LAYERS_OF_GEMMA) + 1)
    gemma_scope = cut_gemma_scope(project / S1 / "gemma_scope_16k_configurations.json")
    write_sae_snapshots(hub, gemma_scope, write_params)
    write_fake_gpt2(hub)
    gpt2 = json.loads((project / S1 / "gpt2_small_configurations.json").read_text(encoding="utf-8"))
    write_fake_gpt2_saes(hub, gpt2["repo_id"], [sae["path"] for sae in gpt2["saes"]], d_sae=D_SAE)
    put_in_smollm2s_place(tiny_configuration, project / S1, write_params)
    for name, text in READERS_FILES.items():
        (project / name).write_text(text, encoding="utf-8")
    environment = environment_of_a_user(
        folder,
        project,
        HF_HUB_CACHE=str(hub),
        OPENAI_BASE_URL=base_url,
        OPENAI_API_KEY="a-key-for-loopback",
        NEURONPEDIA_BASE_URL="http://127.0.0.1:9",
        GLOO_SOCKET_IFNAME="lo",
        OMP_NUM_THREADS="1",  # products this small are done before a second thread has woken up
    )
    return project, environment


def put_in_smollm2s_place(tiny_configuration: Path, stage: Path, write_params) -> None:
    """The tiny model as SmolLM2, with SAEs of `D_SAE` features: the shipped d4 asks for 100."""
    configuration = stage / "smollm2_configurations.json"
    content = json.loads(configuration.read_text(encoding="utf-8"))
    tiny = json.loads(tiny_configuration.read_text(encoding="utf-8"))
    shutil.copytree(tiny_configuration.parent / tiny["model"]["id"], stage / content["model"]["id"])
    configuration.write_text(json.dumps({**tiny, "model": content["model"], "sae_root": "tiny_saes"}))
    for number, sae in enumerate(tiny["saes"]):
        write_params(stage / "tiny_saes" / sae["path"], d_model=16, d_sae=D_SAE, seed=number)


def cut_gemma_scope(path: Path) -> dict:
    """The shipped configuration with the SAEs of two layers; what their names and ids are stays."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content["saes"] = [sae for sae in content["saes"] if sae["layer"] in LAYERS_OF_GEMMA]
    path.write_text(json.dumps(content), encoding="utf-8")
    return content


def write_sae_snapshots(hub: Path, configuration: dict, write_params) -> None:
    """Random SAEs in their places in the hub's cache."""
    from tests.fake_hub import snapshot

    folder = snapshot(hub, configuration["repo_id"])
    for number, sae in enumerate(configuration["saes"]):
        d_sae = D_SAE_OF_WIDE if sae["name"] in WIDE_SAES else D_SAE
        write_params(folder / sae["path"], d_model=16, d_sae=d_sae, seed=number)


def cut_the_datasets(project: Path) -> None:
    """The first sentences of each label of the shipped datasets, in their order."""
    for name in DATASETS:
        path = project / S0 / "expanded_data" / f"{name}.csv"
        with path.open(encoding="utf-8", newline="") as handle:
            rows = [(row["sentence"], int(row["concept_strength_label"])) for row in csv.DictReader(handle)]
        kept = []
        for label in range(4):
            kept += [row for row in rows if row[1] == label][:SENTENCES_PER_LABEL]
        path.unlink()
        write_labelled_sentences(path, *map(list, zip(*kept, strict=True)))


def as_run(command: str) -> str:
    """The command with what `SUBSTITUTIONS` says in it."""
    for documented, run in SUBSTITUTIONS.items():
        command = command.replace(documented, run)
    return command
