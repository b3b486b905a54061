"""Train sparse autoencoders for a language model that has none published."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline_common.command_line import (
    HelpFormatter,
    configure_logging,
    count,
    index_ranges,
    number_type,
    positive_int,
)
from pipeline_common.errors import exit_codes, on_interrupt

DESCRIPTION = """\
Train one sparse autoencoder per layer on any causal language model that the pipeline runs, from text files
and CSVs, and measure it on text that it did not see. The result is a folder with SAEs in sae-lens's format,
a configuration file for extract_sae_features.py, and a model card with what was measured.

  uv run python train_saes.py --config smollm2_configurations.json --texts my_texts/*.txt \\
      --layers 10,16,22 --width 3072 --l0 40 --tokens 1500000 --output my_saes

One forward pass serves all layers. A run that was stopped goes on where it was when the same command is given
again.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=HelpFormatter)
    model = parser.add_argument_group("model")
    which = model.add_mutually_exclusive_group(required=True)
    which.add_argument("--config", type=Path, help="configuration file whose model is taken")
    which.add_argument("--model", help="hub id or folder of the model")
    model.add_argument(
        "--no-bos", action="store_true", help="with --model: put no BOS token in front of a text"
    )
    model.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="its precision"
    )
    model.add_argument(
        "--device", choices=("auto", "cuda", "mps", "cpu"), default="auto", help="where to compute"
    )
    model.add_argument("--threads", type=positive_int, help="CPU threads (default: what torch chooses)")
    model.add_argument("--batch-tokens", type=positive_int, default=2048, help="positions per forward pass")
    text = parser.add_argument_group("text")
    text.add_argument(
        "--texts",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="text files with a document per line, and CSVs with a column sentence",
    )
    text.add_argument("--tokens", type=positive_int, default=1_500_000, help="tokens to train on, each once")
    text.add_argument(
        "--held-out-tokens",
        type=positive_int,
        default=60_000,
        help="tokens of other documents to measure on",
    )
    text.add_argument(
        "--measure",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="further files to measure on, which are not trained on",
    )
    text.add_argument(
        "--context", type=number_type(int, 8), default=128, help="the most tokens that the model sees at once"
    )
    text.add_argument("--note", default="", help="a sentence on the text, for the model card")
    saes = parser.add_argument_group("SAEs")
    saes.add_argument("--layers", type=index_ranges, required=True, help="layers to train for, e.g. 10,16,22")
    saes.add_argument("--width", type=positive_int, required=True, help="features per SAE")
    saes.add_argument(
        "--l0", type=number_type(float, 1), default=40.0, help="mean number of active features per token"
    )
    saes.add_argument(
        "--learning-rate", type=number_type(float, 1e-9), default=2e-3, help="peak of the learning rate"
    )
    saes.add_argument("--step-tokens", type=positive_int, default=1024, help="tokens of a training step")
    saes.add_argument(
        "--autocast",
        action="store_true",
        help="multiply in bfloat16 while training: faster, a little rougher",
    )
    saes.add_argument("--seed", type=count, default=0, help="of first weights and random orders")
    saes.add_argument(
        "--weights-dtype",
        choices=("float32", "float16"),
        default="float32",
        help="precision of the matrices on disk",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the SAEs")
    parser.add_argument("--overwrite", action="store_true", help="replace SAEs that are already there")
    return parser


@exit_codes
@on_interrupt("what is complete is kept; give the same command again to go on")
def main(argv: Sequence[str] | None = None) -> int:
    """Train; exit code 0 done, 1 the data or the run failed, 2 wrong usage."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.no_bos and arguments.config is not None:
        parser.error("--no-bos goes with --model; a configuration says prepend_bos itself")
    configure_logging("s1_compute_all_features")
    from s1_compute_all_features.saes.training_run import run

    script = "train_saes.py"
    run(arguments, f"uv run python {script} {shlex.join(sys.argv[1:] if argv is None else argv)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
