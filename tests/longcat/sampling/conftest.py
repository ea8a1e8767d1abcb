import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LongCatImageEditPipeline

from longcat.model.loading import Components
from longcat.sampling.encoding.reference import ReferenceEncoder
from tests.edit_model import PROMPT_TOKENS


@pytest.fixture
def references(edit_model: Components) -> ReferenceEncoder:
    return ReferenceEncoder(edit_model)


class TextProcessor:
    """The part of transformers' Qwen2VLProcessor that the pipeline uses; the class itself needs torchvision."""

    def __init__(self, image_processor: object) -> None:
        self.image_processor = image_processor


@pytest.fixture(scope="session")
def edit_pipeline(edit_model: Components) -> LongCatImageEditPipeline:
    diffusers.utils.logging.disable_progress_bar()
    pipeline = LongCatImageEditPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(edit_model.flavour.folder, subfolder="scheduler"),
        vae=edit_model.vae,
        text_encoder=edit_model.text_encoder,
        tokenizer=edit_model.tokenizer,
        text_processor=TextProcessor(edit_model.image_processor),
        transformer=edit_model.transformer,
    )
    pipeline.tokenizer_max_length = PROMPT_TOKENS
    pipeline.set_progress_bar_config(disable=True)
    assert edit_model.dtype is torch.float32
    return pipeline
