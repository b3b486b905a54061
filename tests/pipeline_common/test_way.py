import pytest

from pipeline_common.errors import UserError
from pipeline_common.files import check_way, make_way


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_way_is_free_where_nothing_or_an_empty_folder_stands(tmp_path):
    for overwrite in (False, True):
        check_way(tmp_path / "new", overwrite, "plots", "plots.json")
        (tmp_path / "empty").mkdir(exist_ok=True)
        check_way(tmp_path / "empty", overwrite, "plots", "plots.json")
    make_way(tmp_path / "empty", False, "plots", "plots.json")
    assert names_in(tmp_path) == []


def test_our_own_result_is_replaced_only_when_asked(tmp_path):
    folder, file = tmp_path / "plots", tmp_path / "a.npz"
    folder.mkdir()
    (folder / "plots.json").touch()
    (folder / "inner").mkdir()
    (folder / "inner" / "plot.png").touch()
    file.touch()
    for path, marker in ((folder, "plots.json"), (file, None)):
        for refuse in (check_way, make_way):
            with pytest.raises(
                UserError, match="already exists; choose another --output for the plots, or add"
            ):
                refuse(path, False, "plots", marker)
        check_way(path, True, "plots", marker)
        assert path.exists()  # checking deletes nothing
        make_way(path, True, "plots", marker)
        assert not path.exists()


@pytest.mark.parametrize("marker", ["plots.json", None])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_foreign_folder_is_never_replaced(marker, overwrite, tmp_path):
    folder = tmp_path / "thesis"
    (folder / "plots.json").mkdir(parents=True)  # a folder of that name is no marker
    (folder / "chapter.txt").write_text("irreplaceable")
    for refuse in (check_way, make_way):
        with pytest.raises(UserError, match="a folder that holds something else than plots; choose another"):
            refuse(folder, overwrite, "plots", marker)
    assert (folder / "chapter.txt").read_text() == "irreplaceable"


def test_a_file_is_never_replaced_by_a_folder(tmp_path):
    (tmp_path / "data.csv").write_text("irreplaceable")
    for refuse in (check_way, make_way):
        with pytest.raises(UserError, match=r"data\.csv: a file; expected a folder for the plots"):
            refuse(tmp_path / "data.csv", True, "plots", "plots.json")
    assert (tmp_path / "data.csv").read_text() == "irreplaceable"
