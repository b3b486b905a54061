"""A language model in any form that transformers reads, written in the form that it loads fastest."""

import logging
import shutil
from pathlib import Path
from typing import Any

from pipeline_common.errors import UserError
from pipeline_common.files import read_json, write_json
from s1_compute_all_features.model_weights import check_whole, load_with_report

logger = logging.getLogger(__name__)


def read_gguf(path: Path) -> tuple[Any, Any]:
    """Model and tokenizer of a GGUF file of the Llama architecture, its weights dequantised to float32.

    The file has to stand alone in its folder: transformers takes further settings from what lies beside it.

    Raises:
        UserError: transformers cannot read the file, or it lacks weights.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder, file = str(path.parent), path.name
    try:
        read, report = load_with_report(AutoModelForCausalLM, folder, gguf_file=file, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file, trust_remote_code=False)
    except Exception as error:  # what stands in such a file makes transformers fail in any way
        raise UserError(f"{path.name}: cannot be read as a GGUF model ({error})") from error
    check_whole(path.name, read, report)
    # The model remembers that it came quantised and refuses to be saved, so its weights move to a new one.
    config = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig.from_dict(config))
    model.load_state_dict(read.state_dict(), strict=True)
    return model, tokenizer


def read_from_hub(model_id: str) -> tuple[Any, Any, str]:
    """Model and tokenizer of the Hugging Face hub in the precision they are stored in, and the commit.

    Raises:
        OSError, ValueError: the hub, or the network, does not give them.
        UserError: its files lack weights.
    """
    import huggingface_hub
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, report = load_with_report(AutoModelForCausalLM, model_id, dtype="auto", use_safetensors=True)
    check_whole(f"model {model_id}", model, report)
    tokenizer = AutoTokenizer.from_pretrained(model_id, trust_remote_code=False)
    # The cache keeps every commit in a folder of its name.
    commit = Path(huggingface_hub.hf_hub_download(model_id, "config.json")).parent.name
    return model, tokenizer, commit


def write_plain(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write weights (safetensors), settings and tokenizer; equal input gives equal bytes.

    Raises:
        UserError: the disk is full, which the weights' own library says in an error of its own.
    """
    from safetensors import SafetensorError

    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except SafetensorError as error:
        raise UserError(f"{folder}: cannot be written ({error}); make room there, then run again") from None
    # safetensors makes its files unreadable for everybody else; they shall be as the others are.
    for path in folder.glob("*.safetensors"):
        shutil.copymode(folder / "config.json", path)
    # A store names its model by these files: an update of transformers must not make it another model.
    for path in (folder / "config.json", folder / "generation_config.json"):
        if path.is_file():
            settings = read_json(path, "model's settings")
            settings.pop("transformers_version", None)
            write_json(path, settings)
