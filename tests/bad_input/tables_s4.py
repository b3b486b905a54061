"""Bad input between stages 4 and 5: classifier datasets."""

import json

import numpy as np

from tests.bad_input.cases import Kind, arrays, case, content, cut, gone


def metadata(key, value):
    """The dataset's description, changed."""

    def change(array):
        description = json.loads(str(array))
        *parents, last = key.split(".")
        holder = description
        for part in parents:
            holder = holder[part]
        holder[last] = value
        return np.array(json.dumps(description))

    return arrays(metadata=change)


DATASET = Kind(
    name="classifier dataset",
    script="s5_classifier_training.framework.train",
    arguments="experiment",
    parts="lies.npz experiment/working",
    file="lies.npz",
    where="lies.npz",
    cases=(
        case("missing", gone, "does not exist"),
        case("cut", cut(0.5), "damaged"),
        case("a picture", content(b"\x89PNG\r\n\x1a\n"), "damaged"),
        case("no inputs", arrays(X=None), "'X'"),
        case("a description that is no JSON", arrays(metadata="{"), "holds no"),
        case("another version", metadata("format_version", 1), "format 1"),
        case("an unknown normalisation", metadata("normalization", "robust"), "normalization", "robust"),
        case("no target", metadata("target", None), "target"),
        case("a row too few", arrays(y=lambda a: a[1:]), "'X'"),
        case("inputs of one dimension", arrays(X=lambda a: a[:, 0]), "'X'"),
        case("inputs as text", arrays(X=lambda a: a.astype(str)), "'X'"),
        case("NaN", arrays(X=lambda a: a * np.nan), "'X'", "NaN"),
        case("a third split", arrays(split=lambda a: np.where(a == "test", "dev", a)), "split", "dev"),
        case("a group on both sides", arrays(group=lambda a: a * 0), "group 0"),
        case("a sentence outside", arrays(sentence_index=lambda a: a + 100), "sentence_index"),
    ),
)

KINDS = (DATASET,)
