"""Bad input of stage 0: labelled CSVs, sentences without labels, CSVs of ETHICS, reply journals."""

from tests.bad_input.cases import Kind, case, content, cut, folder_instead, gone, swap

HEADER = "sentence,concept_strength_label\n"
ROWS = "One sentence.,0\nAnother one.,3\n"

LABELLED = Kind(
    name="labelled CSV",
    script="s0_dataset_generation.visualize_labels",
    arguments="lies.csv --output lies.png",
    parts="lies.csv",
    file="lies.csv",
    where="lies.csv",
    cases=(
        case("missing", gone, "no such file"),
        case("a folder", folder_instead, "directory"),
        case("empty", content(""), "empty file"),
        case("header alone", content(HEADER), "no sentences"),
        case("no label column", content("sentence,label\nOne.,0\n"), "'concept_strength_label'"),
        case("a column twice", content("sentence,sentence\nOne.,0\n"), "'sentence'", "twice"),
        case("label 4", content(HEADER + ROWS + "Third.,4\n"), "line 4", "concept_strength_label", "'4'"),
        case("label 1.0", content(HEADER + "One.,1.0\n"), "line 2", "'1.0'"),
        case("an Arabic digit", content(HEADER + "One.,\u0663\n"), "line 2", "concept_strength_label"),
        case("a blank sentence", content(HEADER + ROWS + '" ",1\n'), "line 4", "blank"),
        case("too many cells", content(HEADER + "One, two, three.,1\n"), "line 2", "4 cells"),
        case("an open quote", content(HEADER + '"One.,1\n'), "line 2"),
        case("Latin-1", content(HEADER.encode() + b"Caf\xe9.,1\n"), "byte 35", "UTF-8"),
        case("UTF-16", content((HEADER + ROWS).encode("utf-16")), "byte 0", "UTF-8"),
        case("a NUL byte", content(HEADER + "One\0two.,1\n"), "line 2", "NUL"),
    ),
)

UNLABELLED = Kind(
    name="sentences to label",
    script="s0_dataset_generation.label_sentences",
    arguments="--trait Dishonesty --input-file lies.csv --output-file labelled.csv --dry-run",
    parts="lies.csv",
    file="lies.csv",
    where="lies.csv",
    cases=(
        case("missing", gone, "no such file"),
        case("empty", content(b""), "empty file"),
        case("header alone", content("sentence\n"), "no sentences"),
        case("another column", content("text\nOne.\n"), "'sentence'"),
        case("a blank sentence", content('sentence\nOne.\n"\t"\n'), "line 3"),
        case("a sentence twice", content("sentence\nOne.\nTwo.\nOne.\n"), "line 4"),
        case("intended label 7", content("sentence,intended_label\nOne.,7\n"), "line 2", "intended_label"),
        case("a cell too few", content("sentence,intended_label\nOne.\n"), "line 2", "1 cells"),
        case("a million characters", content("sentence\n" + "x" * 1_000_000 + "\n"), "line 2", "field"),
        case("a carriage return alone", content('sentence\nOne.\n"Two'), "line 3"),
        case("random bytes", content(bytes(range(128, 256))), "byte 0"),
    ),
)

ETHICS = Kind(
    name="CSV of ETHICS",
    script="s0_dataset_generation.import_ethics",
    arguments="--input-file ethics.csv --trait Dishonesty --output-file out.csv",
    parts="ethics.csv",
    file="ethics.csv",
    where="ethics.csv",
    cases=(
        case("missing", gone, "no such file"),
        case("empty", content("\n\n"), "header"),
        case("another header", content("verdict,text\n1,He lied.\n"), "label,scenario"),
        case("label 2", swap("\n1,", "\n2,"), "line 2", "'2'"),
        case("no trait", swap(" [SEP] dishonest", ""), "line 2", "[SEP]"),
        case("no text", swap("She kept the change that was not hers.", ""), "line 2", "blank"),
        case("one label", content("label,scenario\n1,She lied. [SEP] dishonest\n"), "0 of label 0"),
        case(
            "nothing of the trait", content("label,scenario\n1,She ran. [SEP] brave\n"), "0 texts of label 3"
        ),
        case("half of it", cut(0.5), "label 0"),
        case("a stray comma", swap("She kept", "She, kept"), "line 2", "3 cells"),
    ),
)

JOURNAL = Kind(
    name="reply journal",
    script="s0_dataset_generation.label_sentences",
    arguments="--trait Dishonesty --input-file lies.csv --output-file labelled.csv "
    "--base-url http://127.0.0.1:9/v1",
    parts="lies.csv labelled_journal.jsonl",
    file="labelled_journal.jsonl",
    where="labelled_journal.jsonl",
    cases=(
        case("a text file", content("notes of mine\n"), "line 1"),
        case("an empty line", content("\n"), "line 1"),
        case("another version", swap('"reply_journal": 1', '"reply_journal": 0'), "line 1"),
        case("no header", swap('{"reply_journal": 1}\n', ""), "line 1"),
        case("a number", content('{"reply_journal": 1}\n7\n'), "line 2"),
        case("no digest", swap('"digest": "a", ', ""), "line 2", "digest"),
        case("an unknown key", swap('"failure"', '"mistake"'), "line 2", "mistake"),
        case("items of another kind", swap('"items": []', '"items": 3'), "line 2", "items"),
        case("an item that is no object", swap('"items": []', '"items": ["x"]'), "line 2", "items"),
        case(
            "tokens as text", swap('"prompt_tokens": 1', '"prompt_tokens": "many"'), "line 2", "prompt_tokens"
        ),
        case("a reply that is no text", swap('"reply": null', '"reply": 5'), "line 2", "reply"),
        case("not UTF-8", content(b'{"reply_journal": 1}\n"\xff"\n'), "line 2"),
        case("deeply nested", content('{"reply_journal": 1}\n' + "[" * 100_000 + "\n"), "line 2"),
        case("a folder", folder_instead, "directory"),
    ),
)

KINDS = (LABELLED, UNLABELLED, ETHICS, JOURNAL)
