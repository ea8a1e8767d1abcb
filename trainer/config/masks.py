"""Links between datasets of pictures and of masks, by ``conditioning_data`` or ``source_dataset_id``. No torch."""

from collections.abc import Iterator, Mapping, Sequence

from longcat.problem import Problem
from trainer.config.dataset_options import DatasetConfig

_CONDITIONING = "conditioning"


def masks_of(datasets: Sequence[DatasetConfig]) -> dict[str, DatasetConfig]:
    """Return the dataset of masks of each dataset of pictures that has one, by the id of the latter."""
    masks = {dataset.id: dataset for dataset in datasets if dataset.dataset_type == _CONDITIONING}
    links = {mask.source_dataset_id: mask for mask in masks.values() if mask.source_dataset_id}
    links |= {
        dataset.id: masks[dataset.conditioning_data] for dataset in datasets if dataset.conditioning_data in masks
    }
    return links


def mask_problems(datasets: Sequence[DatasetConfig]) -> Iterator[Problem]:
    """Yield the problems of masks and of their links: those that lead nowhere, and masks that no pictures are linked to."""
    by_id = {dataset.id: dataset for dataset in datasets}
    linked = {mask.id for pictures, mask in masks_of(datasets).items() if pictures in by_id}
    for index, dataset in enumerate(datasets):
        is_mask, place = dataset.dataset_type == _CONDITIONING, f"data_backend_config.{index}"
        if is_mask and dataset.conditioning_type is None:
            yield Problem(
                code="conditioning_type_missing", template="missing, of a dataset with dataset_type conditioning",
                remedy_template="give mask", field=f"{place}.conditioning_type",
            )  # fmt: skip
        for option in () if is_mask else ("conditioning_type", "source_dataset_id"):
            if (value := getattr(dataset, option)) is not None:
                yield Problem(
                    code="option_of_masks", template="an option of datasets with dataset_type conditioning",
                    remedy_template="give it there, and conditioning_data here", field=f"{place}.{option}", value=value,
                )  # fmt: skip
        name = "source_dataset_id" if is_mask else "conditioning_data"
        if (other := dataset.source_dataset_id if is_mask else dataset.conditioning_data) is not None:
            if other not in by_id or (by_id[other].dataset_type == _CONDITIONING) == is_mask:
                yield _not_linked(other, is_mask, by_id).within(field=f"{place}.{name}", value=other)
            elif is_mask and masks_of(datasets)[other].id != dataset.id:
                yield Problem(
                    code="pictures_have_masks", template="dataset {id!r} has the masks {masks!r} already; it can have one",
                    remedy_template="put all masks into one dataset, or leave one out",
                    details={"id": other, "masks": masks_of(datasets)[other].id},
                ).within(field=f"{place}.{name}", value=other)  # fmt: skip
        elif is_mask and dataset.id not in linked:
            yield Problem(
                code="masks_of_no_dataset", template="no dataset of pictures is linked to these masks",
                remedy_template="give {mask!r} as conditioning_data of the pictures", details={"mask": dataset.id},
            ).within(field=f"{place}.id", value=dataset.id)  # fmt: skip


def _not_linked(other: str, is_mask: bool, by_id: Mapping[str, DatasetConfig]) -> Problem:
    if is_mask:
        return Problem(
            code="mask_source_missing", template="no dataset of pictures has the id {id!r}",
            remedy_template="give the id of the pictures that the masks are for", details={"id": other},
        )  # fmt: skip
    if other in by_id:
        return Problem(
            code="conditioning_data_not_masks",
            template="dataset {id!r} has no masks; training with a second picture is not supported",
            remedy_template="leave it out; if it has masks, give it dataset_type conditioning and conditioning_type mask",
            details={"id": other},
        )  # fmt: skip
    return Problem(
        code="conditioning_data_missing", template="no dataset has the id {id!r}",
        remedy_template="leave it out, or add the masks with that id, dataset_type conditioning and conditioning_type mask",
        details={"id": other},
    )  # fmt: skip
