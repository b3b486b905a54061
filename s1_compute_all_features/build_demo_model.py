"""Train the embedded default: a tiny Gemma-2-architecture language model and JumpReLU SAEs for it.

It exists so that the whole pipeline runs anywhere, through exactly the code path of the real model. What
its features say about a trait says nothing about real models.
"""

import argparse
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concept_evaluation.splits import near_duplicate_pairs
from pipeline_common.claims import claim_output
from pipeline_common.command_line import HelpFormatter, Stopwatch, configure_logging
from pipeline_common.errors import UserError, exit_codes
from pipeline_common.files import check_way, read_json, scratch_folder, sha256_of_json, write_json, write_npz
from pipeline_common.provenance import library_versions
from s0_dataset_generation.labelled_sentences import assign_split, read_labelled_sentences
from s1_compute_all_features.sae_configurations import (
    FORMAT_VERSION,
    STAGE_FOLDER,
    ModelEntry,
    SaeConfigurations,
    SaeEntry,
    configurations_as_json,
)

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

TRAITS = ("dishonesty", "aggression", "caring", "bravery", "unfairness")
DATA_FOLDER = STAGE_FOLDER.parent / "s0_dataset_generation" / "expanded_data"
CONFIGURATION = "demo_configurations.json"
BUILD = "build.json"
LANGUAGE_MODEL = "tiny_gemma2_demonstration"


@dataclass(frozen=True)
class Recipe:
    """Every number of the training; a change rebuilds the model.

    Attributes:
        threads: CPU threads, fixed because other counts round differently; one, because two that wait for
            each other take many times as long beside other work.
        l0s: mean number of active latents per token that the SAEs of a layer are trained to.
        sae_steps: training steps of an SAE, of ``sae_batch`` tokens each.
    """

    seed: int = 0
    threads: int = 1
    n_layers: int = 6
    d_model: int = 128
    vocabulary: int = 2000
    epochs: int = 6
    batch_sentences: int = 16
    learning_rate: float = 3e-3
    warm_up: float = 0.05
    d_sae: int = 512
    l0s: tuple[int, ...] = (8, 24)
    sae_steps: int = 250
    sae_batch: int = 512
    sae_learning_rate: float = 3e-3


def training_texts(data_folder: Path = DATA_FOLDER, traits: Sequence[str] = TRAITS) -> list[str]:
    """Train-split sentences of the shipped datasets, none of them like a held-out one of any dataset."""
    texts: list[str] = []
    held_out: list[bool] = []
    for trait in traits:
        data = read_labelled_sentences(data_folder / f"{trait}.csv")
        texts += data.sentences
        held_out += assign_split(data).held_out.tolist()
    tainted = {
        train
        for first, second, _ in near_duplicate_pairs(texts)
        for train, other in ((first, second), (second, first))
        if held_out[other]
    }
    return [text for index, text in enumerate(texts) if not held_out[index] and index not in tainted]


def train_tokenizer(texts: Sequence[str], recipe: Recipe) -> Any:
    """A byte-level BPE tokenizer that puts ``<bos>`` in front, as Gemma's does."""
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    special = ["<pad>", "<eos>", "<bos>"]
    bpe.train_from_iterator(texts, vocab_size=recipe.vocabulary, special_tokens=special, show_progress=False)
    bpe.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", special.index("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )


def train_language_model(texts: Sequence[str], tokenizer: Any, recipe: Recipe) -> Any:
    """Train transformers' own ``Gemma2ForCausalLM`` on next-token prediction, one sentence a row."""
    import torch
    from tqdm import tqdm
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(recipe.seed)
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.d_model,
        intermediate_size=4 * recipe.d_model,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=recipe.d_model // 4,
        query_pre_attn_scalar=recipe.d_model // 4,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        attn_implementation="eager",
    )
    model = Gemma2ForCausalLM(config).train()
    rows = sorted(tokenizer(list(texts))["input_ids"], key=len)
    batches = [
        rows[start : start + recipe.batch_sentences] for start in range(0, len(rows), recipe.batch_sentences)
    ]
    n_steps = recipe.epochs * len(batches)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.1
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=n_steps, pct_start=recipe.warm_up
    )
    order = np.random.default_rng(recipe.seed)
    with tqdm(total=n_steps, desc="language model", unit="step") as bar:
        for _ in range(recipe.epochs):
            for index in order.permutation(len(batches)):
                ids = torch.nn.utils.rnn.pad_sequence(
                    [torch.tensor(row) for row in batches[index]], True, tokenizer.pad_token_id
                )
                mask = (ids != tokenizer.pad_token_id).long()
                labels = ids.masked_fill(mask == 0, -100)
                loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
    return model.eval()


def hidden_states_of(model_folder: Path, texts: Sequence[str], n_layers: int) -> list["torch.Tensor"]:
    """Hidden states of every layer on the texts, through the extraction's own forward pass.

    Returns:
        Per layer float32 [n_tokens, d_model], special tokens left out.
    """
    import torch

    from s1_compute_all_features.language_model import (
        forward_states,
        length_sorted_batches,
        load_language_model,
        tokenise,
    )

    model = load_language_model(ModelEntry(id=str(model_folder)), model_folder, "cpu", "float32")
    sentences = tokenise(model, texts, prepend_bos=True)
    captured = [
        forward_states(model, [sentences[index] for index in batch], range(n_layers))
        for batch in length_sorted_batches([len(sentence.ids) for sentence in sentences], 4096)
    ]
    return [torch.cat([states[layer] for states in captured]).clone() for layer in range(n_layers)]


def train_sae(states: "torch.Tensor", l0: int, recipe: Recipe) -> dict[str, np.ndarray]:
    """Train one SAE with sae-lens's trainer and return it in Gemma Scope's tensors.

    BatchTopK (Bussmann et al. 2024) keeps ``l0`` latents per token on average and is saved as a
    JumpReLU SAE with one threshold.

    Args:
        states: float32 [n_tokens, d_model].
        l0: mean number of active latents per token.
        recipe: the numbers of the training.

    Returns:
        W_enc [d_model, d_sae], W_dec [d_sae, d_model], b_enc, b_dec, threshold; float32.
    """
    import torch
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(recipe.seed)
    sae = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(
            d_in=recipe.d_model,
            d_sae=recipe.d_sae,
            k=l0,
            topk_threshold_lr=0.02,
            apply_b_dec_to_input=False,
            normalize_activations="expected_average_only_in",
        )
    )
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=recipe.sae_steps * recipe.sae_batch,
            train_batch_size_samples=recipe.sae_batch,
            lr=recipe.sae_learning_rate,
            lr_end=recipe.sae_learning_rate / 10,
            n_batches_for_norm_estimate=20,
            dead_feature_window=50,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae,
        _endless_batches(states, recipe),
    )
    trainer.fit()
    tensors = sae.state_dict()
    sae.process_state_dict_for_saving_inference(tensors)
    names = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    return {name: tensors[name].detach().float().numpy() for name in names}


def _endless_batches(states: "torch.Tensor", recipe: Recipe) -> Iterator["torch.Tensor"]:
    import torch

    generator = torch.Generator().manual_seed(recipe.seed)
    while True:
        for rows in torch.randperm(len(states), generator=generator).split(recipe.sae_batch):
            if len(rows) == recipe.sae_batch or len(states) < recipe.sae_batch:
                yield states[rows]


def build(output: Path, texts: Sequence[str], recipe: Recipe, inputs: dict[str, Any]) -> None:
    """Train everything into a temporary sibling and rename it: a killed build leaves no half model."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.threads)
    try:
        with scratch_folder(output) as work:
            _build_in(work, texts, recipe, inputs)
            shutil.rmtree(output, ignore_errors=True)
            os.replace(work, output)
    finally:
        torch.set_num_threads(threads)


def _build_in(work: Path, texts: Sequence[str], recipe: Recipe, inputs: dict[str, Any]) -> None:
    tokenizer = train_tokenizer(texts, recipe)
    language_model = train_language_model(texts, tokenizer, recipe)
    _save(work / LANGUAGE_MODEL, tokenizer, language_model)
    states = hidden_states_of(work / LANGUAGE_MODEL, texts, recipe.n_layers)
    entries: list[SaeEntry] = []
    for layer in range(recipe.n_layers):
        for l0 in recipe.l0s:
            logger.info(
                "SAE %d of %d: layer %d, l0 %d",
                len(entries) + 1,
                recipe.n_layers * len(recipe.l0s),
                layer,
                l0,
            )
            path = f"layer_{layer}/width_{recipe.d_sae}/average_l0_{l0}"
            write_npz(work / "saes" / path / "params.npz", train_sae(states[layer], l0, recipe))
            entries.append(
                SaeEntry(
                    name=f"layer_{layer:02d}_l0_{l0}",
                    layer=layer,
                    average_l0=l0,
                    hook=f"blocks.{layer}.hook_resid_post",
                    sae_id=path,
                    path=path,
                    neuronpedia_id="",
                )
            )
    configurations = SaeConfigurations(
        format_version=FORMAT_VERSION,
        description="Embedded demonstration model: a tiny Gemma-2 trained on the shipped "
        "train-split sentences",
        model=ModelEntry(id=LANGUAGE_MODEL, demonstration=True),
        release="",
        repo_id="",
        sae_root="saes",
        weights_format="gemma_scope",
        saes=tuple(entries),
    )
    write_json(work / CONFIGURATION, configurations_as_json(configurations))
    write_json(work / BUILD, inputs)


def _save(folder: Path, *parts: Any) -> None:
    """Save tokenizer and model as transformers does.

    Raises:
        UserError: the disk is full, which the weights' own library says in an error of its own.
    """
    from safetensors import SafetensorError

    try:
        for part in parts:
            part.save_pretrained(folder)
    except SafetensorError as error:
        raise UserError(f"{folder}: cannot be written ({error}); make room there, then run again") from None


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        description="Train the demonstration model and its SAEs from the shipped train-split sentences, in\n"
        "a few minutes on two CPU cores. Built once; built again when the sentences, the recipe or a\n"
        "library change.\n\n"
        "  uv run python build_demo_model.py\n"
        "  uv run python extract_sae_features.py --config demo_model/demo_configurations.json --input "
        "... --output ...",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=STAGE_FOLDER / "demo_model", help="folder to build")
    parser.add_argument("--force", action="store_true", help="build even if the model is up to date")
    return parser


@exit_codes
def main(argv: Sequence[str] | None = None) -> int:
    """Build the demonstration model; exit code 0, or 1 with one line on stderr."""
    arguments = build_parser().parse_args(argv)
    configure_logging("s1_compute_all_features")
    watch = Stopwatch()
    recipe = Recipe()
    texts = training_texts()
    versions = library_versions(("torch", "transformers", "sae-lens", "tokenizers"))
    versions.pop("python")
    versions.pop("sae-concept-features")
    inputs = {
        "language_model": LANGUAGE_MODEL,
        "recipe": {**asdict(recipe), "l0s": list(recipe.l0s)},
        "texts": sha256_of_json(texts),
        "libraries": versions,
    }
    output: Path = arguments.output
    if (
        not arguments.force
        and (output / BUILD).exists()
        and read_json(output / BUILD, "build record") == inputs
    ):
        print(f"{output / CONFIGURATION}: up to date")
        return 0
    check_way(output, True, "demonstration model", BUILD)
    claim_output(output, marker=BUILD)
    logger.info("%d train-split sentences of %d shipped datasets", len(texts), len(TRAITS))
    build(output, texts, recipe, inputs)
    print(f"{output / CONFIGURATION}: {recipe.n_layers * len(recipe.l0s)} SAEs in {watch.seconds:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
