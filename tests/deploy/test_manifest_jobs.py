"""The Jobs of trainings: their configuration, their failure policy and their end."""

from pathlib import Path

from tests.deploy.manifests import K8S, render
from tests.deploy.test_manifests import environment_of, every_overlay, of_kind, trainer_of
from trainer.config.reading.assignments import parse_assignments
from trainer.config.reading.file import load_config
from trainer.record.outcome import Outcome


@every_overlay
def test_the_configuration_of_a_job_is_one_that_the_trainer_accepts(overlay: Path, tmp_path: Path) -> None:
    objects = render(overlay)
    for job in of_kind("Job", objects):
        environment = environment_of(trainer_of(job), objects)
        prefix = "LITHOGRAPH_TRAIN_"
        given = {key.removeprefix(prefix).lower(): v for key, v in environment.items() if key.startswith(prefix)}
        maps = {each["metadata"]["name"]: each["data"] for each in of_kind("ConfigMap", objects)}
        volumes = {volume["name"]: volume for volume in job["spec"]["template"]["spec"]["volumes"]}
        file = tmp_path / "config.json"
        file.write_text(maps[volumes["config"]["configMap"]["name"]]["config.json"], encoding="utf-8")
        config, warnings = load_config(file, parse_assignments([f"{key}={value}" for key, value in given.items()]))
        assert warnings == ()
        assert config.datasets
        assert config.publish_to
        assert config.adapter_name
        assert config.resume_from_checkpoint == "latest"
        mounts = {mount["mountPath"] for mount in trainer_of(job)["volumeMounts"]}
        assert any(str(config.output_dir).startswith(f"{path}/") for path in mounts)
        assert config.metrics_port in {port["containerPort"] for port in trainer_of(job)["ports"]}


def test_the_failure_policy_of_a_job_follows_the_trainers_exit_codes() -> None:
    (job,) = render(K8S / "base" / "job")
    rules = job["spec"]["podFailurePolicy"]["rules"]
    codes = {rule["action"]: set(rule["onExitCodes"]["values"]) for rule in rules if "onExitCodes" in rule}
    assert codes == {
        "Ignore": {Outcome.PREEMPTED},
        "FailJob": {Outcome.BAD_CONFIG, Outcome.BAD_DATA, Outcome.OUT_OF_MEMORY, Outcome.GATED},
    }


@every_overlay
def test_a_job_has_a_deadline_and_is_removed_after_its_end(overlay: Path) -> None:
    for job in of_kind("Job", render(overlay)):
        assert job["spec"]["activeDeadlineSeconds"] > 0
        assert job["spec"]["ttlSecondsAfterFinished"] > 0
        assert job["spec"]["backoffLimit"] > 0
        assert job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= 120
