"""The C2PA manifest of a picture file, and the check that the file is as it was signed. No other host is called."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longcat.errors import UserError
from longcat.problem import reason_of
from service.wire.provenance.credential import not_installed
from service.wire.provenance.extent import extent_of
from service.wire.provenance.signing import offline_context

_TRUSTED, _UNTRUSTED = "signingCredential.trusted", "signingCredential.untrusted"
_OF_CERTIFICATE = "signingCredential."
_MOST_BYTES, _MOST_BOXES = 8 * 2**20, 3000
"""Largest manifest that is checked, which takes seconds."""


@dataclass(frozen=True, kw_only=True)
class SignedManifest:
    """The active manifest of a file."""

    failures: tuple[str, ...]
    """C2PA's codes of what is wrong (specification, section 15.2.2): ``assertion.dataHash.mismatch`` is a changed file. An
    unknown issuer is none of them."""
    is_trusted: bool
    """True if the certificate leads to one of the given roots."""
    signer: str | None
    """Name in the signing certificate, which only a trusted issuer vouches for."""
    software: str | None
    actions: tuple[str, ...]
    """Such as ``c2pa.created trainedAlgorithmicMedia``."""
    ingredients: tuple[str, ...]
    """Name, version and digest of what the file was made from, and the signer of a picture with a manifest of its own."""

    @property
    def is_intact(self) -> bool:
        """True if no byte that the manifest covers was changed. Failures about the certificate alone do not count."""
        return all(code.startswith(_OF_CERTIFICATE) for code in self.failures)


class ManifestUnreadableError(ValueError):
    """A file has a manifest, or a part of one, that cannot be read."""


def read_manifest(content: bytes, *, trust: str | None = None) -> SignedManifest | None:
    """Return the active manifest of a picture file; None if it has none. ``trust``: root certificates in PEM.

    Raises ``ConfigError`` without c2pa's library, ``UserError`` for a manifest that is too large to be checked, or
    ``ManifestUnreadableError``.
    """
    try:
        from c2pa import C2paError, Reader
    except ImportError as error:
        raise not_installed("", "") from error
    extent = extent_of(content)
    if extent is not None and not extent.is_within(size_bytes=_MOST_BYTES, boxes=_MOST_BOXES):
        raise UserError(
            "c2pa_manifest_too_large",
            "the manifest has more than {mib} MiB or {boxes} boxes",
            remedy="check it with another program",
            mib=_MOST_BYTES // 2**20,
            boxes=_MOST_BOXES,
        )
    try:
        with Reader(None, io.BytesIO(content), context=offline_context(trust=trust)) as reader:
            report = json.loads(reader.json())
    except C2paError.ManifestNotFound:
        return None
    except (C2paError, ValueError, RecursionError) as error:
        raise ManifestUnreadableError(reason_of(error)) from error
    try:
        return _manifest_of(report)
    except (
        KeyError,
        TypeError,
        AttributeError,
    ) as error:  # the library reads some manifests that are not as C2PA has them
        raise ManifestUnreadableError("the manifest has not the structure that C2PA gives it") from error


def _manifest_of(report: Mapping[str, Any]) -> SignedManifest:
    manifest = report["manifests"][report["active_manifest"]]
    codes = _codes_of(report.get("validation_results") or {})
    signature = manifest.get("signature_info") or {}
    generators = manifest.get("claim_generator_info") or [{}]
    return SignedManifest(
        failures=tuple(sorted(codes["failure"] - {_UNTRUSTED})),
        is_trusted=_TRUSTED in codes["success"],
        signer=_joined(signature.get("issuer"), signature.get("common_name")),
        software=_joined(generators[0].get("name"), generators[0].get("version")),
        actions=tuple(_action(action) for action in _actions_of(manifest)),
        ingredients=tuple(_ingredient(each, report["manifests"]) for each in manifest.get("ingredients") or ()),
    )


def _codes_of(results: Mapping[str, Any]) -> dict[str, set[str]]:
    """Return the status codes of the active manifest, and the failures of manifests that it includes."""
    active = results.get("activeManifest") or {}
    codes = {kind: {status["code"] for status in active.get(kind) or ()} for kind in ("success", "failure")}
    for delta in results.get("ingredientDeltas") or ():
        codes["failure"] |= {status["code"] for status in (delta.get("validationDeltas") or {}).get("failure") or ()}
    return codes


def _actions_of(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    kinds = ("c2pa.actions", "c2pa.actions.v2")
    return [
        action
        for assertion in manifest.get("assertions") or ()
        if assertion.get("label", "").partition("__")[0] in kinds
        for action in assertion["data"].get("actions") or ()
    ]


def _action(action: Mapping[str, Any]) -> str:
    source = str(action.get("digitalSourceType") or "").rpartition("/")[2]
    return _joined(action.get("action"), source) or ""


def _ingredient(ingredient: Mapping[str, Any], manifests: Mapping[str, Any]) -> str:
    noted = ingredient.get("metadata") or {}
    digest = noted.get("lithograph.sha256")
    named = _joined(ingredient.get("title"), noted.get("lithograph.version")) or ""
    own = (manifests.get(ingredient.get("active_manifest") or "") or {}).get("signature_info") or {}
    signer = _joined(own.get("issuer"), own.get("common_name"))
    notes = [text for text, value in ((f"sha256 {digest}", digest), (f"C2PA: {signer}", signer)) if value]
    return f"{named} ({', '.join(notes)})" if notes else named


def _joined(*parts: object) -> str | None:
    """Return the parts that are there, each once, with blanks between them."""
    return " ".join(dict.fromkeys(str(part) for part in parts if part)) or None
