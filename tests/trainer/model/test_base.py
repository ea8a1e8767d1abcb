"""The preparation of the model that is trained."""

from pathlib import Path

import pytest
import torch

from longcat.errors import ConfigError
from trainer.config.options import TrainConfig
from trainer.model.base import prepare_model


def test_a_directory_of_a_model_that_edits_needs_pairs(edit_folder: Path, tmp_path: Path) -> None:
    """The published flavours are known by name, with the options; what a directory holds is known once it is read."""
    given = {"model_flavour": str(edit_folder), "instance_data_dir": str(tmp_path), "output_dir": str(tmp_path / "out")}
    with pytest.raises(ConfigError) as refused:
        prepare_model(TrainConfig.model_validate(given), torch.device("cpu"))
    assert [problem.code for problem in refused.value.problems] == ["references_not_given"]
