"""The metadata of a picture file, as an XMP packet in a PNG, JPEG or WebP: its label as made by a model, and its recipe.

The label is machine-readable, as Article 50 of the EU's AI Act and China's labelling rules ask for:

- IPTC's ``DigitalSourceType`` (https://cv.iptc.org/newscodes/digitalsourcetype/): ``trainedAlgorithmicMedia``, and
  ``compositeWithTrainedAlgorithmicMedia`` for a picture that was made from another one.
- The implicit label of GB 45438-2025, appendix E, in the XMP property that TC260-PG-20258A gives for images.
"""

import hashlib
import json
import re
from xml.sax.saxutils import escape

_NAMESPACES = {
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "TC260": "http://www.tc260.org.cn/ns/AIGC/1.0/",
    "lithograph": "https://lithograph.dev/ns/1.0/",
}
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
GENERATED_SOURCE = f"{_SOURCE_TYPES}trainedAlgorithmicMedia"
EDITED_SOURCE = f"{_SOURCE_TYPES}compositeWithTrainedAlgorithmicMedia"
"""IPTC's "edited using generative AI": img2img, inpainting, outpainting and edits by instruction."""
SOURCE_PROPERTY = "Iptc4xmpExt:DigitalSourceType"
_IS_GENERATED = "1"
"""GB 45438's value of ``Label`` for what certainly is generated; 2 is possibly, 3 is suspected."""
_NOT_IN_XML = re.compile("[\ufffe\uffff]")
_HEAD, _TAIL = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>', '<?xpacket end="r"?>'
LARGEST_PACKET_BYTES = 65_000
"""Size that fits a JPEG's segment, which ends at 65,533 bytes."""


_LARGEST_READ_BYTES = 2**20
"""Largest packet of any program that is read: a tree of XML takes a hundred times its text."""


def xmp_packet(*, source: str, producer: str | None, recipe: str | None, content_id: str) -> bytes:
    """Return the packet of a file; empty if it has nothing to carry.

    ``source``: IPTC's digital source type. ``recipe``: as JSON. ``content_id``: the producer's id of this content.
    A recipe that would make the packet larger than ``LARGEST_PACKET_BYTES`` is left out.
    """
    properties = {}
    if producer is not None:
        properties[SOURCE_PROPERTY] = source
        properties["TC260:AIGC"] = _json(_implicit_label(producer, content_id))
    labelled = _packet(properties)
    if recipe is None:
        return labelled
    full = _packet(properties | {"lithograph:recipe": recipe})
    return full if len(full) <= LARGEST_PACKET_BYTES else labelled


def _implicit_label(producer: str, content_id: str) -> dict[str, str]:
    """Return the seven fields of GB 45438-2025. Who only produces a file leaves the propagator's to those who spread it."""
    return {
        "Label": _IS_GENERATED, "ContentProducer": producer, "ProduceID": content_id, "ReservedCode1": "",
        "ContentPropagator": "", "PropagateID": "", "ReservedCode2": "",
    }  # fmt: skip


def _json(fields: dict[str, str]) -> str:
    """Return compact JSON, as the guide's example has it."""
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


def content_id_of(recipe: str) -> str:
    """Return an id of the picture that a recipe makes: the same for the same picture."""
    return hashlib.sha256(recipe.encode()).hexdigest()[:32]


def _packet(properties: dict[str, str]) -> bytes:
    if not properties:
        return b""
    used = {name.partition(":")[0] for name in properties}
    spaces = " ".join(f'xmlns:{prefix}="{_NAMESPACES[prefix]}"' for prefix in sorted(used))
    body = "".join(f"<{name}>{_text(value)}</{name}>" for name, value in properties.items())
    return (
        f'{_HEAD}<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}"><rdf:Description rdf:about="" {spaces}>'
        f"{body}</rdf:Description></rdf:RDF></x:xmpmeta>{_TAIL}"
    ).encode()


def _text(value: str) -> str:
    """Return text for XML 1.0, which lacks two characters; JSON, in which they can be in a string, has escapes for them."""
    return escape(_NOT_IN_XML.sub(lambda found: f"\\u{ord(found[0]):04x}", value))


def properties_of(packet: bytes) -> dict[str, str]:
    """Return those properties of a packet that this module writes, as ``prefix:name``, whichever program wrote them.

    Raises ``ValueError`` for a packet that is too large, is no XML, or has entities or a document type, which could make it
    grow.
    """
    from defusedxml import DefusedXmlException, ElementTree  # here: writing pictures needs none of it

    if len(packet) > _LARGEST_READ_BYTES:
        raise ValueError(f"it has more than {_LARGEST_READ_BYTES} bytes")
    try:
        root = ElementTree.fromstring(packet.decode("utf-8", "replace").strip("\ufeff\0 \r\n"), forbid_dtd=True)
    except (ElementTree.ParseError, DefusedXmlException) as error:
        raise ValueError(str(error)) from error
    names = {f"{{{uri}}}": prefix for prefix, uri in _NAMESPACES.items()}
    found: dict[str, str] = {}
    for description in root.iter(f"{{{_RDF}}}Description"):
        texts = [*description.attrib.items(), *((child.tag, child.text or "") for child in description)]
        for tag, text in texts:
            space, _, name = tag.rpartition("}")
            if (prefix := names.get(space + "}")) is not None:
                found[f"{prefix}:{name}"] = text
    return found
