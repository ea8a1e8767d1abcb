"""TensorBoard's files of a run."""

from pathlib import Path

from PIL import Image

from tests.trainer.record.test_progress import report, run


def test_tensorboard_shows_curves_and_pictures_of_a_resumed_run(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Image.new("RGB", (16, 8), "red").save(tmp_path / "a.png")
    with run(tmp_path, report_to=("tensorboard",)) as progress:
        for step in (1, 2, 3, 4):
            progress.step(report(step, loss=1.0))
        progress.finish("preempted", (), 75)
    with run(tmp_path, report_to=("tensorboard",)) as progress:
        for step in (3, 4, 5):
            progress.step(report(step, loss=0.5, images=2))
        progress.validation(5, ["a.png"], [])
        progress.finish("finished", (), 0)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(point.step, point.value) for point in board.Scalars("loss")] == [
        (1, 1),
        (2, 1),
        (3, 0.5),
        (4, 0.5),
        (5, 0.5),
    ]
    assert board.Tags()["scalars"] == ["loss", "learning_rate", "gradient_norm", "images_per_second"]
    picture = board.Images("validation/a")[0]
    assert (picture.step, picture.width, picture.height) == (5, 16, 8)
