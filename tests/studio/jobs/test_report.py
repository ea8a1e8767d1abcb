"""A training's report card on its job's page, in both languages, and only sent again when it has changed."""

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from studio.app import create_app
from studio.config import StudioConfig
from studio.jobs.record import CONFIG_FILE, OUTPUT, JobRecord, Process, write_job
from studio.jobs.report import report_view
from trainer.record.report_card import (
    BANDS,
    EvaluationRecord,
    NearestRecord,
    ProbeRecord,
    ReportCard,
    StrengthRecord,
)
from trainer.record.report_text import report_text
from trainer.record.run_file import RunRecord, ValidationRecord, write_run

JOB = "20260101-000000-ink-abcd"
NOW = datetime.now(UTC)
PROBES = tuple(
    ProbeRecord(picture=f"ink/{language}.png", language=language, sigma=0.2 + 0.2 * band, band=band)
    for language in ("zh", "en")
    for band in range(BANDS)
)


def run(*losses: float) -> RunRecord:
    card = ReportCard(
        probes=PROBES,
        base=(1.0,) * len(PROBES),
        evaluations=tuple(
            EvaluationRecord(step=10 * (index + 1), losses=(loss,) * len(PROBES)) for index, loss in enumerate(losses)
        ),
        strengths=(StrengthRecord(strength=0.5, loss=0.8125),),
        published_step=20,
    )
    copied = NearestRecord(
        image="validation/a.png", picture="ink/<tiger>.png", distance=0.1, share=0.2, is_copy=True
    )  # fmt: skip
    validation = ValidationRecord(
        step=20,
        images=("validation/a.png",),
        passed=True,
        reasons=(),
        change=0.125,
        drift=0.0625,
        nearest=(copied,),
        time=NOW,
    )
    return RunRecord(
        run_id="ink-1", pid=1, hostname="here", started=NOW, updated=NOW, code_version="1", total_steps=30, config={},
        state="finished", step=30, report=card, validations=(validation,),
    )  # fmt: skip


@pytest.fixture
def visitor(tmp_path: Path) -> Iterator[TestClient]:
    folder = tmp_path / "home" / "jobs" / JOB
    folder.mkdir(parents=True)
    write_job(
        folder, JobRecord(id=JOB, name="ink", created=NOW, queued=NOW, tries=1, process=Process(pid=2**22, started=1.0))
    )
    (folder / CONFIG_FILE).write_text(json.dumps({"model_flavour": "embedded"}))
    (folder / "exit").write_text("0")
    write_run(folder / OUTPUT, run(0.9, 0.7, 0.8), durable=False)
    app = create_app(StudioConfig(home=tmp_path / "home"))
    yield TestClient(app, base_url="http://127.0.0.1:8001", headers={"Accept": "text/html"})
    app.state.studio.training.close()


@pytest.mark.parametrize(
    ("language", "texts"),
    [
        (
            "en",
            [
                "Report card",
                "it overfits",
                "lowest after step 20, and 14.3% higher after step 30",
                "Change on unrelated",
            ],
        ),
        (
            "zh",
            [
                "成绩单",
                "过拟合：留出图片的损失在第 20 步最低，到第 30 步高出 14.3%",
                "1 张复制了训练图片",
                "无关提示词的变化",
            ],
        ),
    ],
)
def test_the_page_of_a_job_shows_its_report_card(visitor: TestClient, language: str, texts: list[str]) -> None:
    page = visitor.get(f"/jobs/{JOB}", headers={"Accept-Language": language}).text
    for text in [*texts, "0.7000", "0.8125", "0.125", "0.062", "ink/&lt;tiger&gt;.png", "<polyline"]:
        assert text in page, text
    assert page.count('<tr class="best">') == 1


def test_an_adapter_that_was_not_published_is_called_kept(visitor: TestClient, tmp_path: Path) -> None:
    page = visitor.get(f"/jobs/{JOB}", headers={"Accept-Language": "en"}).text
    assert '<span class="tag">kept</span>' in page
    assert '<span class="tag">published</span>' not in page
    assert "best  kept" in report_text(run(0.9, 0.7, 0.8))
    published = run(0.9, 0.7, 0.8).model_copy(update={"published": "ink@1"})
    write_run(tmp_path / "home" / "jobs" / JOB / OUTPUT, published, durable=False)
    page = visitor.get(f"/jobs/{JOB}", headers={"Accept-Language": "zh"}).text
    assert '<span class="tag">已发布</span>' in page
    assert "best  published" in report_text(published)


def test_a_report_card_is_sent_again_when_it_has_changed(visitor: TestClient) -> None:
    view = report_view(run(0.9, 0.7, 0.8))
    assert view is not None
    assert visitor.get(f"/jobs/{JOB}/report", params={"seen": view.seen}).status_code == 204
    again = visitor.get(f"/jobs/{JOB}/report", params={"seen": ""})
    assert again.status_code == 200
    assert again.text.count("<section") == 1


def test_a_loss_that_is_no_number_leaves_a_gap_and_many_evaluations_are_thinned_out() -> None:
    view = report_view(run(0.9, math.nan, *(0.8 - 0.001 * index for index in range(100)), 0.9))
    assert view is not None
    assert [name for name, _ in view.curves] == ["zh", "en", "all"]
    assert {len(points.split()) for _, points in view.curves} == {102}
    assert "nan" not in str(view.curves)
    assert len(view.lines) < 50
    assert [line.step for line in view.lines if line.is_best] == [1020]
    assert view.lines[-1].step == 1030


def test_a_run_without_figures_has_no_report_card() -> None:
    assert report_view(None) is None
    assert report_view(run().model_copy(update={"validations": ()})) is None
