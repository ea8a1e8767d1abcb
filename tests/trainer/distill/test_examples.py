"""The teacher's trajectories are those of the service, and an example leads to the teacher's next point."""

from pathlib import Path

import pytest
import torch

from longcat.model import flavour
from longcat.model.loading import load_scheduler_config, load_transformer
from longcat.model.precision import Precision
from longcat.sampling import denoise, latents
from longcat.sampling.encoding.files import prompt_rows
from longcat.sampling.forward import Forward
from trainer.config.options import TrainConfig
from trainer.distill.prompts import noise_seed, take_prompts
from trainer.distill.trajectories import Teacher, Trajectories
from trainer.distill.windows import Windows
from trainer.encode.cache import Cache
from trainer.encode.preparation import Encoders, encode_captions
from trainer.loop.step import predict

CPU = torch.device("cpu")


class Distilled:
    """A distillation of the embedded model up to its examples."""

    def __init__(self, folder: Path) -> None:
        (folder / "prompts.txt").write_text("a red apple\n一只猫", encoding="utf-8")
        self.model = flavour.resolve("embedded")
        config = TrainConfig.model_validate(
            {
                "model_flavour": "embedded",
                "resolution": "128x128",
                "output_dir": folder / "run",
                "distillation": {"prompts": folder / "prompts.txt", "steps": 2, "teacher_steps": 6, "trajectories": 3},
            }
        )
        self.encoders = Encoders(
            flavour=self.model, device=CPU, dtype=torch.float32, text_encoder_precision=Precision.NO_CHANGE, vae_batch=2
        )
        self.samples = take_prompts(config, lambda: self.model).samples
        self.cache = Cache(folder / "cache")
        encode_captions(self.encoders, self.cache, ["", "a red apple", "一只猫"], lambda *_: None)
        self.transformer = load_transformer(self.model, torch.float32)
        self.scheduler_config = load_scheduler_config(self.model)
        assert config.distillation is not None
        self.teacher = Teacher.of(config.distillation, self.encoders, precision="no_change")
        self.trajectories = Trajectories(
            self.teacher, self.samples, self.encoders, self.cache, self.scheduler_config
        )  # fmt: skip
        self.trajectories.solve(self.transformer, lambda *_: None)

    def windows(self, on_policy: float) -> Windows:
        return Windows(self.trajectories, self.samples, on_policy=on_policy, seed=1, dtype=torch.float32)


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Distilled:
    return Distilled(tmp_path_factory.mktemp("distilled"))


def test_a_trajectory_is_what_the_service_samples(distilled: Distilled) -> None:
    sample = distilled.samples[2]

    class Base:
        device, dtype, scheduler_config = CPU, torch.float32, distilled.scheduler_config

    def embedding(prompt: str):
        return prompt_rows(distilled.cache.require(distilled.encoders.embedding_key(prompt), prompt), 32)[None]

    forward = Forward(distilled.transformer, CPU)
    picture = denoise.start(
        Base(), forward, embeds_1LJ=embedding(sample.captions[0]), negative_embeds_1LJ=embedding(""), height_px=128,
        width_px=128, steps=6, guidance_scale=distilled.teacher.guidance_scale, cfg_renorm=True, seed=noise_seed(sample),
    )  # fmt: skip
    points = [picture.latents_1NC]
    while not picture.is_done:
        denoise.advance(forward, [picture])
        if picture.step in (3, 6):
            points.append(picture.latents_1NC)
    expected = torch.cat(points)
    assert expected[0].equal(latents.seeded_noise(seed=noise_seed(sample), height_px=128, width_px=128)[0])
    assert torch.allclose(distilled.trajectories.points(2), expected, atol=2e-4)
    assert len({noise_seed(sample) for sample in distilled.samples}) == 3


def test_solved_trajectories_are_not_solved_again(distilled: Distilled) -> None:
    assert distilled.trajectories.solve(distilled.transformer, lambda *_: None) == 0


@pytest.mark.parametrize("on_policy", [0.0, 1.0])
def test_an_example_leads_to_the_teachers_point(distilled: Distilled, on_policy: float) -> None:
    windows, sigmas = distilled.windows(on_policy), distilled.trajectories.sigmas(distilled.samples[0].bucket)
    seen = set()
    for number in range(6):
        made = windows.batch(number, [0, 1, 2], first=0)
        batch = windows.complete(distilled.transformer, made)
        for row, window in enumerate(made.window_B.tolist()):
            seen.add(window)
            points, start = distilled.trajectories.points(row), batch.noisy_BNC[row]
            assert batch.sigma_B[row] == pytest.approx(float(sigmas[window]))
            reached = start + (sigmas[window + 1] - sigmas[window]) * batch.target_BNC[row]
            assert torch.allclose(reached, points[window + 1], atol=1e-5)
            assert start.equal(points[window]) == (on_policy == 0 or window == 0)
    assert seen == {0, 1}


def test_the_student_starts_a_later_window_where_its_own_step_ends(distilled: Distilled) -> None:
    windows, sigmas = distilled.windows(1.0), distilled.trajectories.sigmas(distilled.samples[0].bucket)
    made = next(made for n in range(20) if (made := windows.batch(n, [1], first=0)).window_B.item() == 1)
    with torch.no_grad():
        velocity = predict(
            distilled.transformer, made.start_BNC, sigmas[:1], made.embeds_BLJ, (made.text_ids_L3, made.image_ids_N3)
        )
    expected = made.start_BNC + (sigmas[1] - sigmas[0]) * velocity
    assert torch.allclose(windows.complete(distilled.transformer, made).noisy_BNC, expected, atol=1e-5)
