"""TensorBoard's files, for those who have it open. Imports torch when one is made, not before."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = "tensorboard"


class Board:
    """Figures and pictures of a run by step, in ``<output_dir>/tensorboard``."""

    def __init__(self, output_dir: Path, *, after_step: int) -> None:
        """What was written of later steps, before the run was resumed, is no longer shown."""
        from torch.utils.tensorboard import SummaryWriter

        self._output_dir = output_dir
        self._writer = SummaryWriter(output_dir / FOLDER, purge_step=after_step + 1, flush_secs=10)

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        """One point of every curve."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def pictures(self, step: int, images: Sequence[str]) -> None:
        """Files, relative to output_dir."""
        for image in images:
            with Image.open(self._output_dir / image) as opened:
                pixels_HWC = np.asarray(opened.convert("RGB"))
            tag = f"validation/{Path(image).stem}"
            self._writer.add_image(tag, pixels_HWC, step, dataformats="HWC")

    def close(self) -> None:
        """Write what waits."""
        self._writer.close()
