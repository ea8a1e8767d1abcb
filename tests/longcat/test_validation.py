"""Problems of fields that do not exist."""

import pytest

from longcat.validation import unknown_field

NAMES = (
    "prompt", "guidance_scale", "width", "height", "learning_rate", "lora_rank", "max_train_steps", "revision",
    "validation_prompt", "validation_seed", "validation_steps", "checkpointing_steps", "text_encoder_1_precision",
    "lora_targets", "conditioning_data", "text_embeds", "crop", "caption_shares", "caption_column", "train_batch_size",
)  # fmt: skip


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("promt", "prompt"),
        ("widht", "width"),
        ("lora_rnk", "lora_rank"),
        ("loraRank", "lora_rank"),
        ("learning-rate", "learning_rate"),
        ("learningrate", "learning_rate"),
        ("train_batchsize", "train_batch_size"),
        ("guidance", "guidance_scale"),
        ("max_steps", "max_train_steps"),
        ("a.b.validation_promt", "validation_prompt"),
        # Names with most letters in common that mean different things.
        ("validation_torch_compile", None),
        ("validation_lyrics", None),
        ("text_encoder_4_precision", None),
        ("flux_lora_target", None),
        ("image_embeds", None),
        ("precision", None),
        ("captions", None),
        ("crop_ratio", None),
        ("data", None),
        # Several names are as near.
        ("steps", None),
        ("caption", None),
        ("", None),
    ],
)
def test_the_name_that_was_meant(given: str, nearest: str | None) -> None:
    problem = unknown_field(given, 1, NAMES)
    assert problem.details.get("nearest") == nearest
    assert problem.code == ("unknown_field_listed" if nearest is None else "unknown_field")
