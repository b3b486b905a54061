"""Every kind of SAE against sae-lens's own encoding, and only as much of the weights read as it needs."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import safetensors
import torch
from sae_lens import SAE
from sae_lens.loading.pretrained_sae_loaders import get_sae_lens_config_from_disk, handle_config_defaulting
from sae_lens.registry import get_sae_class, get_sae_training_class

from pipeline_common.errors import UserError
from s1_compute_all_features.extract_sae_features import main
from s1_compute_all_features.sae_encoder import SaeLensEncoder, ThresholdEncoder, load_encoder
from s1_compute_all_features.sae_weights import locate_sae
from s1_compute_all_features.saes.sae_folders import read_cfg
from tests.fake_hub import write_params
from tests.s1.conftest import arguments
from tests.s1.test_sae_encoder import D_MODEL, D_SAE, configurations, entry, states

pytestmark = pytest.mark.usefixtures("one_thread")


SAES = {
    # name: (architecture, its own settings, whether it is trained and then saved for inference)
    "standard": ("standard", {}, False),
    "standard, no b_dec": ("standard", {"apply_b_dec_to_input": False}, False),
    "standard, layer norm": ("standard", {"normalize_activations": "layer_norm"}, False),
    "standard, constant norm": ("standard", {"normalize_activations": "constant_norm_rescale"}, False),
    "jumprelu": ("jumprelu", {}, False),
    "jumprelu, no b_dec": ("jumprelu", {"apply_b_dec_to_input": False}, False),
    "topk": ("topk", {"k": 7}, False),
    "topk, decoder norm": ("topk", {"k": 7, "rescale_acts_by_decoder_norm": True}, False),
    "gated": ("gated", {}, False),
    "matching_pursuit": ("matching_pursuit", {"max_iterations": 6}, False),
    "batchtopk as saved": ("batchtopk", {"k": 7}, True),
    "matryoshka as saved": ("matryoshka_batchtopk", {"k": 7, "matryoshka_widths": [16, D_SAE]}, True),
    "gated as saved": ("gated", {}, True),
}
FAST = {"standard", "standard, no b_dec", "jumprelu", "jumprelu, no b_dec"}
SAVED_AS_JUMPRELU = {"batchtopk as saved", "matryoshka as saved"}


def save_sae(folder, architecture, settings, trained, hook="blocks.0.hook_resid_post"):
    """A random SAE of an architecture, written by sae-lens itself."""
    torch.manual_seed(3)
    registry = get_sae_training_class if trained else get_sae_class
    sae_class, config_class = registry(architecture)
    config = config_class(d_in=D_MODEL, d_sae=D_SAE, **settings)
    config.metadata.hook_name, config.metadata.prepend_bos = hook, True
    sae = sae_class(config)
    with torch.no_grad():
        for name, value in sae.named_parameters():
            value.copy_(torch.randn(value.shape) * (0.3 if name == "r_mag" else 1.0))
        if not trained and hasattr(sae, "threshold"):
            sae.threshold.copy_(torch.rand(D_SAE) * 4 - 1)  # some below zero: relu holds there
        if trained and hasattr(sae, "topk_threshold"):
            sae.topk_threshold.fill_(2.5)
    (sae.save_inference_model if trained else sae.save_model)(folder)
    return folder


def encoder_of(root, **settings):
    return load_encoder(
        locate_sae(configurations(), entry(), root, root), configurations(), "cpu", **settings
    )


@pytest.mark.parametrize("name", SAES)
def test_activations_equal_sae_lens(name, tmp_path):
    folder = save_sae(tmp_path / "layer_0", *SAES[name])
    encoder = encoder_of(tmp_path)
    assert isinstance(encoder, ThresholdEncoder if name in FAST | SAVED_AS_JUMPRELU else SaeLensEncoder)
    with torch.inference_mode():
        expected = SAE.load_from_disk(folder).encode(states()).numpy()
    got = encoder.encode(states()).to_dense()
    assert 0.02 < (expected > 0).mean() < 0.9
    if isinstance(encoder, SaeLensEncoder):
        np.testing.assert_array_equal(got, expected)
    else:
        np.testing.assert_array_equal(got > 0, expected > 0)
        # The bias holds b_dec @ W_enc, so additions come in another order: float32 rounding, no more.
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["standard", "jumprelu", "batchtopk as saved"])
def test_screening_equals_sae_lens_too(name, tmp_path, monkeypatch):
    from s1_compute_all_features import sae_encoder

    monkeypatch.setattr(sae_encoder, "MAX_CANDIDATES", 1.0)  # so dense a case would fall back
    folder = save_sae(tmp_path / "layer_0", *SAES[name])
    with torch.inference_mode():
        expected = SAE.load_from_disk(folder).encode(states()).numpy()
    got = encoder_of(tmp_path, screening=True).encode(states()).to_dense()
    np.testing.assert_array_equal(got > 0, expected > 0)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_a_transcoder_under_the_hook_of_another_place_is_refused(tmp_path):
    settings = {"d_out": D_MODEL, "apply_b_dec_to_input": False}
    save_sae(tmp_path / "layer_0", "transcoder", settings, False, hook="blocks.0.ln2.hook_normalized")
    with pytest.raises(UserError, match=r"trained with hook 'blocks\.0\.ln2\.hook_normalized'"):
        encoder_of(tmp_path)


@pytest.mark.parametrize("hook", ["blocks.0.attn.hook_q", "hook_embed", "blocks.0.hook_mlp_in"])
def test_a_hook_that_is_no_known_site_is_refused_by_name(
    hook, labelled_csv, tiny_configuration, tmp_path, capsys
):
    content = json.loads(tiny_configuration.read_text())
    content["saes"][1]["hook"] = hook
    (tmp_path / "other.json").write_text(json.dumps(content))
    assert main(arguments(labelled_csv, tmp_path / "store", tmp_path / "other.json")) == 1
    error = capsys.readouterr().err
    assert f"hook '{hook}'" in error
    assert "saes.1" in error
    assert not (tmp_path / "store").exists()


def fill_with_garbage(path, start, n_bytes):
    with path.open("r+b") as handle:
        handle.seek(start)
        handle.write(b"\xff" * n_bytes)  # NaN, were it ever read as floats


@pytest.mark.parametrize("architecture", ["standard", "jumprelu"])
def test_the_decoder_stays_on_disk_safetensors(architecture, tmp_path, monkeypatch):
    save_sae(tmp_path / "layer_0", architecture, {"apply_b_dec_to_input": False}, False)
    before = encoder_of(tmp_path).encode(states())
    path = tmp_path / "layer_0" / "sae_weights.safetensors"
    with path.open("rb") as handle:
        header_length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(header_length))
    first, last = header["W_dec"]["data_offsets"]
    fill_with_garbage(path, 8 + header_length + first, last - first)
    assert safetensors.torch.load_file(path)["W_dec"].isnan().all()

    read = []

    class Counting:
        def __init__(self, *arguments, **settings):
            self.file = original(*arguments, **settings)

        def __enter__(self):
            self.opened = self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def get_tensor(self, name):
            read.append(name)
            return self.opened.get_tensor(name)

        def get_slice(self, name):
            read.append(name)
            return self.opened.get_slice(name)

        def __getattr__(self, name):
            return getattr(self.opened, name)

    located = locate_sae(configurations(), entry(), tmp_path, tmp_path)  # looks at names and shapes alone
    original = safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", Counting)
    after = load_encoder(located, configurations(), "cpu").encode(states())
    np.testing.assert_array_equal(after.to_dense(), before.to_dense())
    assert sorted(read) == sorted(["W_enc", "b_enc", *(["threshold"] if architecture == "jumprelu" else [])])


def test_the_decoder_stays_on_disk_npz(tmp_path):
    write_params(tmp_path / "layer_0", D_MODEL, D_SAE, seed=5)
    before = encoder_of(tmp_path).encode(states())
    path = tmp_path / "layer_0" / "params.npz"
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("W_dec.npy")
    fill_with_garbage(path, member.header_offset + 300, member.file_size - 300)  # behind its header
    with pytest.raises((zipfile.BadZipFile, ValueError)), np.load(path) as arrays:
        arrays["W_dec"]
    np.testing.assert_array_equal(encoder_of(tmp_path).encode(states()).to_dense(), before.to_dense())

    path.write_bytes(whole)
    arrays = dict(np.load(path))
    for missing in arrays:
        np.savez(path, **{name: array for name, array in arrays.items() if name != missing})
        with pytest.raises(UserError, match=rf"params\.npz: {missing} (is )?missing"):
            encoder_of(tmp_path)


OLD_FORM = {
    "hook_point": "blocks.0.hook_resid_post",
    "d_in": D_MODEL,
    "d_sae": D_SAE,
    "dtype": "float32",
    "activation_fn_str": "relu",
    "normalize_activations": False,
}


@pytest.mark.parametrize("name", SAES)
def test_the_settings_of_an_sae_are_what_sae_lens_reads(name, tmp_path, monkeypatch):
    folder = save_sae(tmp_path / "layer_0", *SAES[name])
    expected = handle_config_defaulting(get_sae_lens_config_from_disk(folder))
    monkeypatch.setitem(sys.modules, "sae_lens.loading.pretrained_sae_loaders", None)  # not asked
    assert read_cfg(folder) == expected


@pytest.mark.parametrize(
    "content",
    [
        OLD_FORM,
        {**OLD_FORM, "sae_lens_version": "3.9.0", "architecture": "standard"},
        {**OLD_FORM, "architecture": "topk", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}},
        {**OLD_FORM, "architecture": "jumprelu", "metadata": {"sae_lens_version": "5.10.1"}},
        {**OLD_FORM, "architecture": "jumprelu", "metadata": {"sae_lens_version": "6.0.0-rc.1"}},
        {**OLD_FORM, "architecture": "jumprelu", "metadata": {}},
    ],
)
def test_settings_of_an_old_form_are_left_to_sae_lens(content, tmp_path):
    (tmp_path / "cfg.json").write_text(json.dumps(content))
    assert read_cfg(tmp_path) == handle_config_defaulting(get_sae_lens_config_from_disk(tmp_path))


@pytest.mark.parametrize("text", ["{", "[]", '{"architecture": "no-such"}', "\udcff"])
def test_settings_that_are_none_are_told(text, tmp_path):
    (tmp_path / "cfg.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(
        UserError, match=r"cfg\.json: not (the configuration of a sae-lens SAE|an SAE's configuration)"
    ):
        read_cfg(tmp_path)


@pytest.mark.parametrize("kind", ["params.npz", "standard", "jumprelu", "batchtopk"])
def test_an_extraction_with_plain_saes_never_imports_sae_lens(
    kind, tiny_configuration, labelled_csv, tmp_path
):
    content = json.loads(tiny_configuration.read_text())
    content["model"]["id"] = str(tiny_configuration.parent / "model")
    content["saes"], content["sae_root"] = content["saes"][:1], str(tmp_path / "saes")
    folder = tmp_path / "saes" / content["saes"][0]["path"]
    if kind == "params.npz":
        write_params(folder, d_model=D_MODEL, d_sae=D_SAE, seed=1)
    else:
        save_sae(folder, kind, {"k": 7} if kind == "batchtopk" else {}, trained=kind == "batchtopk")
    configuration = tmp_path / "plain.json"
    configuration.write_text(json.dumps({**content, "weights_format": "sae_lens"}))
    program = (
        "import sys; from s1_compute_all_features.extract_sae_features import main\n"
        "code = main(sys.argv[1:])\n"
        "print('imported:', [name for name in ('sae_lens', 'transformer_lens') if name in sys.modules])\n"
        "sys.exit(code)"
    )
    command = arguments(labelled_csv, tmp_path / "store", configuration, "--check-reconstruction")
    run = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "imported: []"
    lines = run.stderr.splitlines()
    assert lines[0].startswith("settings: ")
    assert lines[1].startswith("loading torch, transformers")
