"""What a store says of its tokens beside the table of them, and whether a run makes the same ones."""

from typing import Any

import numpy as np

from pipeline_common.errors import UserError
from pipeline_common.files import read_npz
from s1_compute_all_features.extraction import token_table
from s1_compute_all_features.store_layout import TOKEN_ARRAYS, block_folder
from s1_compute_all_features.tokenised_sentences import TokenisedSentences
from s1_compute_all_features.work_plan import StoreTask


def special_tokens_found(sentences: TokenisedSentences) -> dict[str, Any]:
    """An entry of the manifest about special tokens in the sentences' own text; nothing where there are none.

    ``with_opening`` counts sentences that begin with the name of the BOS token, of which exactly one (none
    without ``prepend_bos``) stands in front all the same; ``with_others`` counts sentences with other
    special tokens, which the model read and nobody stored.
    """
    counts = {"with_opening": sentences.n_with_opening, "with_others": sentences.n_with_special}
    return {"special_tokens_in_text": counts} if any(counts.values()) else {}


def refuse_other_tokens(task: StoreTask) -> None:
    """Make sure that the token tables that are there already are those that this run would write.

    Earlier programs showed the tokens of characters in pieces otherwise, and pooled by that.

    Raises:
        UserError: one is not; the message shows the first difference.
    """
    for number, block in enumerate(task.blocks):
        path = block_folder(task.folder, number) / "tokens.npz"
        if not path.exists():
            continue
        stored = read_npz(path, TOKEN_ARRAYS, "feature store file")
        wanted = token_table(task.sentences, block)
        for name in TOKEN_ARRAYS:
            there, here = stored[name], getattr(wanted, name)
            if np.array_equal(there, here):
                continue
            difference = "another number of tokens"
            if there.shape == here.shape:
                place = int(np.flatnonzero(there != here)[0])
                difference = (
                    f"{name} of token {place}: the store has {there[place].item()!r}, "
                    f"this run {here[place].item()!r}"
                )
            raise UserError(
                f"{path}: cannot go on with this store, whose tokens were made otherwise ({difference}); use "
                "--overwrite, or another --output"
            )
