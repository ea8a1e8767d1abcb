"""The configuration of what picture files say, a group of the service's options."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from longcat.errors import LithographError
from longcat.options import Configuration, Flag
from longcat.problem import Problem
from longcat.validation import ProblemValueError
from service.wire.provenance.credential import Credential, read_credential
from service.wire.provenance.signing import ManifestSigner

PRODUCER = "Lithograph"
_LONGEST_PRODUCER = 200


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
    root. It is read at start."""
    c2pa_key: Annotated[Path | None, Flag(metavar="FILE")] = None
    """PEM file with that certificate's private key, without a passphrase: EC, Ed25519 or RSA."""

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
            if (signer := self.signer()) is not None:
                signer.check(field="c2pa_certificate", value=str(self.c2pa_certificate))
        except LithographError as error:
            raise ProblemValueError(error.problems[0]) from error
        return self

    @property
    def producer(self) -> str | None:
        """The producer that files name; None without the label."""
        return self.picture_producer if self.picture_label == "on" else None

    @property
    def fixed(self) -> dict[str, object]:
        """The settings that decide the bytes of a picture file, as JSON has them. A signature is new each time."""
        kept = self.model_dump(exclude={"c2pa_certificate", "c2pa_key"})
        return kept if self.c2pa_certificate is None else kept | {"c2pa": True}

    def signer(self) -> ManifestSigner | None:
        """Read the certificate and its key; None without them. Raises ``ConfigError``."""
        credential = self._credential()
        return None if credential is None else ManifestSigner(credential)

    def _credential(self) -> Credential | None:
        if self.c2pa_certificate is None or self.c2pa_key is None:
            return None
        return read_credential(self.c2pa_certificate, self.c2pa_key)
