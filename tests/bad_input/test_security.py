"""Files made to do harm: nothing in a data file runs, fills the memory or leads out of its folder."""

import json
import os
import re
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import skops.io
import yaml
from sklearn.preprocessing import FunctionTransformer

from pipeline_common.files import sealed, sha256_of_file
from tests.bad_input.test_properties import run, scratch
from tests.bad_input.world import OUTPUT, SECRETS
from tests.source_rules import PACKAGES, ROOT

DATASET = (
    "s4_classifier_data_prep.generate_datasets",
    "--strategy hidden-to-concept --layer 1 --input lies_features --output out.npz",
)
TRAINING = ("s5_classifier_training.framework.train", "experiment")
EXTRACTION = (
    "s1_compute_all_features.extract_sae_features",
    "--input different.csv --output features --config tiny/tiny.json --saes layer_01_l0_8",
)


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def refused(arguments, folder, *culprits):
    """The script ends with exit code 1, and its message names the culprits."""
    code, errors = run(*arguments, folder)
    assert code == 1, errors
    message = errors.splitlines()[-1]
    assert message.startswith("error: ")
    assert all(culprit in message for culprit in culprits), message


# Words that run what a file holds; the exceptions say what is allowed of them.
DANGEROUS = re.compile(
    r"pickle|joblib|\bdill\b|marshal|shelve|(?<!\.)\beval\(|\bexec\(|os\.system|shell=True|torch\.load"
    r"|yaml\.(?!safe_load|YAMLError)\w+|trust_remote_code|weights_only|autoescape|\|\s*safe\b|Markup\("
)
ALLOWED = re.compile(
    r"allow_pickle=False|trust_remote_code=False|autoescape=True|#.*pickle|pickle could read"
    r"|(style|script)=Markup\("
)


def dangerous_lines(text):
    """Lines that hold one of the words, beyond what is allowed of them; docstrings speak of pickles too."""
    return [
        line for line in text.splitlines() if DANGEROUS.search(ALLOWED.sub("", line)) and '"""' not in line
    ]


def test_no_source_line_runs_what_a_file_holds():
    paths = [
        path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".html")
        and "reports" not in path.relative_to(ROOT).parts  # what runs leave
    ]
    assert len(paths) > 50
    found = {
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in [*paths, ROOT / "run_pipeline.py"]
        for line in dangerous_lines(path.read_text(encoding="utf-8"))
    }
    # Prose of docstrings that says that nothing is pickled.
    assert {line for line in found if "never unpickled" not in line and "never pickled" not in line} == set()


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "np.load(path, allow_pickle=True)",
        "torch.load(path)",
        "yaml.load(text, yaml.Loader)",
        "yaml.unsafe_load(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "subprocess.run(command, shell=True)",
        "{{ sentence | safe }}",
        "Environment(autoescape=False)",
        "eval(text)",
    ],
)
def test_such_a_line_would_be_found(line):
    assert dangerous_lines(line)


@pytest.mark.parametrize(
    ("arguments", "parts", "file", "array"),
    [
        (DATASET, "lies_features", "lies_features/block_0000/hidden_layer_01.npz", "states"),
        (TRAINING, "lies.npz experiment/working", "lies.npz", "X"),
        (TRAINING, "lies.npz experiment/working", "lies.npz", "metadata"),
        (EXTRACTION, "different.csv tiny", "tiny/saes/layer_1/width_64/average_l0_8/params.npz", "b_enc"),
        (EXTRACTION, "different.csv tiny", "tiny/saes/layer_1/width_64/average_l0_8/params.npz", "W_enc"),
    ],
)
def test_an_array_of_objects_is_refused_and_runs_nothing(arguments, parts, file, array, world):
    with scratch(world, parts) as folder:
        harm = folder / "harm"
        with np.load(folder / file) as archive:
            arrays = dict(archive)
        arrays[array] = np.array([Harmful(harm)], dtype=object)
        np.savez(folder / file, **arrays)
        refused(arguments, folder, Path(file).name)
        assert not harm.exists()
        with np.load(folder / file, allow_pickle=True) as archive:
            archive[array]  # whoever trusts it runs it: the test could fail
        assert harm.exists()


def bomb(path, array, compressed):
    """An NPZ whose array says it has 2^40 numbers, and holds none; or 128 MiB of zeros in a few kB."""
    with np.load(path) as archive:
        arrays = dict(archive)
    del arrays[array]
    np.savez(path, **arrays)
    shape = (2**25,) if compressed else (2**20, 2**20)
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with (
        zipfile.ZipFile(path, "a", kind) as archive,
        archive.open(f"{array}.npy", "w", force_zip64=True) as member,
    ):
        np.lib.format.write_array_header_1_0(member, header)
        for _ in range(2**7 if compressed else 0):
            member.write(bytes(2**20))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("arguments", "parts", "file", "array"),
    [
        (DATASET, "lies_features", "lies_features/block_0000/hidden_layer_01.npz", "states"),
        (TRAINING, "lies.npz experiment/working", "lies.npz", "X"),
        (EXTRACTION, "different.csv tiny", "tiny/saes/layer_1/width_64/average_l0_8/params.npz", "W_enc"),
    ],
)
def test_a_zip_bomb_takes_no_memory(arguments, parts, file, array, compressed, world, bombs):
    with scratch(world, parts) as folder:
        made = bombs(file, array, compressed)
        (folder / file).write_bytes(made.read_bytes())
        tracemalloc.start()
        try:
            refused(arguments, folder, Path(file).name)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 64 * 2**20


@pytest.fixture(scope="module")
def bombs(world, tmp_path_factory):
    """Makes a bomb of a file of the world, once."""
    made = {}

    def make(file, array, compressed):
        if (file, compressed) not in made:
            path = tmp_path_factory.mktemp("bomb") / Path(file).name
            path.write_bytes((world / file).read_bytes())
            bomb(path, array, compressed)
            made[file, compressed] = path
        return made[file, compressed]

    return make


@pytest.mark.parametrize("file", ["config.yaml", "dataset.config"])
def test_a_yaml_tag_is_refused_and_runs_nothing(file, world):
    with scratch(world, "lies.npz experiment/working") as folder:
        harm = folder / "harm"
        text = f"seed: !!python/object/apply:os.mkdir ['{harm}']\ndataset: x\n"
        (folder / "experiment" / "working" / file).write_text(text)
        refused(TRAINING, folder, file, "python/object/apply")
        assert not harm.exists()
        yaml.unsafe_load(text)  # whoever trusts it runs it: the test could fail
        assert harm.exists()


def test_a_harmful_model_in_a_version_that_vouches_for_it_runs_nothing(world):
    """tests/s5/test_model_file.py has more of them; this one goes through the script."""
    with scratch(world, "lies.csv experiment/v1_first") as folder:
        version, harm = folder / "experiment" / "v1_first", folder / "harm"
        skops.io.dump(FunctionTransformer(os.mkdir), version / "model.skops")
        results = json.loads((version / "results.json").read_text())
        results["model_types"] = skops.io.get_untrusted_types(file=version / "model.skops")
        results["files"]["model.skops"] = sha256_of_file(version / "model.skops")
        (version / "results.json").write_text(json.dumps(sealed(results)))
        described = json.loads((version / "version.json").read_text())
        for name in described["checksums"]:
            described["checksums"][name] = sha256_of_file(version / name)
        (version / "version.json").write_text(json.dumps(sealed(described)))
        refused(
            (
                "s5_classifier_training.framework.predict",
                "--checkpoint experiment/v1_first --input lies.csv --output o.csv",
            ),
            folder,
            "model.skops",
            "mkdir",
        )
        assert not harm.exists()


CODE = "import os\nos.mkdir({harm!r})\n"


@pytest.mark.parametrize("place", ["config", "tokenizer", "weights"])
def test_code_that_comes_with_a_model_never_runs(place, world):
    with scratch(world, "different.csv tiny") as folder:
        model, harm = folder / "tiny" / "model", folder / "harm"
        if place == "weights":
            import torch

            (model / "model.safetensors").unlink()
            torch.save({"weights": Harmful(harm)}, model / "pytorch_model.bin")
        else:
            (model / "harmful.py").write_text(CODE.format(harm=str(harm)))
            file = model / ("config.json" if place == "config" else "tokenizer_config.json")
            content = json.loads(file.read_text())
            content["auto_map"] = {
                "AutoConfig": "harmful.Config",
                "AutoModel": "harmful.Model",
                "AutoTokenizer": ["harmful.Tokenizer", None],
            }
            if place == "config":
                content["model_type"] = "harmful"
            else:
                content["tokenizer_class"] = "HarmfulTokenizer"
            file.write_text(json.dumps(content))
        code, errors = run(*EXTRACTION, folder)
        assert not harm.exists()
        if place != "tokenizer":  # a tokenizer has its own data beside the code, and is read from those
            assert code == 1
            assert "model cannot be loaded" in errors.splitlines()[-1]


def test_no_secret_stands_in_what_is_written_or_said(world, monkeypatch, caplog):
    """The world was made with these variables set, and what was said is kept; here stage 1 is run too."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    with scratch(world, "different.csv tiny") as folder:
        code, errors = run(*EXTRACTION, folder)
        assert code == 0, errors
        written = [path for path in [*folder.rglob("*"), *world.rglob("*")] if path.is_file()]
        assert {"run_log.json", "results.json", "version.json", "summary.json", "layer_sweep.json"} <= {
            path.name for path in written
        }
        said = (world / OUTPUT).read_text() + errors + caplog.text
        assert said.count("settings: ") >= 5
        for value in SECRETS.values():
            assert value not in said
            assert [path for path in written if value.encode() in path.read_bytes()] == []
