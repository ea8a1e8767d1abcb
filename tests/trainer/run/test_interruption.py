"""Interruptions of the training command: killed, stopped, resumed, started again, with damaged checkpoints."""

import signal
from pathlib import Path

from longcat.adapter.artifact import list_versions
from longcat.storage.opening import open_storage
from tests.trainer.trainings import STATEFUL, STEPS, begin, checkpoint, train, wait_for
from trainer.record.run_file import read_metrics, read_run


def test_a_run_killed_and_resumed_ends_with_the_same_bits(pictures: Path, finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    for step in (2, 6):
        process = begin(pictures, output, resume_from_checkpoint="latest", **STATEFUL)
        wait_for(process, checkpoint(output, step))
        process.kill()
        process.wait()
    done = train(pictures, output, resume_from_checkpoint="latest", **STATEFUL)
    assert done.returncode == 0, done.stderr
    assert (output / "adapter.safetensors").read_bytes() == (finished / "adapter.safetensors").read_bytes()
    # Repeated steps are recorded once, with the same losses.
    again, once = ([(line.step, line.loss) for line in read_metrics(path)] for path in (output, finished))
    assert again == once
    assert [step for step, _ in again] == list(range(1, STEPS + 1))
    # So are validations, also those that were killed.
    for path in (output, finished):
        assert [made.step for made in read_run(path).validations] == list(range(2, STEPS + 1, 2))


def test_only_the_newest_checkpoints_are_kept(finished: Path) -> None:
    kept = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert kept == [f"step-{step:08d}" for step in (STEPS - 2, STEPS)]


def test_starting_again_after_the_end_publishes_no_second_version(finished: Path, pictures: Path) -> None:
    storage_uri = (finished.parent / "adapters").as_uri()
    for _ in range(2):
        done = train(
            pictures, finished, publish_to=storage_uri, adapter_name="flat", resume_from_checkpoint="latest", **STATEFUL
        )
        assert done.returncode == 0, done.stderr
        assert list(list_versions(open_storage(storage_uri), "flat")) == [("flat", 1)]
        assert read_run(finished).published == "flat@1"
        (finished / "published.json").unlink()  # as after a kill just before it is written


def test_sigterm_saves_a_checkpoint_and_has_its_own_exit_code(pictures: Path, finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = begin(pictures, output, **STATEFUL)
    wait_for(process, checkpoint(output, 2))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 75
    record = read_run(output)
    assert (record.state, record.exit_code) == ("preempted", 75)
    stopped_at = record.step
    assert checkpoint(output, stopped_at).exists()
    done = train(pictures, output, resume_from_checkpoint="latest", **STATEFUL)
    assert done.returncode == 0, done.stderr
    assert (output / "adapter.safetensors").read_bytes() == (finished / "adapter.safetensors").read_bytes()


def test_sigterm_while_validating_saves_what_was_trained_since(pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    changes = {"validation_steps": 1, "validation_num_inference_steps": 300}
    process = begin(pictures, output, **changes)
    wait_for(process, output / "validation" / "base")  # the first picture of several is done
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 75
    assert checkpoint(output, 1).exists()
    assert not (output / "adapter.safetensors").exists()


def test_every_attempt_of_a_run_has_the_same_id(pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    names = []
    for _ in range(2):
        train(pictures, output, max_train_steps=1, resume_from_checkpoint="latest", validation_disable="true")
        names.append(read_run(output).run_id)
    assert names[0] == names[1]
    train(pictures, output, max_train_steps=1, validation_disable="true")
    assert read_run(output).run_id != names[0]


def test_a_damaged_checkpoint_is_skipped(pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert train(pictures, output, **STATEFUL | {"max_train_steps": 4, "lr_scheduler": "constant"}).returncode == 0
    (output / "checkpoints" / "step-00000004" / "state.pt").write_bytes(b"torn")
    done = train(
        pictures,
        output,
        resume_from_checkpoint="latest",
        **STATEFUL | {"max_train_steps": 4, "lr_scheduler": "constant"},
    )
    assert done.returncode == 0, done.stderr
    assert "checkpoint_damaged" in done.stderr
    assert [line.step for line in read_metrics(output)] == [1, 2, 3, 4]
