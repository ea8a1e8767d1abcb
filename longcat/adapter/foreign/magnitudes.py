"""The magnitudes of DoRA in other programs' files: ``lora_magnitude_vector`` or ``dora_scale``.

LyCORIS and OneTrainer write ``dora_scale``, whose shape gives its axis. (out, 1) are norms of rows, as PEFT has them.
(1, in) are norms of columns, of all the rows of the layer as the file has it: the modules of a fused layer share them.
"""

from collections.abc import Mapping

from torch import Tensor

from longcat.adapter.foreign.keys import Source
from longcat.adapter.foreign.peft_config import PeftConfig
from longcat.adapter.weights.lycoris import LYCORIS_KEYS
from longcat.errors import AdapterError


def check_dora(sources: Mapping[str, Source], config: PeftConfig | None) -> None:
    """Check that all layers have magnitudes if the configuration says ``use_dora``, and none otherwise."""
    having = [name for name, source in sources.items() if "magnitude" in source]
    if having and config is not None and not config.use_dora:
        raise AdapterError(
            "adapter_dora_unannounced",
            "holds DoRA's magnitudes, such as that of {module!r}, although its configuration has use_dora false",
            remedy="save the adapter again",
            module=having[0],
        )
    if config is not None and config.use_dora and len(having) < len(sources):
        raise AdapterError(
            "adapter_dora_incomplete",
            "has use_dora in its configuration, and {missing} of its {count} layers have no lora_magnitude_vector",
            remedy="save the adapter again",
            missing=len(sources) - len(having),
            count=len(sources),
        )


def take_column_magnitudes(
    sources: Mapping[str, Source], parts: Mapping[str, tuple[str, ...]]
) -> dict[tuple[str, ...], Tensor]:
    """Take the magnitudes of columns out of a file's layers, (in,) by their modules. Raises ``AdapterError``."""
    found = {}
    for name, source in sources.items():
        scale = source.get("dora_scale")
        if scale is None:
            continue
        if source.keys() & LYCORIS_KEYS:
            raise AdapterError(
                "adapter_dora_of_lycoris",
                "uses DoRA with LoKr or LoHa ({key!r}), which cannot be served",
                remedy="train it without weight decomposition (dora_wd), or as LoRA",
                key=f"{name}.dora_scale",
            )
        if "down" in source and tuple(scale.shape) == (1, *source["down"].shape[1:]):
            found[parts[name]] = source.pop("dora_scale").flatten()
    return found


def row_magnitude(name: str, source: Source) -> Tensor | None:
    """Return the magnitudes of rows, as PEFT has them. Raises ``AdapterError`` for a shape that gives no axis."""
    scale = source.get("dora_scale")
    if scale is None or not source.keys() >= {"down", "up"}:  # a layer without them is refused for that
        return source.get("magnitude")
    rows, columns = source["up"].shape[0], source["down"].shape[-1]
    if tuple(scale.shape) != (rows, 1):
        raise AdapterError(
            "adapter_dora_scale",
            "uses DoRA over an unknown axis: {key!r} has shape {shape}, and norms of rows have ({rows}, 1), those of "
            "columns (1, {columns})",
            remedy="save the adapter again with its own program",
            key=f"{name}.dora_scale",
            shape=str(tuple(scale.shape)),
            rows=rows,
            columns=columns,
        )
    return scale.flatten()
