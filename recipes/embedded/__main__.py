"""Make the embedded model: every stage in order, skipping those whose result is in the build folder.

Interrupt it at any time: a stage resumes from its last checkpoint.
"""

import argparse
import os
import socket
from pathlib import Path

import torch
from torch.multiprocessing.spawn import spawn

from recipes.embedded import assemble, concepts, text_encoder, transformer, vae
from recipes.embedded.architecture import train_tokenizer
from recipes.embedded.checkpoint import save_result

VAE_SECONDS = 960
TEXT_ENCODER_SECONDS = 300
DECODER_SECONDS = 420
PHASES = [
    transformer.TrainingPhase(
        size_px=64, batch=16, seconds=1080, learning_rate=1.5e-3, end_learning_rate=1.0e-3, average_decay=0.997
    ),
    transformer.TrainingPhase(
        size_px=128, batch=16, seconds=4900, learning_rate=1.2e-3, end_learning_rate=2e-5, average_decay=0.998
    ),
]
"""Wall time on two cores. Longer training gives better pictures: the loss was still falling."""


def main() -> None:
    """Run the stages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, default=Path("build/embedded"), help="folder of intermediate results")
    parser.add_argument("--output", type=Path, default=Path("longcat/embedded"), help="folder of the finished model")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="training processes of one thread each")
    arguments = parser.parse_args()
    folder: Path = arguments.build
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.processes)
    if not (folder / "concepts.json").exists():
        concepts.prepare(folder)
    if not (folder / "tokenizer").exists():
        save_result(folder / "tokenizer", train_tokenizer(concepts.load(folder)[0]).save_pretrained)
    if not (folder / "vae_joint").exists():
        vae.train(folder, seconds=VAE_SECONDS, learning_rate=2e-3, name="vae_joint", start=None, decoder_only=False)
    if not (folder / "text_encoder").exists():
        text_encoder.train(folder, seconds=TEXT_ENCODER_SECONDS)
    if not (folder / "latents.pt").exists():
        transformer.prepare_latents(folder, "vae_joint")
    if not (folder / "transformer").exists():
        _train_transformer(folder, arguments.processes)
    if not (folder / "vae").exists():
        vae.train(folder, seconds=DECODER_SECONDS, learning_rate=1e-3, name="vae", start="vae_joint", decoder_only=True)
    print(f"autoencoder: PSNR {vae.measure_psnr(folder, 'vae'):.2f} dB on whole pictures")
    assemble.assemble(folder, arguments.output)


def _train_transformer(folder: Path, processes: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(transformer.train, args=(processes, folder, PHASES, port), nprocs=processes)


if __name__ == "__main__":
    main()
