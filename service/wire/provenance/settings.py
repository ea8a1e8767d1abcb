"""The configuration of what picture files say, a group of the service's options."""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from longcat.errors import LithographError
from longcat.options import Configuration, Flag
from longcat.problem import Problem
from longcat.validation import ProblemValueError
from service.wire.provenance.mark import MarkPainter, Position
from service.wire.provenance.rotation import RotatingSigner

PRODUCER = "Lithograph"
_LONGEST_PRODUCER = 200
_LONGEST_MARK = 40


class ProvenanceConfig(Configuration):
    """The metadata of picture files."""

    picture_label: Literal["on", "off"] = "on"
    """Mark each picture file as made by a model: IPTC's DigitalSourceType, and the implicit label of China's GB 45438."""
    picture_producer: Annotated[str, Field(min_length=1, max_length=_LONGEST_PRODUCER)] = PRODUCER
    """Producer in that label (ContentProducer): the name or the code of the organization that runs the service."""
    picture_recipe: Literal["on", "off"] = "on"
    """Write into each picture file what made it, prompt included, so that it can be made again; off leaves it out."""
    c2pa_certificate: Annotated[Path | None, Flag(metavar="FILE")] = None
    """Sign each picture file with a C2PA manifest: PEM file with the signing certificate, and then those between it and its
    root. It is read again when it changes."""
    c2pa_key: Annotated[Path | None, Flag(metavar="FILE")] = None
    """PEM file with that certificate's private key, without a passphrase: EC, Ed25519 or RSA."""

    visible_mark: Annotated[str | None, Field(min_length=1, max_length=_LONGEST_MARK)] = None
    """Paint this text on each picture, such as "AI": capitals are 5 % of its shorter side high, as GB 45438 asks for."""
    visible_mark_position: Position = "bottom-right"
    """Corner of that text."""
    visible_mark_font: Annotated[Path | None, Flag(metavar="FILE")] = None
    """TrueType or OpenType font of that text, which Chinese needs; without it, Pillow's own, for Latin letters."""

    @field_validator("visible_mark")
    @classmethod
    def _check_text(cls, given: str | None) -> str | None:
        if given is not None and not (given.isprintable() and given.strip()):
            raise ProblemValueError(
                Problem(
                    code="visible_mark_unprintable",
                    template="not one line of printable text",
                    remedy_template="give text without line breaks and control characters",
                )
            )
        return given

    @model_validator(mode="after")
    def _check_mark(self) -> Self:
        """Load the font, so that a character that it lacks ends the start."""
        if self.visible_mark is None and self.visible_mark_font is not None:
            raise ProblemValueError(
                Problem(
                    code="visible_mark_font_alone",
                    template="there is no text to paint in this font",
                    remedy_template="give --visible-mark, too",
                    field="visible_mark_font",
                    value=str(self.visible_mark_font),
                )
            )
        try:
            self.painter()
        except LithographError as error:
            raise ProblemValueError(error.problems[0]) from error
        return self

    @model_validator(mode="after")
    def _check_signing(self) -> Self:
        """Sign a picture for trial, so that a certificate of no use ends the start, not each request."""
        if (self.c2pa_certificate is None) != (self.c2pa_key is None):
            raise ProblemValueError(
                Problem(
                    code="c2pa_incomplete",
                    template="signing needs both a certificate and its key",
                    remedy_template="give both --c2pa-certificate and --c2pa-key, or neither",
                )
            )
        try:
            self.signer()
        except LithographError as error:
            raise ProblemValueError(error.problems[0]) from error
        return self

    @property
    def producer(self) -> str | None:
        """The producer that files name; None without the label."""
        return self.picture_producer if self.picture_label == "on" else None

    @property
    def signs(self) -> bool:
        """True if files are signed."""
        return self.c2pa_certificate is not None

    @cached_property
    def fixed(self) -> dict[str, object]:
        """The settings that decide the bytes of a picture file, as JSON has them. A signature is new each time.

        Cached, because the checksum of a font of 20 MB takes as long as some requests.
        """
        fixed: dict[str, object] = self.model_dump(include={"picture_label", "picture_producer", "picture_recipe"})
        if self.signs:
            fixed["c2pa"] = True
        if (painter := self.painter()) is not None:
            fixed["visible_mark"] = painter.mark.model_dump()
        return fixed

    def painter(self) -> MarkPainter | None:
        """Read the mark's font; None without a mark. Raises ``ConfigError``."""
        if self.visible_mark is None:
            return None
        return MarkPainter(self.visible_mark, self.visible_mark_position, self.visible_mark_font)

    def signer(self) -> RotatingSigner | None:
        """Read the certificate and its key; None without them. Raises ``ConfigError``."""
        if self.c2pa_certificate is None or self.c2pa_key is None:
            return None
        return RotatingSigner(self.c2pa_certificate, self.c2pa_key)
