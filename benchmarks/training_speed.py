"""The training loop against a bare one, and cache building against bare encoders: ratios of interleaved rounds.

``python -m benchmarks.training_speed`` on the embedded model. The bare loop is peft, AdamW and cached tensors in
memory, and nothing else: no caption choice, no noise per picture, no clipping, no schedule, no records. A ratio of 0.95
means that the trainer makes 0.95 times as many steps a second.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from longcat.adapter.modules import linear_modules
from longcat.logs import silence_import_noise
from longcat.model.loading import load_scheduler_config, load_text_encoder, load_transformer, load_vae
from longcat.model.precision import Precision
from longcat.model.tokenizer import load_tokenizer, plain_ids
from longcat.sampling import flow, latents
from longcat.sampling.encoding.files import prompt_rows
from longcat.sampling.encoding.text_encoder import position_ids
from longcat.sampling.prompt import tokenize_prompt
from trainer.config.options import TrainConfig
from trainer.config.settings import select
from trainer.config.targets import lora_targets
from trainer.data.inventory import Inventory
from trainer.data.pictures import read_pixels
from trainer.data.scan import take_inventory
from trainer.encode.cache import Cache
from trainer.encode.preparation import Encoders, captions_of, encode_captions, encode_pictures
from trainer.loop.checkpoint import Origin
from trainer.loop.distributed import ProcessGroup
from trainer.loop.evaluation.evaluations import Evaluations, EvaluationSettings
from trainer.loop.loop import Loop, LoopSettings, TrainableModel
from trainer.loop.optimizer import OptimizerSettings
from trainer.loop.sampler import Sampler
from trainer.loop.step import Batches, BatchSettings
from trainer.model.base import prepare_model
from trainer.model.lora import LoraSettings, inject
from trainer.record.progress import RunProgress

PICTURES = Path(__file__).parent.parent / "examples" / "ink" / "pictures"


@click.command()
@click.option("--rounds", default=8, show_default=True, help="Rounds of each loop, in turn.")
@click.option("--steps", default=12, show_default=True, help="Steps of a round.")
@click.option("--mixed-precision", type=click.Choice(["no", "bf16"]), default="no", show_default=True)
def main(rounds: int, steps: int, mixed_precision: str) -> None:
    """Print both ratios, for batches of 1 and 4."""
    silence_import_noise()
    with tempfile.TemporaryDirectory() as scratch:
        for batch in (1, 4):
            config = TrainConfig.model_validate({
                "model_flavour": "embedded", "instance_data_dir": str(PICTURES), "resolution": 128, "lora_rank": 16,
                "train_batch_size": batch, "max_train_steps": 1_000_000, "checkpointing_steps": 1_000_000,
                "mixed_precision": mixed_precision, "output_dir": scratch, "validation_disable": True,
            })  # fmt: skip
            compare_steps(config, rounds, steps)
        compare_caching(config, max(2, rounds // 2))


def compare_steps(config: TrainConfig, rounds: int, steps: int) -> None:
    """Print the ratio of the trainer's steps a second to the bare loop's."""
    process_group = ProcessGroup("cpu")
    config, encoders = prepare_model(config, process_group.device)
    flavour = encoders.flavour
    inventory = take_inventory(config, lambda: flavour)
    cache = Cache(config.cache_folder)
    encode_captions(encoders, cache, captions_of(inventory.samples), lambda *_: None)
    encode_pictures(encoders, cache, inventory.samples, lambda *_: None)
    scheduler_config = load_scheduler_config(flavour)
    transformer = load_transformer(flavour, encoders.dtype)
    parameters = inject(transformer, select(config, LoraSettings))
    model = TrainableModel(transformer=transformer, parameters=parameters, dtype=encoders.dtype)
    sampler = Sampler(inventory.samples, batch=config.train_batch_size, seed=config.seed)
    batches = Batches(select(config, BatchSettings), inventory.samples, encoders, cache, scheduler_config)
    progress = RunProgress(
        config.output_dir, run_id="benchmark", config={}, total_steps=1_000_000,
        metrics_port=None, pushgateway_url=None, show_bar=False,
    )  # fmt: skip
    evaluations = Evaluations(select(config, EvaluationSettings), None, progress, steps=1_000_000, processes=1)
    loop = Loop(
        select(config, LoopSettings), select(config, OptimizerSettings), model, batches, sampler, process_group, evaluations,
        steps=1_000_000, origin=Origin(options={}, base_hash="", dataset_hash=inventory.hash),
    )  # fmt: skip
    bare = bare_loop(config, encoders, inventory, cache)
    transformer.train()
    with progress:

        def ours(count: int) -> None:
            for _ in range(count):
                progress.step(loop.advance())

        seconds = interleaved([ours, bare], rounds, steps)
        progress.finish("finished", (), 0)
    ratios = [b / a for a, b in zip(*seconds, strict=True)]
    print(
        f"batch {config.train_batch_size}, {config.mixed_precision}: "
        f"{steps / statistics.median(seconds[0]):.2f} steps/s, bare "
        f"{steps / statistics.median(seconds[1]):.2f}; ratio {statistics.median(ratios):.3f} (median of {rounds} rounds, "
        f"{min(ratios):.3f} to {max(ratios):.3f})",
        flush=True,
    )


def bare_loop(config: TrainConfig, encoders: Encoders, inventory: Inventory, cache: Cache) -> Callable[[int], None]:
    """Run a plain training loop without any of the trainer's features."""
    transformer = load_transformer(encoders.flavour, encoders.dtype)
    names = lora_targets(linear_modules(transformer), "attention")
    lora = LoraConfig(r=16, lora_alpha=16, lora_dropout=0.1, target_modules=names)
    inject_adapter_in_model(lora, transformer)
    transformer.train()
    parameters = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    length = encoders.flavour.settings.max_prompt_tokens
    square = [sample for sample in inventory.samples if sample.bucket.width_px == sample.bucket.height_px == 128]
    clean_all = torch.stack([_entry(cache, encoders.latent_key(sample)) for sample in square]).float()
    embeds_all = torch.stack(
        [prompt_rows(_entry(cache, encoders.embedding_key(sample.captions[0])), length) for sample in square]
    )
    text_ids, image_ids = latents.text_ids(length), latents.image_ids(height_px=128, width_px=128, max_tokens=length)
    mu = flow.shift_mu(clean_all.shape[1], load_scheduler_config(encoders.flavour))

    def run(count: int) -> None:
        for _ in range(count):
            rows = torch.randint(len(square), (config.train_batch_size,))
            clean, embeds = clean_all[rows], embeds_all[rows]
            noise, sigma = torch.randn_like(clean), flow.training_sigmas(len(rows), mu=mu)
            with torch.autocast("cpu", torch.bfloat16, enabled=encoders.dtype is torch.bfloat16):
                predicted = transformer(
                    hidden_states=flow.add_noise(clean, noise, sigma).to(encoders.dtype),
                    timestep=sigma.to(encoders.dtype), encoder_hidden_states=embeds, txt_ids=text_ids, img_ids=image_ids,
                    return_dict=False,
                )[0]  # fmt: skip
            F.mse_loss(predicted.float(), noise - clean).backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def compare_caching(config: TrainConfig, rounds: int) -> None:
    """Print the ratio of the cache's pictures a second to the bare encoders', and the time of a second run."""
    config, encoders = prepare_model(config, torch.device("cpu"))
    flavour = encoders.flavour
    inventory = take_inventory(config, lambda: flavour)
    ratios, again = [], []
    for number in range(rounds):
        cache = Cache(config.output_dir / f"cache-{number}")
        begin = time.perf_counter()
        _build(encoders, cache, inventory)
        built = time.perf_counter() - begin
        begin = time.perf_counter()
        assert _build(encoders, Cache(cache.folder), inventory) == 0
        again.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        _bare_encoders(encoders, inventory)
        ratios.append((time.perf_counter() - begin) / built)
    pictures = len(inventory.samples)
    print(
        f"caching {pictures} pictures and captions, batch {config.vae_batch_size}: {pictures / built:.1f} a second; ratio "
        f"to bare encoders {statistics.median(ratios):.2f} (median of {rounds}, {min(ratios):.2f} to {max(ratios):.2f}); a "
        f"second run {statistics.median(again):.2f} s"
    )


def _build(encoders: Encoders, cache: Cache, inventory: Inventory) -> int:
    made = encode_captions(encoders, cache, captions_of(inventory.samples), lambda *_: None)
    return made + encode_pictures(encoders, cache, inventory.samples, lambda *_: None)


@torch.no_grad()
def _bare_encoders(encoders: Encoders, inventory: Inventory) -> None:
    """Load the encoders, then encode the pictures in batches of one size and the captions one by one, without storing."""
    vae, text_encoder = load_vae(encoders.flavour, encoders.dtype), load_text_encoder(encoders.flavour, encoders.dtype)
    tokenizer = load_tokenizer(encoders.flavour.folder)
    assert encoders.text_encoder_precision is Precision.NO_CHANGE
    for caption in captions_of(inventory.samples):
        tokens = tokenize_prompt(caption, plain_ids(tokenizer), max_tokens=encoders.flavour.settings.max_prompt_tokens)
        ids = torch.tensor([[*tokens.prefix, *tokens.body, tokenizer.pad_token_id]])
        mask = torch.ones_like(ids)
        text_encoder(
            input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False,
            output_hidden_states=True, logits_to_keep=1,
        )  # fmt: skip
    sizes: dict[object, list[Tensor]] = {}
    for sample in inventory.samples:
        sizes.setdefault(sample.bucket, []).append(torch.tensor(read_pixels(sample)).permute(2, 0, 1))
    for several in sizes.values():
        for i in range(0, len(several), encoders.vae_batch):
            images = torch.stack(several[i : i + encoders.vae_batch]).float() / 127.5 - 1
            latents.encode(vae, images.contiguous(memory_format=torch.channels_last))


def interleaved(loops: Sequence[Callable[[int], None]], rounds: int, steps: int) -> list[list[float]]:
    """Return the seconds of each round of each loop; they take turns, so that other load affects both."""
    for loop in loops:
        loop(3)
    seconds: list[list[float]] = [[] for _ in loops]
    for number in range(rounds):
        for index in range(len(loops)):
            place = (index + number) % len(loops)
            begin = time.perf_counter()
            loops[place](steps)
            seconds[place].append(time.perf_counter() - begin)
    return seconds


def _entry(cache: Cache, key: str) -> Tensor:
    found = cache.read(key)
    assert found is not None
    return found


if __name__ == "__main__":
    main()
