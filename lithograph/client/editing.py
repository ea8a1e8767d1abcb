"""How the service reads pictures that are changed: the size of the result, and usual strengths."""

from service.wire.editing.fields import IMG2IMG_STRENGTH, INPAINT_STRENGTH
from service.wire.editing.reading import ReadPictures

__all__ = ["IMG2IMG_STRENGTH", "INPAINT_STRENGTH", "ReadPictures"]
