"""C2PA manifests (https://spec.c2pa.org): a signed claim of what made a picture file, and a hash of its bytes.

The claim covers the whole file, label and recipe included, but for the manifest itself. Two signatures of the same picture
differ in the manifest alone: c2pa's library gives each one random ids, and most kinds of signatures are random, too.
"""

import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from PIL import Image

from longcat.errors import ConfigError, EngineError
from longcat.logs import log_event
from longcat.problem import reason_of
from service.wire.provenance.credential import Credential, not_installed
from service.wire.provenance.packet import EDITED_SOURCE, GENERATED_SOURCE

log = logging.getLogger("lithograph")

_AGENT = "Lithograph"
PARENT_LABEL = "parent"
"""Label of the picture that was changed, by which actions refer to it."""
_OFFLINE: Mapping[str, Any] = {
    "version": 1,
    "core": {"allowed_network_hosts": []},
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_after_sign": False},
    "builder": {
        "thumbnail": {"enabled": False},
        "actions": {
            "auto_created_action": {"enabled": False},
            "auto_opened_action": {"enabled": False},
            "auto_placed_action": {"enabled": False},
        },
    },
}
"""Settings of c2pa's library: it calls no other host, and adds nothing to the claim."""


@dataclass(frozen=True, kw_only=True)
class Ingredient:
    """One thing that a picture was made from."""

    kind: Literal["model", "adapter", "picture"]
    """``picture``: the picture that was changed."""
    name: str
    version: str | None
    sha256: str

    @classmethod
    def of_picture(cls, sha256: str) -> "Ingredient":
        """Return the picture that was changed, by the checksum of its file."""
        return cls(kind="picture", name="image", version=None, sha256=sha256)

    def definition(self, label: str) -> dict[str, Any]:
        """Return the ingredient for the library; actions refer to it by ``label``."""
        named: dict[str, Any] = {
            "label": label,
            "title": self.name,
            "instance_id": f"urn:sha256:{self.sha256}",
            "relationship": "parentOf" if self.kind == "picture" else "inputTo",
            "metadata": {"lithograph.kind": self.kind, "lithograph.sha256": self.sha256},
        }
        if self.version is not None:
            named["metadata"]["lithograph.version"] = self.version
        if self.kind != "picture":
            named["data_types"] = [{"type": "c2pa.types.model"}]
        return named


def claim_of(ingredients: Sequence[Ingredient], *, with_parent: bool = True) -> dict[str, Any]:
    """Return the claim of a picture, which is an edit if another picture is among the ingredients.

    ``with_parent``: define that picture; False if it is added to the claim with its manifest.
    """
    models = [each.definition(f"ingredient-{i}") for i, each in enumerate(ingredients) if each.kind != "picture"]
    parents = [each.definition(PARENT_LABEL) for each in ingredients if each.kind == "picture"]
    agent = {"name": _AGENT, "version": version("lithograph")}
    made = {"softwareAgent": agent, "parameters": {"ingredientIds": [each["label"] for each in models]}}
    if parents:
        actions: list[dict[str, Any]] = [
            {"action": "c2pa.opened", "softwareAgent": agent, "parameters": {"ingredientIds": [PARENT_LABEL]}},
            {"action": "c2pa.edited", "digitalSourceType": EDITED_SOURCE, **made},
        ]
    else:
        actions = [{"action": "c2pa.created", "digitalSourceType": GENERATED_SOURCE, **made}]
    return {
        "claim_version": 2,
        "claim_generator_info": [agent],
        "ingredients": [*models, *parents] if with_parent else models,
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}],
    }


def offline_context(signer: Any = None, *, trust: str | None = None) -> Any:
    """Return a context of c2pa's library without network. ``trust``: root certificates in PEM; None trusts none."""
    from c2pa import Context, Settings

    trusted: dict[str, Any] = {} if trust is None else {"trust": {"user_anchors": trust}}
    return Context(Settings.from_dict({**_OFFLINE, **trusted}), signer)


class ManifestSigner:
    """Adds signed manifests to picture files. Threads may share it."""

    def __init__(self, credential: Credential) -> None:
        """Load c2pa's library. Raises ``ConfigError`` without it, or if it does not take the certificate."""
        try:
            from c2pa import C2paError, C2paSignerInfo, Signer
        except ImportError as error:
            raise not_installed("c2pa_certificate", "") from error
        try:
            info = C2paSignerInfo(credential.algorithm, credential.chain, credential.key, None)
            self._context = offline_context(Signer.from_info(info))
        except C2paError as error:
            raise _unsuited(error, field="c2pa_certificate", value="") from error

    def check(self, *, field: str, value: str) -> None:
        """Sign a picture of one pixel. Raises ``ConfigError`` about ``field`` and ``value`` if that fails."""
        blank = io.BytesIO()
        Image.new("RGB", (1, 1)).save(blank, "PNG")
        try:
            self.sign(blank.getvalue(), "image/png", ())
        except EngineError as error:
            raise _unsuited(error.__cause__ or error, field=field, value=value) from error

    def sign(
        self, content: bytes, media_type: str, ingredients: Sequence[Ingredient], parent: bytes | None = None
    ) -> bytes:
        """Return a picture file with a manifest.

        ``parent``: the manifest of the picture that was changed, from ``parent_of``; without it if that cannot be added.
        Raises ``EngineError``, as for a certificate that has expired since.
        """
        from c2pa import Builder, C2paError

        signed = io.BytesIO()
        try:
            with Builder(json.dumps(claim_of(ingredients, with_parent=parent is None)), self._context) as builder:
                if parent is not None:
                    builder.add_ingredient_from_archive(io.BytesIO(parent))
                builder.sign(media_type, io.BytesIO(content), signed)
        except C2paError as error:
            if parent is not None:
                log_event(log, "c2pa_parent_ignored", logging.DEBUG, reason=reason_of(error))
                return self.sign(content, media_type, ingredients)
            raise EngineError(
                "c2pa_signing_failed",
                "the picture could not be signed: {reason}",
                remedy="check that the certificate of --c2pa-certificate is still valid, and replace it",
                reason=reason_of(error),
            ) from error
        return signed.getvalue()


def _unsuited(error: BaseException, *, field: str, value: str) -> ConfigError:
    return ConfigError(
        "c2pa_certificate_unsuited",
        "C2PA does not take it for signing: {reason}",
        remedy="give a certificate that an authority issued with the key usage digitalSignature and an extended key usage "
        "such as emailProtection or documentSigning, followed by the certificates between it and its root",
        field=field,
        value=value,
        reason=reason_of(error),
    )
