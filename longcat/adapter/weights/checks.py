"""Checks of one tensor of an adapter. Errors name no input; callers add theirs (``LithographError.within``)."""

from torch import Tensor

from longcat.errors import AdapterError


def check_shape(module: str, kind: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise ``AdapterError`` unless a tensor, or an update, has the shape that its module needs."""
    if shape != expected:
        raise AdapterError(
            "adapter_shape",
            "{module} {kind} has shape {shape}; this model needs {expected}",
            remedy="use it with the model that it was made for",
            module=module,
            kind=kind,
            shape=str(shape),
            expected=str(expected),
        )


def check_floating_point(module: str, kind: str, tensor: Tensor) -> None:
    """Raise ``AdapterError`` for a tensor of integers or booleans."""
    if not tensor.is_floating_point():
        raise AdapterError(
            "adapter_not_floating_point",
            "{module} {kind} holds {dtype}, not floating-point numbers",
            remedy="save the adapter again",
            module=module,
            kind=kind,
            dtype=str(tensor.dtype).removeprefix("torch."),
        )
