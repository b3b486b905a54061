"""One stage: when it runs, when it is skipped, and what it replaces; with a tiny script in its place."""

import os
import subprocess
import sys

import pytest

import run_pipeline as rp
from pipeline_common.errors import UserError

TINY_SCRIPT = """
import sys
from pathlib import Path

output, source = Path("out.txt"), Path("in.txt")
print("arguments", *sys.argv[1:], flush=True)
if output.exists() and not {"--overwrite", "--resume"} & set(sys.argv):
    raise SystemExit("error: out.txt: already exists")
if source.read_text() == "bad":
    raise SystemExit("error: in.txt: bad")
stop = Path("stop").read_text() if Path("stop").exists() else None
if stop == "half-way":
    output.write_text("half")
if stop is not None:
    raise SystemExit(130)
output.write_text(source.read_text().upper())
"""


@pytest.fixture
def stage(project):
    """A stage that writes in.txt in capitals to out.txt, and refuses to replace it unasked."""
    folder = project / "s1_compute_all_features"
    (folder / "tiny.py").write_text(TINY_SCRIPT)
    (folder / "in.txt").write_text("first")
    return rp.Stage(
        "s1", folder, [["tiny.py", "--output", "out.txt"]], [folder / "in.txt"], [folder / "out.txt"]
    )


@pytest.fixture
def run(project, capfd):
    """Run a stage and return what it printed, its script's output included."""

    def run_one(stage):
        capfd.readouterr()
        rp.run_stage(stage, project / "state.json")
        return capfd.readouterr().out

    return run_one


def resuming(stage):
    return rp.Stage(**{**vars(stage), "resumes": True})


def test_a_command_is_printed_before_it_runs_and_the_stage_is_skipped_afterwards(stage, run):
    printed = run(stage)
    assert printed.splitlines()[1:3] == [
        "$ cd s1_compute_all_features && uv run python tiny.py --output out.txt",
        "arguments --output out.txt",
    ]
    assert printed.splitlines()[3].startswith("s1: done in ")
    assert run(stage) == "s1: complete and current, skipped\n"


def test_the_printed_command_can_be_pasted(project, capfd):
    folder = project / "s1_compute_all_features"
    (folder / "say.py").write_text("import sys; print(repr(sys.argv[1:]))")
    rp.call(folder, ["say.py", "a b", "it's", "$HOME", ""])
    command, said = capfd.readouterr().out.splitlines()[1:]
    pasted = command.removeprefix("$ ").replace("uv run python", f"'{sys.executable}'")
    again = subprocess.run(["sh", "-c", pasted], cwd=project, capture_output=True, text=True, check=True)
    assert again.stdout.strip() == said == repr(["a b", "it's", "$HOME", ""])


def change_input(stage):
    stage.inputs[0].write_text("second")
    return stage


def change_command(stage):
    return rp.Stage(**{**vars(stage), "commands": [[*stage.commands[0], "--more"]]})


def change_code(stage):
    (stage.folder / "helper.py").write_text("x = 1")
    return stage


def change_shared_code(stage):
    (rp.SHARED_CODE[0] / "files.py").write_text("x = 1")
    return stage


def change_template(stage):
    (stage.folder / "templates").mkdir()
    (stage.folder / "templates" / "page.html").write_text("<p>")
    return stage


def change_output(stage):
    stage.outputs[0].write_text("by hand")
    return stage


def delete_output(stage):
    stage.outputs[0].unlink()
    return stage


@pytest.mark.parametrize(
    "change",
    [
        change_input,
        change_command,
        change_code,
        change_shared_code,
        change_template,
        change_output,
        delete_output,
    ],
)
def test_any_change_runs_the_stage_again_and_replaces_what_it_made(change, stage, run):
    run(stage)
    changed = change(stage)
    printed = run(changed)
    assert printed.splitlines()[2].endswith("--overwrite")
    assert stage.outputs[0].read_text() == stage.inputs[0].read_text().upper()
    assert run(changed) == "s1: complete and current, skipped\n"


def test_a_change_elsewhere_runs_nothing_again(stage, run, project):
    run(stage)
    (project / "s2_find_top_features" / "other.py").write_text("x = 1")
    (stage.folder / "README.md").write_text("words")
    os.utime(stage.inputs[0], (0, 0))
    assert "skipped" in run(stage)


def test_what_somebody_else_made_is_refused_every_time(stage, run):
    stage.outputs[0].write_text("irreplaceable")
    for _ in range(2):
        with pytest.raises(UserError, match=r"s1_compute_all_features: tiny\.py ended with exit code 1"):
            run(stage)
    assert stage.outputs[0].read_text() == "irreplaceable"
    stage.outputs[0].unlink()
    assert "done" in run(stage)


def test_a_failed_stage_runs_again(stage, run, capfd):
    stage.inputs[0].write_text("bad")
    for _ in range(2):
        with pytest.raises(
            UserError, match="ended with exit code 1, see above; when it is mended, run the same"
        ):
            run(stage)
        assert "error: in.txt: bad" in capfd.readouterr().err
    stage.inputs[0].write_text("good")
    assert "done" in run(stage)
    stage.inputs[0].write_text("bad")
    with pytest.raises(UserError):
        run(stage)
    assert stage.outputs[0].read_text() == "GOOD"
    stage.inputs[0].write_text("better")
    assert "--overwrite" in run(stage)
    assert stage.outputs[0].read_text() == "BETTER"


def test_an_output_that_no_command_wrote_is_an_error(stage, run):
    (stage.folder / "tiny.py").write_text("")
    with pytest.raises(UserError, match=r"s1: .*out\.txt was not written, although every command succeeded"):
        run(stage)


def test_the_second_command_does_not_run_after_the_first_failed(stage, run, capfd):
    stage.inputs[0].write_text("bad")
    with pytest.raises(UserError):
        run(rp.Stage(**{**vars(stage), "commands": [["tiny.py", "one"], ["tiny.py", "two"]]}))
    assert [line for line in capfd.readouterr().out.splitlines() if line.startswith("arguments")] == [
        "arguments one"
    ]


def test_a_damaged_state_is_told_in_one_line(stage, run, project):
    (project / "state.json").write_text('{"s1": ')
    with pytest.raises(UserError, match=r"state\.json: line 1: not valid JSON .*expected a pipeline state"):
        run(stage)


def flag_of(printed):
    return printed.splitlines()[1].split()[-1]


def test_an_unfinished_extraction_is_resumed_and_a_finished_one_replaced(stage, run):
    stage = resuming(stage)
    assert flag_of(run(stage)) == "--resume"
    assert "skipped" in run(stage)
    assert flag_of(run(change_input(stage))) == "--overwrite"


def stop(stage, run, when):
    """A run whose script is stopped: ``early``, before it touches the old output, or ``half-way``."""
    (stage.folder / "stop").write_text(when)
    with pytest.raises(UserError, match="exit code 130"):
        run(stage)
    (stage.folder / "stop").unlink()


def test_a_first_extraction_that_was_stopped_is_resumed(stage, run):
    stage = resuming(stage)
    stop(stage, run, "half-way")
    assert flag_of(run(stage)) == "--resume"


def test_a_stopped_extraction_whose_input_changed_since_is_replaced(stage, run):
    # --resume would be refused: the half-made store belongs to another input.
    stage = resuming(stage)
    stop(stage, run, "half-way")
    assert flag_of(run(change_input(stage))) == "--overwrite"


@pytest.mark.parametrize(("when", "flag"), [("early", "--overwrite"), ("half-way", "--resume")])
def test_a_rerun_that_was_stopped_goes_on_where_it_was(when, flag, stage, run):
    # Stopped early, the finished output of the earlier input still stands, and --resume would be refused.
    stage = resuming(stage)
    run(stage)
    change_input(stage)
    for _ in range(2):
        stop(stage, run, when)
    assert flag_of(run(stage)) == flag
    assert stage.outputs[0].read_text() == "SECOND"
