"""Which part of a model reads the text, how much of it at once, and which models are refused."""

from pathlib import Path
from typing import Any

from pipeline_common.errors import UserError


def check_kind(what: str, config: Any, adapter: str | None) -> None:
    """Refuse what would be run otherwise than its authors meant.

    Args:
        what: the model, for the message.
        config: of transformers.
        adapter: path of the adapter's settings that lie beside the model; None where none do.

    Raises:
        UserError: it is an encoder-decoder, or has an adapter.
    """
    if config.is_encoder_decoder or config.get_text_config().is_encoder_decoder:
        raise UserError(
            f"{what}: {config.model_type} is an encoder-decoder, whose decoder needs a text of its own; take "
            "a decoder (such as GPT-2 or Llama) or an encoder (such as BERT)"
        )
    if adapter is not None:
        raise UserError(
            f"{what}: an adapter lies beside it ({Path(adapter).name}) and would not be applied; merge it "
            "into the model (PEFT's merge_and_unload) and save that, or take the adapter's files away"
        )


def text_part(what: str, model: Any) -> Any:
    """The part of a model for pictures and text that reads the text; any other model itself.

    Raises:
        UserError: it cannot be told from the rest.
    """
    if model.config.get_text_config() is model.config:
        return model
    text = model.get_decoder()
    if text is model or text.config.get_text_config() is not text.config:
        raise UserError(
            f"{what}: {type(model).__name__} wraps a language model that cannot be told from the rest; save "
            "that language model by itself"
        )
    return text


def check_embeddings(what: str, model: Any) -> None:
    """Refuse a model whose embeddings are of another width than its residual stream.

    Raises:
        UserError: it is one.
    """
    width = model.get_input_embeddings().weight.shape[1]
    if width != model.config.hidden_size:
        raise UserError(
            f"{what}: its embeddings have {width} dimensions, its residual stream "
            f"{model.config.hidden_size}; a store holds both at one width, so take a model whose embeddings "
            "are not projected"
        )


def longest_input(model: Any) -> int | None:
    """The most tokens that a model takes, special ones included; None where it sets no limit.

    RoBERTa and its like count positions from behind that of their padding token, so they take fewer tokens
    than they have positions.
    """
    from torch import nn

    for name, module in model.named_modules():
        is_learned = name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
        if is_learned and module.padding_idx is not None:
            return int(module.num_embeddings - module.padding_idx - 1)
    longest: int | None = getattr(model.config, "max_position_embeddings", None)
    return longest
