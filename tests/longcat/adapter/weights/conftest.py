import copy
from collections.abc import Mapping
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import Tensor

from longcat.model.loading import Components
from tests.longcat.adapter.weights.lycoris_networks import KINDS, create, randomized
from tests.longcat.adapter.weights.test_dora import velocity
from tests.longcat.sampling.test_denoise import encode

SCALES = (1.0, 0.6, -0.5)


@pytest.fixture(params=KINDS, scope="module")
def written(
    model: Components, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Path, Mapping[float, Tensor]]:
    """Write a file by the real package; return it with the velocities of the model under it by scale."""
    transformer = copy.deepcopy(model.transformer)
    network = randomized(create(transformer, **KINDS[request.param]), seed=1)
    file = tmp_path_factory.mktemp("lycoris") / "lycoris.safetensors"
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, file)
    velocities = {}
    for scale in SCALES:
        network.set_multiplier(scale)
        velocities[scale] = velocity(transformer, encode(model, "一个红苹果"))
    return file, velocities
