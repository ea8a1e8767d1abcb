"""Links between datasets of pictures and of their second pictures, and what a model that edits needs of them. No torch.

A second picture is a mask, or the reference that a picture is edited from. ``conditioning_data`` of the pictures names its
dataset, or ``source_dataset_id`` of that dataset names the pictures.
"""

from collections.abc import Iterator, Mapping, Sequence

from longcat.problem import Problem
from trainer.config.dataset_options import DatasetConfig
from trainer.config.fields import TrainFields

_CONDITIONING = "conditioning"


def masks_of(datasets: Sequence[DatasetConfig]) -> dict[str, DatasetConfig]:
    """Return the dataset of masks of each dataset of pictures that has one, by the id of the latter."""
    return _links(datasets, are_references=False)


def references_of(datasets: Sequence[DatasetConfig]) -> dict[str, DatasetConfig]:
    """Return the dataset of references of each dataset of pictures that has one, by the id of the latter."""
    return _links(datasets, are_references=True)


def _links(datasets: Sequence[DatasetConfig], *, are_references: bool) -> dict[str, DatasetConfig]:
    linked = {
        dataset.id: dataset
        for dataset in datasets
        if dataset.dataset_type == _CONDITIONING and dataset.has_references == are_references
    }
    links = {of.source_dataset_id: of for of in linked.values() if of.source_dataset_id}
    links |= {
        dataset.id: linked[dataset.conditioning_data] for dataset in datasets if dataset.conditioning_data in linked
    }
    return links


def link_problems(datasets: Sequence[DatasetConfig]) -> Iterator[Problem]:
    """Yield the problems of second pictures and of links: those that lead nowhere, and datasets that nothing links to."""
    by_id = {dataset.id: dataset for dataset in datasets}
    links = {False: masks_of(datasets), True: references_of(datasets)}
    linked = {second.id for of_kind in links.values() for pictures, second in of_kind.items() if pictures in by_id}
    for index, dataset in enumerate(datasets):
        is_second, place = dataset.dataset_type == _CONDITIONING, f"data_backend_config.{index}"
        if is_second and dataset.conditioning_type is None:
            yield Problem(
                code="conditioning_type_missing", template="missing, of a dataset with dataset_type conditioning",
                remedy_template="give mask, or for pictures that others are edited from reference_strict",
                field=f"{place}.conditioning_type",
            )  # fmt: skip
        for option in () if is_second else ("conditioning_type", "source_dataset_id"):
            if (value := getattr(dataset, option)) is not None:
                yield Problem(
                    code="option_of_masks", template="an option of datasets with dataset_type conditioning",
                    remedy_template="give it there, and conditioning_data here", field=f"{place}.{option}", value=value,
                )  # fmt: skip
        name = "source_dataset_id" if is_second else "conditioning_data"
        if (other := dataset.source_dataset_id if is_second else dataset.conditioning_data) is not None:
            if other not in by_id or (by_id[other].dataset_type == _CONDITIONING) == is_second:
                yield _not_linked(other, is_second, by_id).within(field=f"{place}.{name}", value=other)
            elif is_second and (first := links[dataset.has_references][other].id) != dataset.id:
                yield _linked_twice(other, first, dataset).within(field=f"{place}.{name}", value=other)
        elif is_second and dataset.id not in linked:
            yield Problem(
                code="masks_of_no_dataset", template="no dataset of pictures is linked to these",
                remedy_template="give {mask!r} as conditioning_data of the pictures", details={"mask": dataset.id},
            ).within(field=f"{place}.id", value=dataset.id)  # fmt: skip


def _linked_twice(pictures: str, first: str, second: DatasetConfig) -> Problem:
    if second.has_references:
        return Problem(
            code="pictures_have_references",
            template="dataset {id!r} has the references {references!r} already, and the model edits one picture at a time",
            remedy_template="leave one out", details={"id": pictures, "references": first},
        )  # fmt: skip
    return Problem(
        code="pictures_have_masks", template="dataset {id!r} has the masks {masks!r} already; it can have one",
        remedy_template="put all masks into one dataset, or leave one out", details={"id": pictures, "masks": first},
    )  # fmt: skip


def _not_linked(other: str, is_second: bool, by_id: Mapping[str, DatasetConfig]) -> Problem:
    if is_second:
        return Problem(
            code="mask_source_missing", template="no dataset of pictures has the id {id!r}",
            remedy_template="give the id of the pictures that these belong to", details={"id": other},
        )  # fmt: skip
    if other in by_id:
        return Problem(
            code="conditioning_data_not_second",
            template="dataset {id!r} has pictures to train on, by its dataset_type; a link leads to masks or references",
            remedy_template="give it dataset_type conditioning and conditioning_type mask or reference_strict",
            details={"id": other},
        )  # fmt: skip
    return Problem(
        code="conditioning_data_missing", template="no dataset has the id {id!r}",
        remedy_template="leave it out, or add the masks or references with that id, dataset_type conditioning and a "
        "conditioning_type",
        details={"id": other},
    )  # fmt: skip


def editing_problems(config: TrainFields, datasets: Sequence[DatasetConfig], *, edits: bool) -> Iterator[Problem]:
    """Yield the problems of a configuration whose model edits pictures, or does not. ``datasets``: of the training."""
    references = references_of(datasets)
    if not edits:
        yield from _without_editing(config, datasets, references)
        return
    if config.distillation is not None:
        yield Problem(
            code="distillation_of_editing", template="an image editing model, which cannot be distilled here",
            remedy_template="give final or dev; edit-turbo is the published model of few steps",
            field="model_flavour", value=config.model_flavour,
        )  # fmt: skip
        return
    for index, dataset in enumerate(datasets):
        if dataset.dataset_type != _CONDITIONING and dataset.id not in references:
            is_single = config.instance_data_dir is not None
            yield Problem(
                code="references_not_given",
                template="the model edits pictures, and dataset {id!r} has none that its pictures are edited from",
                remedy_template="give its conditioning_data: the id of a dataset with conditioning_type reference_strict, "
                "whose files have the same names; data_backend_config takes both",
                field="instance_data_dir" if is_single else f"data_backend_config.{index}.conditioning_data",
                value=dataset.uri if is_single else None, details={"id": dataset.id},
            )  # fmt: skip
    if config.publish_max_copies is not None:
        yield Problem(
            code="copies_of_edits", template="an edited picture is meant to resemble a picture of its pair",
            remedy_template="leave it out", field="publish_max_copies", value=config.publish_max_copies,
        )  # fmt: skip


def _without_editing(
    config: TrainFields, datasets: Sequence[DatasetConfig], references: Mapping[str, DatasetConfig]
) -> Iterator[Problem]:
    for index, dataset in enumerate(datasets):
        if dataset.id in references:
            yield Problem(
                code="references_without_editing",
                template="the pictures of {id!r} are references, which only a model that edits is trained with",
                remedy_template="give model_flavour edit, or leave out the link and the references",
                field=f"data_backend_config.{index}.conditioning_data", value=dataset.conditioning_data,
                details={"id": references[dataset.id].id},
            )  # fmt: skip
    if config.validation_input:
        yield Problem(
            code="validation_input_without_editing", template="pictures to edit, and the model edits none",
            remedy_template="give validation_prompts, or model_flavour edit", field="validation_input",
            value=", ".join(str(given.path) for given in config.validation_input),
        )  # fmt: skip
