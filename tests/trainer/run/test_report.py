"""Whole trainings with a report card: held-out losses, the best checkpoint, early stopping, thresholds, two processes."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from longcat.adapter.artifact import read_manifest
from longcat.adapter.weights.file import load_lora
from longcat.storage.opening import open_storage
from tests.conftest import run_lithograph
from tests.trainer.trainings import STATEFUL, train, train_in_two
from trainer.record.report_card import ReportCard
from trainer.record.run_file import read_run

CARD = {
    "eval_share": 0.4, "eval_steps_interval": 2, "num_eval_images": 2, "publish_checkpoint": "best", "max_train_steps": 6,
    "report_to": "tensorboard", "checkpoints_total_limit": 9,
}  # fmt: skip


def card_of(output: Path) -> ReportCard:
    card = read_run(output).report
    assert card is not None
    return card


@pytest.fixture(scope="module")
def carded(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a published run with every feature that has state, DoRA, unrelated prompts and too large a learning rate."""
    output = tmp_path_factory.mktemp("carded") / "run"
    done = train(
        pictures, output, **STATEFUL | CARD, use_dora="true", ema_decay=0.5, learning_rate="2e-2", adapter_name="best",
        publish_to=(output.parent / "adapters").as_uri(), validation_base_prompts='["a house"]',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return output


def test_the_adapter_of_the_best_evaluation_is_published(carded: Path) -> None:
    card = card_of(carded)
    assert [made.step for made in card.evaluations] == [2, 4, 6]
    assert {probe.language for probe in card.probes} == {"zh", "en"}
    assert card.best is not None
    losses = [card.loss(made.losses) for made in card.evaluations]
    assert card.published_step == card.best.step == 2 + 2 * losses.index(min(losses))
    manifest = read_manifest(open_storage((carded.parent / "adapters").as_uri()), "best", 1)
    assert manifest.training is not None
    assert manifest.training.steps == card.best.step
    best = load_lora(carded / "checkpoints" / "step-00000006" / "best.safetensors")
    kept = load_lora(carded / "adapter.safetensors")
    assert all(torch.equal(layer.up, best.layers[name].up) for name, layer in kept.layers.items())


def test_the_sweep_is_of_the_published_adapter(carded: Path) -> None:
    card = card_of(carded)
    assert card.best is not None
    part = ReportCard(probes=card.probes[:8])
    by_strength = {one.strength: one.loss for one in card.strengths}
    assert by_strength.keys() == {0.0, 0.5, 0.75, 1.0, 1.25}
    assert by_strength[0.0] == pytest.approx(part.loss(card.base[:8]), rel=1e-5)
    assert by_strength[1.0] == pytest.approx(part.loss(card.best.losses[:8]), rel=1e-5)


def test_validations_have_their_figures(carded: Path) -> None:
    last = read_run(carded).validations[-1]
    assert last.step == card_of(carded).published_step
    assert last.change is not None
    assert last.drift is not None
    assert last.drift > 0
    assert [one.image for one in last.nearest] == list(last.images)
    assert all(one.picture.startswith("pictures/") for one in last.nearest)


def test_a_resumed_run_keeps_its_history_bit_for_bit(pictures: Path, carded: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(carded, tmp_path / "run"))
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    for name in ("run.json", "adapter.safetensors", "published.json"):
        (run / name).unlink()
    done = train(
        pictures, run, **STATEFUL | CARD, use_dora="true", ema_decay=0.5, learning_rate="2e-2", adapter_name="best",
        publish_to=(tmp_path / "adapters").as_uri(), validation_base_prompts='["a house"]', resume_from_checkpoint="latest",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert read_run(run).start_step == 4
    assert card_of(run) == card_of(carded)
    assert (run / "adapter.safetensors").read_bytes() == (carded / "adapter.safetensors").read_bytes()


def test_a_training_stops_early_is_gated_and_goes_on_without_the_threshold(pictures: Path, tmp_path: Path) -> None:
    run, adapters = tmp_path / "run", (tmp_path / "adapters").as_uri()
    options = CARD | {
        "publish_checkpoint": "last", "learning_rate": "5e-2", "early_stopping_patience": 1, "max_train_steps": 40,
        "validation_disable": "true", "publish_to": adapters, "adapter_name": "gated", "resume_from_checkpoint": "latest",
    }  # fmt: skip
    done = train(pictures, run, **options, publish_max_overfit=0)
    assert done.returncode == 77, done.stderr
    assert "publish_max_overfit = 0.0: the adapter's loss on held-out pictures is" in done.stderr
    record = read_run(run)
    assert (record.state, record.exit_code, record.published) == ("failed", 77, None)
    assert record.problems[0].code == "publication_gated"
    assert record.step < 40
    assert (run / "adapter.safetensors").exists()
    assert not list((tmp_path / "adapters").glob("*/*"))
    done = train(pictures, run, **options)
    assert done.returncode == 0, done.stderr
    again = read_run(run)
    assert (again.step, again.published) == (record.step, "gated@1")
    assert record.report is not None
    assert card_of(run).evaluations == record.report.evaluations
    done = train(pictures, run, **options)
    assert done.returncode == 0, done.stderr
    assert "the run has stopped early" in done.stderr
    assert len(list((tmp_path / "adapters" / "gated").glob("[0-9]*"))) == 1


def test_the_command_prints_what_the_run_recorded(carded: Path, tmp_path: Path) -> None:
    card = card_of(carded)
    assert card.best is not None
    text = run_lithograph("report", str(carded), cwd=tmp_path)
    assert text.returncode == 0, text.stderr
    assert f"loss on {len({probe.picture for probe in card.probes})} held-out pictures" in text.stdout
    assert f"{card.loss(card.best.losses):.4f}" in text.stdout
    assert "change of unrelated prompts: 0." in text.stdout
    shown = json.loads(run_lithograph("report", str(carded), "--json", cwd=tmp_path).stdout)
    assert shown["best_step"] == shown["published_step"] == card.best.step
    assert [made["step"] for made in shown["evaluations"]] == [2, 4, 6]
    assert shown["evaluations"][0]["losses"] == list(card.evaluations[0].losses)
    assert shown["base"]["loss_zh"] == card.loss(card.base, language="zh")
    missing = run_lithograph("report", str(tmp_path), cwd=tmp_path)
    assert (missing.returncode, "does not exist" in missing.stderr) == (65, True)


@pytest.mark.parametrize("split", [False, True], ids=["DDP", "FSDP"])
def test_processes_share_an_evaluation(pictures: Path, tmp_path: Path, split: bool) -> None:
    options = CARD | {"max_train_steps": 2, "validation_disable": "true", "train_batch_size": 1, "lora_dropout": 0}
    both = train_in_two(pictures, tmp_path / "two", fsdp_enable=str(split).lower(), **options)
    assert both.returncode == 0, both.stderr
    done = train(pictures, tmp_path / "one", **options | {"train_batch_size": 2})
    assert done.returncode == 0, done.stderr
    one, two = card_of(tmp_path / "one"), card_of(tmp_path / "two")
    assert one.probes == two.probes
    assert two.base == pytest.approx(one.base, rel=1e-4)
    assert two.evaluations[-1].losses == pytest.approx(one.evaluations[-1].losses, rel=1e-3)
