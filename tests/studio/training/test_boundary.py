"""The boundary of a shared studio: paths and addresses that trainings may use, through any option."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from starlette.testclient import TestClient

from studio.app import create_app
from studio.config import StudioConfig
from studio.context import TrainingServices
from studio.jobs.record import CONFIG_FILE, State
from studio.training.boundary import HOLDINGS, Boundary
from studio.training.form import as_typed
from tests.studio.training.test_pages import HERE, HTMX, png
from trainer.config.dataset_options import DatasetConfig
from trainer.config.options import TrainConfig
from trainer.config.simpletuner.validation_input import ValidationInput

TOKEN = "a-token-of-the-tests"
WORDS = {
    TrainConfig: {
        "revision", "base_model_precision", "text_encoder_1_precision", "device", "lora_targets", "caption_strategy",
        "resolution", "background_colour", "validation_prompt", "validation_prompts", "validation_negative_prompt",
        "validation_resolution", "validation_base_prompts", "eval_dataset_id", "tracker_project_name", "tracker_run_name",
        "adapter_name", "trigger_words",
    },
    DatasetConfig: {
        "id", "conditioning_data", "source_dataset_id", "aws_data_prefix", "caption_endings", "caption_column",
        "caption_shares", "filename_column", "instance_prompt", "trigger_words", "resolution", "alpha_colour",
    },
    ValidationInput: {"prompt", "shortname", "name"},
}  # fmt: skip
"""Text options by which no file is opened and no address called."""


def texts(model: type[BaseModel]) -> set[str]:
    """Return the fields that can hold any text or path."""

    def holds_text(annotation: Any) -> bool:
        return annotation in (str, Path, Any) or any(map(holds_text, get_args(annotation)))

    return {name for name, field in model.model_fields.items() if holds_text(field.annotation)}


@pytest.mark.parametrize("model", WORDS)
def test_every_text_of_a_configuration_is_a_word_or_is_checked(
    model: type[TrainConfig | DatasetConfig | ValidationInput],
) -> None:
    assert not WORDS[model] & HOLDINGS[model].keys()
    assert texts(model) == WORDS[model] | HOLDINGS[model].keys()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root" / "cats"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(png())
    (folder / "a.txt").write_text("a cat", encoding="utf-8")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "captions.csv").write_text("secret", encoding="utf-8")
    (folder / "away").symlink_to(tmp_path / "outside")
    return folder


@pytest.fixture
def services(tmp_path: Path, root: Path) -> TrainingServices:
    return TrainingServices(shared(tmp_path, root))


def shared(tmp_path: Path, root: Path) -> StudioConfig:
    """Return a shared studio."""
    return StudioConfig(
        host="0.0.0.0", token=TOKEN, home=tmp_path / "home", data_roots=(root.parent,),
        destinations=("s3://ours/team", "https://push.example:9091"),
    )  # fmt: skip


def options(root: Path) -> dict[str, Any]:
    return {"model_flavour": "embedded", "instance_data_dir": str(root), "adapter_name": "ink", "max_train_steps": 1}


def refused_of(boundary: Boundary, given: dict[str, Any]) -> set[str]:
    return {problem.field for problem in boundary.problems(TrainConfig.model_validate(given), here=True)}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pretrained_model_name_or_path", "/etc"),
        ("model_flavour", "../outside"),
        ("model_flavour", "~root"),
        ("init_lora", "{outside}/captions.csv"),
        ("init_lora", "{root}/away/captions.csv"),
        ("instance_data_dir", "{outside}"),
        ("instance_data_dir", "s3://theirs/pictures"),
        ("instance_data_dir", "s3://ours/teams"),
        ("instance_data_dir", "http://["),
        ("instance_data_dir", "http://a:999999/"),
        ("instance_data_dir", "file://["),
        ("instance_data_dir", '["file:///etc"]'),
        ("user_prompt_library", "/etc/shadow"),
        ("pushgateway_url", "http://169.254.169.254/"),
        ("pushgateway_url", "http://push.example:9091"),
        ("pushgateway_url", "https://push.example"),
        ("publish_to", "file:///anywhere"),
        ("publish_to", "s3://ours"),
        ("publish_endpoint_url", "http://127.0.0.1:6379"),
    ],
)
def test_what_leads_out_is_refused_with_its_field(
    services: TrainingServices, root: Path, field: str, value: str
) -> None:
    outside = root.parent.parent / "outside"
    given = options(root) | {field: value.format(root=root, outside=outside)}
    assert refused_of(services.boundary, given) == {field}


def test_so_is_a_picture_to_edit(services: TrainingServices, root: Path) -> None:
    inputs = [{"path": path, "prompt": "a"} for path in (str(root / "a.png"), "/etc/shadow")]
    assert refused_of(services.boundary, options(root) | {"validation_input": inputs}) == {"validation_input.1.path"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("instance_data_dir", "/etc"),
        ("caption_file", "/etc/shadow"),
        ("caption_file", "../../outside/captions.csv"),
        ("caption_file", "away/captions.csv"),
        ("aws_endpoint_url", "http://10.0.0.1"),
    ],
)
def test_so_is_a_dataset_of_several(services: TrainingServices, root: Path, field: str, value: str) -> None:
    dataset = {"id": "one", "type": "local", "instance_data_dir": str(root)} | {field: value}
    given = options(root) | {"instance_data_dir": None, "data_backend_config": [dataset]}
    assert refused_of(services.boundary, given) == {f"data_backend_config.0.{field}"}


def test_buckets_are_compared_with_their_prefix(services: TrainingServices, root: Path) -> None:
    dataset = {"id": "one", "type": "aws", "aws_bucket_name": "ours", "aws_data_prefix": "team/cats"}
    given = options(root) | {"instance_data_dir": None, "data_backend_config": [dataset]}
    assert refused_of(services.boundary, given) == set()
    given["data_backend_config"] = [dataset | {"aws_data_prefix": "other"}]
    assert refused_of(services.boundary, given) == {"data_backend_config.0.aws_bucket_name"}


def test_what_the_operator_allows_and_what_the_studio_owns_is_not(
    services: TrainingServices, root: Path, tmp_path: Path
) -> None:
    allowed = [
        {"instance_data_dir": "s3://ours/team/cats"},
        {"publish_to": "s3://ours/team"},
        {"publish_to": (tmp_path / "home" / "adapters").as_uri()},
        {"publish_to": (root.parent / "adapters").as_uri()},
        {"pushgateway_url": "https://push.example:9091/metrics"},
        {"pretrained_model_name_or_path": "meituan-longcat/LongCat-Image"},
    ]
    for more in allowed:
        assert refused_of(services.boundary, options(root) | more) == set(), more


def test_on_ones_own_machine_all_of_s3_and_http_is_allowed_and_files_below_the_roots(
    tmp_path: Path, root: Path
) -> None:
    boundary = TrainingServices(StudioConfig(home=tmp_path / "home", data_roots=(root.parent,))).boundary
    given = options(root) | {"publish_to": "s3://any/where", "pushgateway_url": "http://127.0.0.1:9091"}
    assert refused_of(boundary, given) == set()
    assert refused_of(boundary, given | {"publish_to": "file:///anywhere"}) == {"publish_to"}


def test_the_page_refuses_it_when_it_is_checked_and_when_it_is_started(tmp_path: Path, root: Path) -> None:
    app = create_app(shared(tmp_path, root))
    visitor = TestClient(
        app, base_url=HERE, headers={"Accept": "text/html", "Authorization": f"Bearer {TOKEN}", **HTMX}
    )
    form = as_typed(options(root) | {"user_prompt_library": "/etc/hostname", "pushgateway_url": "http://10.0.0.1"})
    for address in ("/train/check", "/train"):
        reply = visitor.post(address, data=form)
        assert "--data-root" in reply.text
        assert "--allow-destination" in reply.text
    studio = app.state.studio
    assert not studio.training.jobs.list()
    studio.training.close()


def test_a_link_that_leads_elsewhere_by_the_time_a_job_starts_is_found(
    services: TrainingServices, root: Path, tmp_path: Path
) -> None:
    link = root.parent / "link"
    link.symlink_to(root)
    config = TrainConfig.model_validate(options(link))
    assert not services.boundary.problems(config, here=True)
    job = services.jobs.submit(config, name="ink")
    written = json.loads((services.jobs.folder / job.id / CONFIG_FILE).read_text(encoding="utf-8"))
    assert written["instance_data_dir"] == str(link)
    link.unlink()
    link.symlink_to(tmp_path / "outside")
    services.jobs.tick()
    view = services.jobs.get(job.id)
    assert view.state is State.FAILED
    assert view.problems[0].field == "instance_data_dir"
    assert view.problems[0].code == "dataset_path_not_allowed"
