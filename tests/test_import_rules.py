import subprocess
import sys

import pytest

from tests.source_rules import (
    READERS,
    ROOT,
    SCRIPTS_THAT_ARE_LIBRARIES,
    deeds_of_an_import,
    imported_scripts,
    imports_of,
    is_script,
    modules_of_the_project,
    opened_files,
    unsafe_calls,
    wrong_imports,
)

SOURCES = modules_of_the_project()
SCRIPTS = {module for module, source in SOURCES.items() if is_script(source)}


def test_the_search_finds_the_project():
    assert {"run_pipeline", "pipeline_common", "s5_classifier_training.framework.train"} <= set(SOURCES)
    assert {"run_pipeline", "s1_compute_all_features.sae_configurations"} <= SCRIPTS
    assert "s1_compute_all_features.feature_store" not in SCRIPTS
    assert SCRIPTS_THAT_ARE_LIBRARIES <= SCRIPTS


def test_stages_import_the_readers_of_earlier_stages_and_nothing_else():
    assert [finding for module, source in SOURCES.items() for finding in wrong_imports(module, source)] == []


def test_the_readers_exist_and_are_used():
    used = {
        reader
        for module, source in SOURCES.items()
        for reader in READERS.get(module.split(".")[0], ())
        if any(found.reaches({reader}) for found in imports_of(source))
    }
    assert used == {reader for readers in READERS.values() for reader in readers}
    assert used <= set(SOURCES)


def test_no_script_imports_a_script():
    findings = [f for module, source in SOURCES.items() for f in imported_scripts(module, source, SCRIPTS)]
    assert findings == []


def test_nothing_runs_code_from_a_data_file():
    assert [finding for module, source in SOURCES.items() for finding in unsafe_calls(module, source)] == []


def test_concept_evaluation_opens_no_file():
    own = {module: source for module, source in SOURCES.items() if module.startswith("concept_evaluation")}
    assert len(own) >= 4
    assert [finding for module, source in own.items() for finding in opened_files(module, source)] == []


def test_modules_only_define():
    assert [f for module, source in SOURCES.items() for f in deeds_of_an_import(module, source)] == []


WATCHED_IMPORTS = """
import importlib, logging, os, sys, threading
places = tuple(os.path.realpath(place) + os.sep for place in sys.argv[1:3])
library = os.path.realpath(sys.prefix) + os.sep
writes = []

def watch(event, arguments):
    writing = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link")
    if event == "open" and isinstance(arguments[0], (str, os.PathLike)):
        writing = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    if writing:
        path = os.path.realpath(arguments[0])
        if path.startswith(places) and not path.startswith(library):
            writes.append(f"{event} {path}")

sys.addaudithook(watch)
before = os.getcwd()
for name in sys.argv[3:]:
    importlib.import_module(name)
problems = list(writes)
if os.getcwd() != before:
    problems.append("changed the working directory")
if logging.getLogger().handlers:
    problems.append("set up logging")
if threading.active_count() > 1:
    problems.append("started a thread")
raise SystemExit("; ".join(problems) or 0)
"""


def import_in_a_subprocess(modules, folder, **environment):
    """Import modules in a fresh interpreter that watches what is written below ROOT and the folder."""
    return subprocess.run(
        [sys.executable, "-B", "-c", WATCHED_IMPORTS, str(ROOT), str(folder), *modules],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment or None,
    )


def test_importing_every_module_prints_nothing_and_writes_nothing(tmp_path):
    run = import_in_a_subprocess(sorted(SOURCES), tmp_path)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("from pathlib import Path\nPath('made').mkdir()", "os.mkdir"),
        ("open('made.txt', 'w').close()", "open"),
        ("import logging\nlogging.basicConfig()", "set up logging"),
        ("import os\nos.chdir('..')", "changed the working directory"),
        (
            "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()",
            "started a thread",
        ),
    ],
)
def test_an_import_that_does_something_is_seen(source, message, tmp_path):
    (tmp_path / "doer.py").write_text(source)
    assert message in import_in_a_subprocess(["doer"], tmp_path).stderr


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        (
            "s0_dataset_generation.x",
            "from s1_compute_all_features import feature_store",
            "may import only []",
        ),
        ("s2_find_top_features.x", "import s1_compute_all_features.sae_encoder", "may import only"),
        ("s2_find_top_features.x", "from s1_compute_all_features import feature_store, hub", ".hub"),
        ("s3_feature_activation_graphs.x", "def f():\n    from s2_find_top_features.ranking import a", "x:2"),
        ("s1_compute_all_features.x", "import s2_find_top_features.ranked_features", "may import only"),
        (
            "s5_classifier_training.x",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import s2_find_top_features",
            "x:3",
        ),
        ("run_pipeline", "from s5_classifier_training.framework.train import main", "may import only"),
        ("s4_classifier_data_prep.x", "import run_pipeline", "may import only"),
        ("pipeline_common.x", "import s0_dataset_generation", "imports none of ours"),
        ("pipeline_common.x", "from concept_evaluation import splits", "imports none of ours"),
        ("concept_evaluation.x", "from pipeline_common.errors import UserError", "imports none of ours"),
        ("pipeline_common.x", "import pandas", "has the standard library and ['numpy']"),
        ("concept_evaluation.x", "def f():\n    import matplotlib.pyplot", "has the standard library"),
        ("s2_find_top_features.x", "def f():\n    import torch.nn", "only s1_compute_all_features does"),
        (
            "s5_classifier_training.x",
            "from safetensors import safe_open",
            "only s1_compute_all_features does",
        ),
        ("s0_dataset_generation.x", "import openai", "only s0_dataset_generation.llm_connection does"),
        ("s1_compute_all_features.x", "from .feature_store import FeatureStore", "relatively"),
        ("s1_compute_all_features.x", "from . import feature_store", "relatively"),
    ],
)
def test_wrong_imports_are_seen(module, source, message):
    (finding,) = wrong_imports(module, source)
    assert message in finding


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("s1_compute_all_features.x", "import torch\nfrom s0_dataset_generation import labelled_sentences"),
        ("s4_classifier_data_prep.x", "from s1_compute_all_features.feature_store import FeatureStore"),
        ("s5_classifier_training.x", "import sklearn, pipeline_common.files, concept_evaluation.splits"),
        ("concept_evaluation.x", "import math\nfrom scipy.sparse import csr_matrix"),
        ("s0_dataset_generation.llm_connection", "import openai"),
    ],
)
def test_right_imports_pass(module, source):
    assert wrong_imports(module, source) == []


def test_a_script_that_imports_a_script_is_seen():
    scripts = {"a.one", "a.two", *SCRIPTS_THAT_ARE_LIBRARIES}
    assert len(imported_scripts("a.one", "def f():\n    from a.two import main", scripts)) == 1
    assert len(imported_scripts("a.one", "from a import two, three", scripts)) == 1
    assert imported_scripts("a.one", "from a import three", scripts) == []
    assert imported_scripts("a.three", "from a import two", scripts) == []
    assert imported_scripts("a.one", f"import {next(iter(SCRIPTS_THAT_ARE_LIBRARIES))}", scripts) == []
    assert is_script("if __name__ == '__main__':\n    main()")
    assert not is_script("def main():\n    pass")


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from joblib import load",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "torch.load(path)",
        "sys.path.insert(0, folder)",
        "importlib.import_module(name)",
        "__import__(name)",
    ],
)
def test_unsafe_calls_are_seen(source):
    assert len(unsafe_calls("package.module", source)) == 1


def test_safe_calls_pass():
    safe = "np.load(p, allow_pickle=False)\nyaml.safe_load(text)\ntorch.load(p, weights_only=True)\nsys.argv"
    assert unsafe_calls("package.module", safe) == []


@pytest.mark.parametrize(
    "source",
    ["open('x')", "np.load(x)", "pd.read_csv(x)", "from pathlib import Path", "a.write(b)"],
)
def test_opened_files_are_seen(source):
    assert len(opened_files("concept_evaluation.x", source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "print('loaded')",
        "logging.basicConfig()",
        "with open('x') as f:\n    X = f.read()",
        "for i in range(3):\n    pass",
        "if True:\n    x = 1",
        "try:\n    import a\nexcept ImportError:\n    a = None",
    ],
)
def test_deeds_of_an_import_are_seen(source):
    assert len(deeds_of_an_import("package.module", f'"""Docstring."""\n{source}')) == 1
