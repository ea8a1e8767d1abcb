"""The options of the report card that need each other. No torch."""

from collections.abc import Iterator

from longcat.problem import Problem
from trainer.config.fields import TrainFields

_NEED_HELD_OUT = ("publish_checkpoint", "early_stopping_patience", "publish_min_improvement", "publish_max_overfit")


def needs_held_out(config: TrainFields) -> tuple[str, ...]:
    """Return the configured options that are about the loss on held-out pictures."""
    defaults = type(config).model_fields
    return tuple(name for name in _NEED_HELD_OUT if getattr(config, name) != defaults[name].default)


def card_problems(config: TrainFields) -> Iterator[Problem]:
    """Yield a problem for each option of the report card that lacks what it is about."""
    held_out = [dataset.id for dataset in config.data_backend_config if dataset.dataset_type == "eval"]
    if config.eval_dataset_id is not None and config.eval_dataset_id not in held_out:
        yield Problem(
            code="eval_dataset_unknown",
            template="not the id of a dataset with dataset_type eval",
            remedy_template="give the id of one, or leave it out to use all of them; there are: {ids}",
            field="eval_dataset_id",
            value=config.eval_dataset_id,
            details={"ids": ", ".join(held_out) or "–"},
        )
    if not config.eval_share and not held_out:
        for name in needs_held_out(config):
            yield Problem(
                code="held_out_pictures_missing",
                template="it is about the loss on held-out pictures, and none are held out",
                remedy_template="set eval_share, to 0.1 for example, or give a dataset with dataset_type eval",
                field=name,
                value=getattr(config, name),
            )
    if config.publish_max_copies is not None and config.validation_disable:
        yield Problem(
            code="copies_need_validation",
            template="copies are looked for among validation pictures, and validation_disable is set",
            remedy_template="leave out one of the two",
            field="publish_max_copies",
            value=config.publish_max_copies,
        )
