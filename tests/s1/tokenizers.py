"""Small tokenizers of every kind: how they cut a sentence, and which special tokens they put around it."""

from tokenizers import ByteLevelBPETokenizer, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tests.fake_hub import CORPUS, small_tokenizer

_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_MERGES = [("\u2581", "t"), ("t", "o"), ("h", "e"), ("\u2581t", "he"), ("\u2581", "\u2581")]


def byte_level(prefix_space: bool = False) -> PreTrainedTokenizerFast:
    """As GPT-2's, with some tokens that end in the midst of a character."""
    bpe = ByteLevelBPETokenizer(add_prefix_space=prefix_space)
    texts = [*CORPUS, "\u201cso\u201d \u2018no\u2019 \u2014 \u2026 caf\u00e9 na\u00efve"]
    special = ["<pad>", "<eos>", "<bos>"]
    bpe.train_from_iterator(texts, vocab_size=330, special_tokens=special, show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )


def byte_fallback(prefix_space: bool = False) -> PreTrainedTokenizerFast:
    """As Gemma's, or as Llama's with ``prefix_space``: characters without a token become byte tokens."""
    vocabulary: dict[str, int] = {}
    letters = [*"\u2581abcdefghijklmnopqrstuvwxyz.,", *(one + other for one, other in _MERGES)]
    for piece in ["<pad>", "<eos>", "<bos>", *_BYTES, *letters]:
        vocabulary.setdefault(piece, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=_MERGES, byte_fallback=True))
    steps = [normalizers.Replace(" ", "\u2581")]
    back = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix_space:
        steps, back = [normalizers.Prepend("\u2581"), *steps], [*back, decoders.Strip(" ", 1, 0)]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(back)
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )


def unigram() -> PreTrainedTokenizerFast:
    """As T5's and XLNet's, with byte tokens."""
    pieces = [("<unk>", 0.0), *((byte, -9.0) for byte in _BYTES), ("\u2581", -2.0), ("\u2581the", -2.5)]
    tokenizer = Tokenizer(
        models.Unigram([*pieces, *((letter, -4.0) for letter in "abcdehot.")], unk_id=0, byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def word_piece(lower_case: bool = True) -> PreTrainedTokenizerFast:
    """As BERT's: words and their ends, spaces passed over, [CLS] in front and [SEP] behind."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = ["he", "the", "lie", "##d", ".", ",", "to", "cafe", "caf\u00e9", "He", "The"]
    tokenizer = Tokenizer(
        models.WordPiece({word: place for place, word in enumerate([*special, *words])}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower_case)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(names))


KINDS = {
    "byte level": byte_level,
    "byte level with a prefix space": lambda: byte_level(True),
    "byte fallback": byte_fallback,
    "byte fallback with a prefix space": lambda: byte_fallback(True),
    "unigram": unigram,
    "small": small_tokenizer,
}
"""Tokenizers that lose nothing of a text."""
