"""TensorBoard's files. Imports torch when the first writer is made, not before."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = "tensorboard"


class TensorBoardWriter:
    """Curves and validation pictures of a run by step, in ``<output_dir>/tensorboard``."""

    def __init__(self, output_dir: Path, *, after_step: int) -> None:
        """Append after ``after_step``. TensorBoard then hides points of later steps, from before the run was resumed."""
        from torch.utils.tensorboard import SummaryWriter

        self._output_dir = output_dir
        self._writer = SummaryWriter(output_dir / FOLDER, purge_step=after_step + 1, flush_secs=10)

    def curves(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def pictures(self, step: int, images: Sequence[str]) -> None:
        """Add pictures. ``images`` are files relative to output_dir."""
        for image in images:
            with Image.open(self._output_dir / image) as opened:
                pixels_HWC = np.asarray(opened.convert("RGB"))
            tag = f"validation/{Path(image).stem}"
            self._writer.add_image(tag, pixels_HWC, step, dataformats="HWC")

    def close(self, state: str) -> None:
        """Add the run's final state, write the buffer, and close."""
        self._writer.add_text("state", state)
        self._writer.close()
