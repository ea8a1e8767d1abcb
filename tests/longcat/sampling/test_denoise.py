import diffusers
import numpy as np
import pytest
import torch
from diffusers import LongCatImagePipeline, LongCatImageTransformer2DModel
from diffusers.pipelines.longcat_image.pipeline_longcat_image import prepare_pos_ids

from longcat.errors import EngineError
from longcat.model.flavour import Flavour
from longcat.model.loading import Components, load
from longcat.model.tokenizer import plain_ids
from longcat.sampling import denoise, flow, latents
from longcat.sampling.encoding.text_encoder import encode_prompt
from longcat.sampling.forward import Forward
from longcat.sampling.prompt import tokenize_prompt

# Ours runs the conditional and unconditional rows in one forward, the published pipeline in two; both in float32.
LATENT_TOLERANCE = 2e-4
PIXEL_TOLERANCE = 1


def encode(model: Components, prompt: str) -> torch.Tensor:
    tokens = tokenize_prompt(prompt, plain_ids(model.tokenizer), max_tokens=32)
    return encode_prompt(
        model.text_encoder, tokens, pad_token_id=model.tokenizer.pad_token_id, max_tokens=32, device=model.device
    )


def begin(
    model: Components, *, prompt: str = "a red apple", size: tuple[int, int] = (128, 128), **changes: object
) -> denoise.Denoising:
    settings = {"steps": 4, "guidance_scale": 3.0, "cfg_renorm": True, "seed": 7} | changes
    return denoise.start(
        model,
        Forward(model.transformer, model.device),
        embeds_1LJ=encode(model, prompt),
        negative_embeds_1LJ=encode(model, ""),
        height_px=size[0],
        width_px=size[1],
        **settings,
    )


def finish(model: Components, *pictures: denoise.Denoising) -> None:
    forward = Forward(model.transformer, model.device)
    while not all(picture.is_done for picture in pictures):
        denoise.advance(forward, [picture for picture in pictures if not picture.is_done])


@pytest.fixture(scope="module")
def pipeline(model: Components) -> LongCatImagePipeline:
    diffusers.utils.logging.disable_progress_bar()
    loaded = LongCatImagePipeline.from_pretrained(model.flavour.folder, dtype=torch.float32)
    loaded.tokenizer_max_length = 32
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.mark.heavy
@pytest.mark.parametrize("size", [(128, 128), (64, 192), (192, 128)])
@pytest.mark.parametrize(("guidance", "renorm"), [(3.0, True), (3.0, False), (1.0, True)])
def test_pictures_equal_the_published_pipeline(
    model: Components,
    pipeline: LongCatImagePipeline,
    size: tuple[int, int],
    guidance: float,
    renorm: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    picture = begin(model, size=size, guidance_scale=guidance, cfg_renorm=renorm)
    # Embeddings from us, everything else from diffusers; it crashes when given embeddings and no prompt (diffusers#13636).
    monkeypatch.setattr(pipeline, "_encode_prompt", lambda prompts: encode(model, prompts[0]))
    settings = {
        "prompt": "a red apple",
        "negative_prompt": "",
        "height": size[0],
        "width": size[1],
        "num_inference_steps": 4,
        "guidance_scale": guidance,
        "enable_cfg_renorm": renorm,
        "enable_prompt_rewrite": False,
    }
    expected_latents = pipeline(**settings, generator=torch.Generator().manual_seed(7), output_type="latent").images
    expected = pipeline(**settings, generator=torch.Generator().manual_seed(7), output_type="np").images[0]
    finish(model, picture)
    torch.testing.assert_close(picture.latents_1NC, expected_latents, rtol=0, atol=LATENT_TOLERANCE)
    pixels = denoise.decode(model.vae, picture).astype(int)
    assert pixels.shape == (*size, 3)
    assert np.abs(pixels - (expected * 255).round()).max() <= PIXEL_TOLERANCE


@pytest.mark.heavy
@pytest.mark.parametrize("size", [(128, 128), (64, 64), (64, 192)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_picture_is_bitwise_the_same_whoever_shares_its_forward(
    flavour: Flavour, size: tuple[int, int], dtype: str
) -> None:
    model = load(flavour, device="cpu", dtype=dtype)
    alone = begin(model, seed=3, steps=5, size=size)
    finish(model, alone)
    together = begin(model, seed=3, steps=5, size=size)
    others = [
        begin(model, prompt="一只猫", seed=9, steps=3, size=size),
        begin(model, prompt="a blue car on black", seed=1, steps=6, guidance_scale=1.0, size=size),
        begin(model, prompt="dog", seed=2, steps=4, guidance_scale=6.0, cfg_renorm=False, size=size),
    ]
    finish(model, others[0], together, *others[1:])
    assert torch.equal(alone.latents_1NC, together.latents_1NC)
    assert np.array_equal(denoise.decode(model.vae, alone), denoise.decode(model.vae, together))


def test_bfloat16_rounds_times_as_the_published_pipeline_does(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(flavour, device="cpu", dtype="bfloat16")
    pipeline = LongCatImagePipeline.from_pretrained(flavour.folder, dtype=torch.bfloat16)
    pipeline.tokenizer_max_length = 32
    pipeline.set_progress_bar_config(disable=True)
    monkeypatch.setattr(pipeline, "_encode_prompt", lambda prompts: encode(model, prompts[0]))
    ours: list[float] = []
    theirs: list[float] = []
    for transformer, seen in ((model.transformer, ours), (pipeline.transformer, theirs)):
        transformer.time_embed.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0][0].item()))
    finish(model, begin(model, steps=7, guidance_scale=1.0))
    pipeline("cat", height=128, width=128, num_inference_steps=7, guidance_scale=1.0, enable_prompt_rewrite=False)
    assert len(ours) == 7
    assert ours == theirs


def test_a_step_that_fails_half_way_changes_no_picture(model: Components, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another forward repeats the step: an image that had advanced already would get it twice."""
    expected, other = begin(model, prompt="a cat", seed=1), begin(model, prompt="a dog", seed=2)
    pictures = [begin(model, prompt="a cat", seed=1), begin(model, prompt="a dog", seed=2)]
    euler_step, calls = flow.euler_step, []

    def failing(*arguments: torch.Tensor) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) == 2:
            raise torch.OutOfMemoryError
        return euler_step(*arguments)

    forward = Forward(model.transformer, model.device)
    monkeypatch.setattr(flow, "euler_step", failing)
    with pytest.raises(torch.OutOfMemoryError):
        denoise.advance(forward, pictures)
    assert [picture.step for picture in pictures] == [0, 0]
    denoise.advance(forward, pictures)
    denoise.advance(forward, [expected, other])
    assert torch.equal(pictures[0].latents_1NC, expected.latents_1NC)
    assert torch.equal(pictures[1].latents_1NC, other.latents_1NC)


def test_a_picture_that_is_not_finite_is_an_error(model: Components) -> None:
    picture = begin(model, steps=1)
    picture.latents_1NC = picture.latents_1NC * float("nan")
    with pytest.raises(EngineError, match="not finite in float32; use --dtype bfloat16 or float32"):
        denoise.decode(model.vae, picture)


def test_packing_round_trips() -> None:
    z = torch.randn(2, 16, 8, 24)
    packed = latents.pack(z)
    assert packed.shape == (2, 4 * 12, 64)
    assert torch.equal(latents.unpack(packed, height_px=64, width_px=192), z)


def test_position_ids_are_diffusers_own_in_float32() -> None:
    ours = latents.text_ids(512), latents.image_ids(height_px=64, width_px=192, max_tokens=512)
    theirs = (
        prepare_pos_ids(type="text", num_token=512),
        prepare_pos_ids(modality_id=1, type="image", start=(512, 512), height=4, width=12),
    )
    for mine, their in zip(ours, theirs, strict=True):
        assert mine.dtype is torch.float32  # MPS has no float64, bfloat16 would round positions over 256
        assert torch.equal(mine, their)


def test_noise_depends_on_the_seed_alone() -> None:
    assert torch.equal(
        latents.seeded_noise(seed=5, height_px=64, width_px=128),
        latents.seeded_noise(seed=5, height_px=64, width_px=128),
    )
    assert not torch.equal(
        latents.seeded_noise(seed=5, height_px=64, width_px=64), latents.seeded_noise(seed=6, height_px=64, width_px=64)
    )


def test_autoencoder_round_trip_is_close(model: Components) -> None:
    picture = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    with torch.no_grad():
        again = latents.decode(model.vae, latents.encode(model.vae, picture))
    assert (again - picture).abs().mean() < 0.1


def test_mu_is_linear_in_tokens_and_clean_data_is_recovered_along_the_velocity(model: Components) -> None:
    assert flow.shift_mu(256, model.scheduler_config) == pytest.approx(0.5)
    assert flow.shift_mu(4096, model.scheduler_config) == pytest.approx(1.15)
    clean, noise, sigma = torch.randn(3, 4, 64), torch.randn(3, 4, 64), torch.tensor([0.1, 0.5, 1.0])
    noisy = flow.add_noise(clean, noise, sigma)
    torch.testing.assert_close(noisy - sigma[:, None, None] * flow.velocity(clean, noise), clean, rtol=0, atol=1e-5)


def test_training_sigmas_are_shifted_as_inference_shifts_them() -> None:
    mu = 0.8
    sigma = flow.training_sigmas(1000, mu=mu, generator=torch.Generator().manual_seed(0))
    plain = torch.sigmoid(torch.randn(1000, generator=torch.Generator().manual_seed(0)))
    shift = torch.tensor(mu).exp()
    torch.testing.assert_close(sigma, shift * plain / (1 + (shift - 1) * plain))


def test_the_full_size_transformer_has_6_27_billion_parameters() -> None:
    with torch.device("meta"):
        transformer = LongCatImageTransformer2DModel(
            num_layers=10, num_single_layers=20, attention_head_dim=128, num_attention_heads=24,
            joint_attention_dim=3584, pooled_projection_dim=3584,
        )  # fmt: skip
    assert round(sum(p.numel() for p in transformer.parameters()) / 1e9, 2) == 6.27
