from dataclasses import replace

import numpy as np
import pytest

from pipeline_common.errors import UserError
from pipeline_common.files import read_npz, write_npz
from s1_compute_all_features.feature_store import FeatureStore
from s4_classifier_data_prep.classifier_dataset import read_dataset, write_dataset
from s4_classifier_data_prep.load_sentence_data import hidden_to_concept, states_to_feature
from tests.synthetic_store import write_synthetic_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return FeatureStore(write_synthetic_store(tmp_path_factory.mktemp("store") / "store", n_sentences=40))


@pytest.fixture(params=["sentence", "token"])
def dataset(request, store):
    if request.param == "sentence":
        return hidden_to_concept(store, [0, 1], "mean", "standardize")
    return states_to_feature(store, None, store.find_sae(1, 8), 3, "token", "mean", "minmax")


def test_round_trip(dataset, tmp_path):
    write_dataset(tmp_path / "d.npz", dataset)
    again = read_dataset(tmp_path / "d.npz")
    for name, value in vars(dataset).items():
        if isinstance(value, np.ndarray):
            assert np.array_equal(getattr(again, name), value), name
            assert getattr(again, name).dtype == value.dtype, name
    assert (again.token is None) == (dataset.token is None)
    assert dataset.metadata.items() <= again.metadata.items()
    assert again.X.dtype == np.float32


def test_equal_datasets_give_equal_bytes(dataset, tmp_path):
    for name in ("a.npz", "b.npz"):
        write_dataset(tmp_path / name, dataset)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_readable_with_numpy_alone_and_without_pickle(dataset, tmp_path):
    write_dataset(tmp_path / "d.npz", dataset)
    with np.load(tmp_path / "d.npz", allow_pickle=False) as archive:
        assert all(archive[name].dtype != object for name in archive.files)
        assert set(archive["split"]) == {"train", "test"}


def test_truncated_file(dataset, tmp_path):
    path = tmp_path / "d.npz"
    write_dataset(path, dataset)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"d\.npz: damaged or not a classifier dataset"):
        read_dataset(path)


def rewrite(path, **changes):
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    write_npz(path, {**arrays, **changes})


def test_another_format_version(dataset, tmp_path):
    path = tmp_path / "d.npz"
    write_dataset(path, dataset)
    text = str(read_npz(path, ("metadata",), "x")["metadata"])
    rewrite(path, metadata=np.array(text.replace('"format_version": 2', '"format_version": 0')))
    with pytest.raises(UserError, match=r"format 0, this program reads format 2; make it again"):
        read_dataset(path)


def test_an_npz_of_something_else(tmp_path):
    write_npz(tmp_path / "d.npz", {"metadata": np.array('{"format": "other"}')})
    with pytest.raises(UserError, match="holds no classifier dataset"):
        read_dataset(tmp_path / "d.npz")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(dataset, tmp_path, value):
    spoilt = dataset.X.copy()
    spoilt[2, 1] = value
    write_dataset(tmp_path / "d.npz", replace(dataset, X=spoilt))
    with pytest.raises(UserError, match="'X' holds NaN or infinity"):
        read_dataset(tmp_path / "d.npz")


def test_rows_that_do_not_match(dataset, tmp_path):
    write_dataset(tmp_path / "d.npz", dataset)
    rewrite(tmp_path / "d.npz", group=np.arange(3))
    with pytest.raises(UserError, match="array 'group' has 3 rows"):
        read_dataset(tmp_path / "d.npz")
