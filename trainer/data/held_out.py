"""Pictures that are held out of training, to measure the loss on pictures that the adapter has not seen. No torch."""

import hashlib
from collections import defaultdict
from dataclasses import replace

from longcat.errors import DataError
from longcat.problem import Problem
from trainer.data.captions.language import detect_language
from trainer.data.inventory import Inventory
from trainer.data.sample import Sample


def hold_out(inventory: Inventory, share: float) -> Inventory:
    """Move a share of the pictures from training to the held-out ones.

    The choice follows from their content alone, so that runs with other options can be compared. At least one picture of
    each language is held out, if another remains. Copies of a picture are held out together.
    """
    languages: dict[str, dict[str, None]] = defaultdict(dict)
    if share:
        for sample in inventory.samples:
            if not sample.is_prior:  # the base's own prediction is their target: their loss shows no overfitting
                languages[detect_language(sample.captions[0])][sample.digest] = None
    chosen = {
        digest
        for digests in languages.values()
        if len(digests) > 1
        for digest in sorted(digests, key=_place)[: max(1, round(share * len(digests)))]
    }
    warnings = () if chosen or not share else (_too_few(inventory, share),)
    return replace(
        inventory,
        samples=tuple(sample for sample in inventory.samples if sample.digest not in chosen),
        held_out=inventory.held_out + tuple(sample for sample in inventory.samples if sample.digest in chosen),
        warnings=inventory.warnings + warnings,
    )


def _too_few(inventory: Inventory, share: float) -> Problem:
    return Problem(
        code="eval_share_of_too_few",
        template="none of the {count} usable pictures could be held out: no language has two different ones",
        remedy_template="give more pictures, or a dataset with dataset_type eval",
        field="eval_share",
        value=share,
        details={"count": len(inventory.samples)},
    )


def without_trained(inventory: Inventory) -> Inventory:
    """Leave out held-out pictures that are trained on too, with a warning: their loss would show nothing."""
    trained = {sample.digest for sample in inventory.samples}
    kept = tuple(sample for sample in inventory.held_out if sample.digest not in trained)
    count = len(inventory.held_out) - len(kept)
    if not count:
        return inventory
    warning = Problem(
        code="held_out_trained_on",
        template="{count} pictures of the datasets with dataset_type eval are training pictures too; they are not held out",
        remedy_template="leave them out of one of the two",
        details={"count": count},
    )
    return replace(inventory, held_out=kept, warnings=(*inventory.warnings, warning))


def nothing_held_out(inventory: Inventory, option: str) -> DataError:
    """Return the error of an option that needs held-out pictures where none could be held out, and the cause if known."""
    nothing = Problem(
        code="nothing_held_out",
        template="it is about the loss on held-out pictures, and of {count} usable pictures none could be held out",
        remedy_template="give more pictures, or a dataset with dataset_type eval",
        field=option,
        details={"count": len(inventory.samples)},
    )
    return DataError.of((nothing, *(cause for cause in inventory.warnings if cause.code == "held_out_trained_on")))


def _place(digest: str) -> str:
    """Return a picture's rank in the order of holding out, which follows from its content."""
    return hashlib.sha256(f"held out {digest}".encode()).hexdigest()


def in_order(samples: tuple[Sample, ...]) -> list[Sample]:
    """Return samples in the order of holding out: a set that grows keeps its first pictures."""
    return sorted(samples, key=lambda sample: (_place(sample.digest), sample.dataset, sample.key))
