"""The bytes of embedding captions ahead of a training. No torch."""

from longcat.model.memory.vision import read_vision_tower
from longcat.model.memory.weights import ITEM_BYTES, read_text_encoder
from longcat.model.precision import Precision
from trainer.memory.workload import Workload


def text_encoder_bytes(workload: Workload) -> int:
    """Return the bytes of the text encoder and of a caption for each worker; of one that sees, with the vision tower.

    A CPU holds the weights unquantized while it loads.
    """
    model = read_text_encoder(workload.flavour_folder)
    item, tower_bytes = ITEM_BYTES[workload.dtype], 0
    working = model.encoding_bytes(workload.prompt_rows, item)
    if workload.edits:
        tower = read_vision_tower(workload.flavour_folder)
        tower_bytes = tower.weight_bytes(item)
        working = max(working, tower.encoding_bytes(workload.seen_tokens, item))
    assert workload.text_encoder_precision != "auto"
    stored = model.weight_bytes(workload.text_encoder_precision, item) + working * workload.text_workers
    whole = model.weight_bytes(Precision.NO_CHANGE, item) if workload.device == "cpu" else 0
    return tower_bytes + max(stored, whole)
