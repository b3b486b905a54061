import pytest

from pipeline_common.errors import UserError
from s0_dataset_generation.reply_journal import Outcome, ReplyJournal

FIRST = Outcome(items=[{"id": "t1", "sentence": "Zoë said\n“no”."}], prompt_tokens=5)
SECOND = Outcome(failure="refused")


def test_round_trip(tmp_path):
    path = tmp_path / "new" / "journal.jsonl"
    journal = ReplyJournal(path)
    assert not path.exists()
    journal.append("a", FIRST)
    journal.append("b", SECOND)
    read = ReplyJournal(path)
    assert (read.get("a"), read.get("b"), read.get("c"), len(read)) == (FIRST, SECOND, None, 2)


def test_every_cut_within_the_last_line_loses_that_line_alone(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = ReplyJournal(path)
    journal.append("a", FIRST)
    n_whole = path.stat().st_size
    journal.append("b", SECOND)
    content = path.read_bytes()
    for n_bytes in range(n_whole, len(content)):
        path.write_bytes(content[:n_bytes])
        torn = ReplyJournal(path)
        assert (torn.get("a"), torn.get("b")) == (FIRST, None)
        assert path.stat().st_size == n_bytes  # opening alone writes nothing
        torn.append("b", SECOND)
        assert path.read_bytes() == content


def test_a_cut_in_the_first_line_leaves_an_empty_journal(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"reply_jou')
    journal = ReplyJournal(path)
    journal.append("a", FIRST)
    assert ReplyJournal(path).get("a") == FIRST


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('{"reply_journal": 99}\n', 1),
        ("sentence,label\n", 1),
        ('{"reply_journal": 1}\n{"digest": "a", "items": [], "cost": 1}\n', 2),
        ('{"reply_journal": 1}\n{"items": []}\n', 2),
        ('{"reply_journal": 1}\nnull\n', 2),
    ],
)
def test_a_damaged_or_other_file_is_refused_by_line(tmp_path, content, line):
    path = tmp_path / "journal.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=f"line {line}: not a line of this version's reply journal"):
        ReplyJournal(path)
