"""Names and help of the training's options in each language.

English comes from the configuration's names and docstrings; other languages are in ``options.LANGUAGE.json``, which a test
checks for completeness.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from studio.training.form import fields

_FOLDER = Path(__file__).parent
_WORDS = {
    "lr": "learning rate", "lora": "LoRA", "vae": "VAE", "ema": "EMA", "dora": "DoRA", "rslora": "rsLoRA", "adam": "Adam",
    "url": "URL", "1": "", "num": "number of",
}  # fmt: skip
_LABELS = {
    "instance_data_dir": "Pictures",
    "adapter_name": "Adapter name",
    "model_family": "Model family",
    "model_flavour": "Model flavour",
    "max_train_steps": "Training steps",
    "num_train_epochs": "Epochs",
    "train_batch_size": "Pictures a step",
    "validation_prompts": "Validation prompts",
    "data_backend_config": "Several sets of pictures",
    "checkpointing_steps": "Steps between checkpoints",
    "validation_disable": "No validation",
    "validation_steps": "Steps between validations",
    "validation_min_change": "Least change",
    "validation_max_drift": "Most drift",
    "masked_loss_probability": "Batches with masks",
    "eval_share": "Held-out share",
    "eval_dataset_id": "Held-out dataset",
    "num_eval_images": "Evaluated pictures",
    "eval_steps_interval": "Evaluation interval",
    "publish_checkpoint": "Published checkpoint",
    "early_stopping_patience": "Early stopping",
    "publish_min_improvement": "Least improvement",
    "publish_max_overfit": "Most overfitting",
    "publish_max_copies": "Most copies",
    "validation_input": "Pictures to edit in validation",
    "validation_num_inference_steps": "Validation denoising steps",
    "max_grad_norm": "Gradients at most",
    "grad_clip_method": "Gradient limit",
    "max_image_pixels": "Pixels of a picture at most",
    "checkpoints_total_limit": "Checkpoints kept",
    "pretrained_model_name_or_path": "Model folder or hub id",
    "text_encoder_1_precision": "Text encoder precision",
    "use_dora": "DoRA",
    "lycoris_config": "LyCORIS",
    "use_rslora": "rsLoRA",
    "use_ema": "Average of the adapter (EMA)",
    "enable_group_offload": "Offload the base",
    "fsdp_enable": "Split the base (FSDP)",
}
"""Labels of options whose name is not clear enough."""


_HELP = {
    "trigger_words": "Put before each caption in training if it lacks them; the caption files stay as they are. The adapter "
                     "records them: on Generate, a click adds them to the prompt. Separate several by commas.",
    "publish_to": "Adapter storage: file:///directory or s3://bucket/prefix; empty is the studio's own, whose service "
                  "serves it at once.",
}  # fmt: skip
"""Help of options that mean something else in the studio than on the command line."""


@dataclass(frozen=True)
class OptionName:
    """Label and help of one option."""

    label: str
    help: str


@lru_cache(maxsize=8)
def option_names(code: str) -> Mapping[str, OptionName]:
    """Return labels and help by option, in one language."""
    path = _FOLDER / f"options.{code}.json"
    texts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {
        name: OptionName(*texts[name]) if name in texts else OptionName(_label(name), _HELP.get(name, about.help))
        for name, about in fields().items()
    }


def _label(name: str) -> str:
    if name in _LABELS:
        return _LABELS[name]
    words = " ".join(filter(None, (_WORDS.get(word, word) for word in name.split("_"))))
    return words[0].upper() + words[1:]
