"""The parts that every way of extracting is made of, on one random model and a few random SAEs."""

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.random_gemma import D_MODEL, D_SAE, random_model, random_sentences, write_random_saes
from s1_compute_all_features.extraction import run_units
from s1_compute_all_features.language_model import (
    BLOCK_INPUT,
    TokenisedSentence,
    forward_states,
    length_sorted_batches,
)
from s1_compute_all_features.sae_configurations import ModelEntry, SaeConfigurations
from s1_compute_all_features.sae_encoder import load_encoder
from s1_compute_all_features.sae_weights import locate_sae
from s1_compute_all_features.work_plan import Extraction, Measurements, StoreTask, plan_blocks

if TYPE_CHECKING:
    from sae_lens import JumpReLUSAE

BATCH_TOKENS, BLOCK_TOKENS = 4096, 16384


@dataclass(frozen=True)
class Size:
    """How much of the whole is measured.

    Attributes:
        layers: of the model.
        saes: that this stage encodes with screening; copies of one, each read from its own name.
            Without screening it is one, whose reading is then not hidden behind another's encoding.
        sentences: that this stage encodes.
        forward_sentences: that pass through the layers.
        reference_sentences: of the reference loop.
        rounds: how often everything is timed; the fastest counts.
    """

    layers: int
    saes: int
    sentences: int
    forward_sentences: int
    reference_sentences: int
    rounds: int


class Bench:
    """The parts that all four ways are made of, on one random model and a few random SAEs."""

    def __init__(self, folder: Path, size: Size, device: str = "cpu") -> None:
        """Build model, sentences and SAEs."""
        self.folder = folder
        self.size = size
        self.device = device
        self.model = random_model(size.layers, device)
        self.sentences = random_sentences(size.sentences)
        states = self.states(self.sentences[:25]).cpu()
        entries = write_random_saes(folder / "saes", states, size.saes)
        self.configurations = SaeConfigurations(
            format_version=1,
            description="random weights of true size",
            model=ModelEntry(id="random"),
            release="",
            repo_id="",
            sae_root="saes",
            weights_format="gemma_scope",
            saes=entries,
        )
        self.saes = [locate_sae(self.configurations, entry, folder, None) for entry in entries]
        self.weights: Path = self.saes[0].weights  # type: ignore[assignment]

    @property
    def n_tokens(self) -> int:
        """Stored tokens of all sentences."""
        return sum(len(sentence.texts) for sentence in self.sentences)

    def states(self, sentences: Sequence[TokenisedSentence]) -> torch.Tensor:
        """What the SAEs read: [n_tokens, D_MODEL]."""
        return forward_states(self.model, sentences, [BLOCK_INPUT])[BLOCK_INPUT]

    @cached_property
    def sae(self) -> "JumpReLUSAE":
        """The first SAE as sae-lens runs it."""
        from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

        arrays = np.load(self.weights)
        sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=D_MODEL, d_sae=D_SAE, apply_b_dec_to_input=False))
        sae.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays.files})
        return sae.eval()

    def allowed_memory_bytes(self) -> int:
        """The model, two encoders (float32 and their bfloat16 copies), one block, and 1 GB."""
        model = sum(parameter.numel() * 4 for parameter in self.model.model.parameters())
        encoders = 2 * D_MODEL * D_SAE * (4 + 2)
        layers_run = self.size.forward_sentences * (self.size.layers + 1)
        states = max(layers_run, self.size.sentences) / self.size.sentences * self.n_tokens
        return int(model + encoders + states * D_MODEL * 4 + 10**9)

    def check(self) -> None:
        """(a), (b) and (c) find the same latents in the same sentences.

        Raises:
            SystemExit: they do not.
        """
        sae = self.sae
        batch = self.sentences[:8]
        states = self.states(batch)
        theirs = sae.encode(states).detach().numpy()
        single = np.concatenate([sae.encode(self.states([sentence])).detach().numpy() for sentence in batch])
        for screening in (False, True):
            ours = load_encoder(self.saes[0], self.configurations, "cpu", screening).encode(states).to_dense()
            for name, other in (("sae-lens", theirs), ("single sentences", single)):
                flips = int(((ours > 0) != (other > 0)).sum())
                both = (ours > 0) & (other > 0)
                close = np.allclose(ours[both], other[both], rtol=1e-3)
                if flips > 1e-4 * both.sum() + 2 or not close:
                    sys.exit(f"this stage and {name} differ: {flips} of {both.sum()} latents")
        print(f"check: {both.sum():,} active latents agree among (a), (b) and (c)")

    def layers_run(self) -> tuple[Measurements, float]:
        """(c) without SAEs: forward passes and the files of all layers; measurements and wall seconds."""
        return self._run("layers", self.sentences[: self.size.forward_sentences], n_saes=0)

    def sae_run(self, screening: bool) -> tuple[Measurements, float]:
        """(c) without layers: reading, encoding and the files of the SAEs; measurements and wall seconds."""
        name, n_saes = ("screened", self.size.saes) if screening else ("float32", 1)
        return self._run(name, self.sentences, n_saes, screening=screening)

    def whole_run(self, screening: bool) -> tuple[Measurements, float]:
        """(c) whole: all layers and all SAEs; measurements and wall seconds."""
        return self._run("whole", self.sentences, len(self.saes), screening, with_layers=True)

    def _run(
        self,
        name: str,
        sentences: Sequence[TokenisedSentence],
        n_saes: int,
        screening: bool = False,
        with_layers: bool = False,
    ) -> tuple[Measurements, float]:
        saes = self.saes[:n_saes]
        shutil.rmtree(self.folder / name, ignore_errors=True)
        task = StoreTask(
            folder=self.folder / name,
            sentences=sentences,
            blocks=plan_blocks([len(sentence.texts) for sentence in sentences], BLOCK_TOKENS),
            layers=[] if saes and not with_layers else range(self.size.layers),
            sae_names=[located.entry.name for located in saes],
            hidden_states="none" if saes and not with_layers else "all",
        )
        run = Extraction(
            tasks=[task],
            model=self.model,
            configurations=self.configurations,
            saes=saes,
            batch_tokens=BATCH_TOKENS,
            block_tokens=BLOCK_TOKENS,
            device=self.device,
            screening=screening,
        )
        start = time.perf_counter()
        measured = run_units(run, lambda tokens: None)
        return measured, time.perf_counter() - start

    def bare_forward(self) -> Callable[[], None]:
        """The model alone, in this stage's batches."""
        sentences = self.sentences[: self.size.forward_sentences]
        batches = []
        for batch in length_sorted_batches([len(sentence.ids) for sentence in sentences], BATCH_TOKENS):
            longest = max(len(sentences[index].ids) for index in batch)
            ids = torch.zeros(len(batch), longest, dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for row, index in enumerate(batch):
                ids[row, : len(sentences[index].ids)] = torch.from_numpy(sentences[index].ids)
                mask[row, : len(sentences[index].ids)] = 1
            batches.append((ids, mask))

        def run() -> None:
            with torch.inference_mode():
                for ids, mask in batches:
                    self.model.model(input_ids=ids, attention_mask=mask, use_cache=False)

        return run
