"""A few sentences to extract."""

import pytest

SENTENCES = [
    ("She told the clerk that the watch was new, although it was not.", 3),
    ("He counted the coins twice and gave back the one too many.", 1),
    ("The rain fell all night.", 0),
    ("I wrote the report in an hour; the numbers I made up.", 3),
    ("Perhaps he had not quite read the book he praised.", 2),
    ("The lie of the land was hard to see in fog.", 1),
    ("Two boats left before the tide turned.", 0),
    ("She let them think the cake was hers.", 2),
    ("Nobody knew the tune, so they hummed.", 0),
    ("He signed his brother's name on the form.", 3),
    ("The auditors found every receipt in order.", 1),
    ("It was nearly true, what he said.", 2),
]


@pytest.fixture
def labelled_csv(tmp_path):
    """Twelve sentences with a further column."""
    path = tmp_path / "tiny.csv"
    rows = [f'"{sentence}",{label},note {i}' for i, (sentence, label) in enumerate(SENTENCES)]
    path.write_text("sentence,concept_strength_label,source\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path
