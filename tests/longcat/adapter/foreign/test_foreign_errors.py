"""LoRA files that cannot be applied exactly as their program applies them: each is rejected with its reason."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from longcat.adapter.foreign.reading import Foreign, read_foreign
from longcat.adapter.modules import adaptable_modules
from longcat.errors import AdapterError
from longcat.model.loading import Components
from tests.longcat.adapter.foreign.test_reading import PLAIN, PREFIXED, Q, imported, layers_of, rewrite

A, B = f"transformer.{Q}.lora_A.weight", f"transformer.{Q}.lora_B.weight"

REFUSALS: dict[str, tuple[dict[str, Tensor], str, str]] = {
    "DoRA of another width": (
        {f"transformer.{Q}.lora_magnitude_vector": torch.ones(128)},
        "adapter_shape",
        "(256,)",
    ),
    "DoRA that is infinite": (
        {f"transformer.{Q}.lora_magnitude_vector": torch.full((256,), float("inf"))},
        "adapter_not_finite",
        "lora_magnitude_vector",
    ),
    "DoRA's magnitude alone": (
        {"transformer.transformer_blocks.1.attn.to_q.lora_magnitude_vector": torch.ones(256)},
        "adapter_layer_incomplete",
        "down, up",
    ),
    "DoRA of other columns": ({f"transformer.{Q}.dora_scale": torch.ones(1, 128)}, "adapter_dora_scale", "(1, 256)"),
    "DoRA alone": (
        {"transformer.transformer_blocks.1.attn.to_q.dora_scale": torch.ones(1, 256)},
        "adapter_layer_incomplete",
        "down, up",
    ),
    "DoRA of an unknown axis": ({f"transformer.{Q}.dora_scale": torch.ones(256)}, "adapter_dora_scale", "(256,)"),
    "LoKr with DoRA": (
        {
            "transformer.transformer_blocks.1.attn.to_q.lokr_w1": torch.ones(2, 2),
            "transformer.transformer_blocks.1.attn.to_q.dora_scale": torch.ones(256, 1),
        },
        "adapter_dora_of_lycoris",
        "dora_scale",
    ),
    "LoKr": ({f"transformer.{Q}.lokr_w1": torch.ones(2, 2)}, "adapter_factors_incomplete", "lokr_w1"),
    "LoHa": ({f"transformer.{Q}.hada_w1_a": torch.ones(2, 2)}, "adapter_factors_incomplete", "hada_w1_a"),
    "IA3": ({f"transformer.{Q}.ia3_l": torch.ones(256)}, "adapter_kind_unsupported", "IA3"),
    "OFT": ({f"transformer.{Q}.oft_blocks": torch.ones(2, 2)}, "adapter_kind_unsupported", "OFT"),
    "bias of A": ({f"transformer.{Q}.lora_A.bias": torch.ones(4)}, "adapter_kind_unsupported", "lora_A.bias"),
    "bias of another width": ({f"transformer.{Q}.lora_B.bias": torch.ones(128)}, "adapter_shape", "(128,)"),
    "norm of another width": (
        {"transformer.transformer_blocks.0.attn.norm_q.diff": torch.ones(32)},
        "adapter_shape",
        "(32,)",
    ),
    "bias of a norm": (
        {"transformer.transformer_blocks.0.attn.norm_q.diff_b": torch.ones(64)},
        "adapter_kind_unsupported",
        "norm_q.diff_b",
    ),
    "norm that is infinite": (
        {"transformer.transformer_blocks.0.attn.norm_q.diff": torch.full((64,), float("inf"))},
        "adapter_not_finite",
        "norm_q diff",
    ),
    "whole weight to set": (
        {f"transformer.{Q}.set_weight": torch.ones(256)},
        "adapter_kind_unsupported",
        "full weights",
    ),
    "kohya's bias": ({f"transformer.{Q}.lora_up.bias": torch.ones(256)}, "adapter_kind_unsupported", "biases"),
    "Tucker": (
        {f"transformer.{Q}.lora_mid.weight": torch.ones(4, 4, 3, 3)},
        "adapter_kind_unsupported",
        "convolutions",
    ),
    "whole weights": ({f"transformer.{Q}.diff": torch.ones(256, 256)}, "adapter_kind_unsupported", "full weights"),
    "convolution": ({A: torch.ones(4, 256, 1, 1)}, "adapter_layer_not_matrix", "(4, 256, 1, 1)"),
    "vector": ({A: torch.ones(4)}, "adapter_layer_not_matrix", "(4,)"),
    "text encoder": (
        {"text_encoder.layers.0.q_proj.lora_A.weight": torch.ones(4, 8)},
        "adapter_kind_unsupported",
        "text encoder",
    ),
    "kohya's text encoder": (
        {"lora_te1_layers_0.lora_down.weight": torch.ones(4, 8)},
        "adapter_kind_unsupported",
        "lora_te1",
    ),
    "something else": (
        {"transformer.proj_out.weight": torch.ones(8, 8)},
        "adapter_foreign_key_unknown",
        "transformer.proj_out.weight",
    ),
    "modulation of another model": (
        layers_of({"transformer.transformer_blocks.0.norm2.linear": (256, 1536)}),
        "adapter_foreign_modules_unknown",
        "transformer_blocks.0.norm2.linear",
    ),
    "larger model": (
        layers_of({"transformer.transformer_blocks.9.attn.to_q": (256, 256)}),
        "adapter_foreign_modules_unknown",
        "(nearest: transformer_blocks.",
    ),
    "other width": (
        layers_of({f"transformer.{Q}": (3072, 256)}),
        "adapter_shape",
        "(4, 3072)",
    ),
    "two ranks": ({B: torch.ones(256, 8)}, "adapter_shape", "(256, 8)"),
    "no rank": (layers_of({f"transformer.{Q}": (256, 256)}, rank=0), "adapter_rank_zero", Q),
    "large rank": (layers_of({f"transformer.{Q}": (256, 256)}, rank=129), "adapter_rank_too_high", "129"),
    "not a number": ({B: torch.full((256, 4), float("nan"))}, "adapter_not_finite", "lora_B"),
    "infinite in float32": ({B: torch.full((256, 4), 1e300, dtype=torch.float64)}, "adapter_not_finite", "lora_B"),
    "integers": ({A: torch.ones(4, 256, dtype=torch.int32)}, "adapter_not_floating_point", "int32"),
    "A alone": (
        {"transformer.transformer_blocks.1.attn.to_q.lora_A.weight": torch.ones(4, 256)},
        "adapter_layer_incomplete",
        "without up",
    ),
    "B alone": (
        {"transformer.transformer_blocks.1.attn.to_q.lora_B.weight": torch.ones(256, 4)},
        "adapter_layer_incomplete",
        "without down",
    ),
    "alpha alone": (
        {"transformer.transformer_blocks.1.attn.to_q.alpha": torch.ones(())},
        "adapter_layer_incomplete",
        "without down, up",
    ),
    "no alpha": ({f"transformer.{Q}.alpha": torch.zeros(())}, "adapter_alpha_invalid", "[0.0]"),
    "NaN as alpha": ({f"transformer.{Q}.alpha": torch.tensor(float("nan"))}, "adapter_alpha_invalid", "[nan]"),
    "alphas": ({f"transformer.{Q}.alpha": torch.ones(2)}, "adapter_alpha_invalid", "[1.0, 1.0]"),
    "two adapters": (
        {f"transformer.{Q}.lora_A.other.weight": torch.ones(4, 256)},
        "adapter_several_in_file",
        "holds down of",
    ),
    "mixed forms": (
        layers_of({"lora_unet_single_blocks_0_linear2": (1280, 256)}),
        "adapter_formats_mixed",
        "diffusers, kohya",
    ),
    "changed twice": (
        layers_of({"transformer.double_blocks.0.img_attn.qkv": (256, 768)}),
        "adapter_module_twice",
        "transformer_blocks.0.attn.to_q",
    ),
    "cut fused rows": (
        layers_of({"transformer.double_blocks.1.img_attn.qkv": (256, 512)}),
        "adapter_fused_rows",
        "768 rows",
    ),
}


@pytest.fixture
def targets(model: Components) -> dict[str, tuple[int, ...]]:
    return adaptable_modules(model.transformer)


@pytest.mark.parametrize(("extra", "code", "detail"), REFUSALS.values(), ids=REFUSALS)
def test_files_that_cannot_be_applied_are_rejected_with_the_reason(
    targets: dict[str, tuple[int, ...]], tmp_path: Path, extra: dict[str, Tensor], code: str, detail: str
) -> None:
    imported(layers_of(PREFIXED), targets, tmp_path)
    with pytest.raises(AdapterError) as caught:
        imported(layers_of(PREFIXED) | extra, targets, tmp_path)
    (problem,) = caught.value.problems
    assert (problem.code, problem.field, problem.value) == (code, "file", str(tmp_path / "a.safetensors"))
    assert detail in problem.problem


def test_another_models_adapter_is_no_silent_no_op(targets: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="none of its 1 layers, such as 'down_blocks_0_attn_to_q'"):
        imported(layers_of({"lora_unet_down_blocks_0_attn_to_q": (320, 320)}), targets, tmp_path)
    with pytest.raises(AdapterError, match="holds no LoRA weights"):
        imported({}, targets, tmp_path)


def test_the_limit_of_the_rank_is_the_callers(targets: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    save_file(layers_of(PREFIXED, rank=130), tmp_path / "a.safetensors")
    assert read_foreign(tmp_path / "a.safetensors", targets, max_rank=130).weights.rank == 130


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, "use_dora in its configuration, and .* have no lora_magnitude_vector"),
        ({"bias": "lora_only"}, "sets bias to lora_only"),
        ({"use_qalora": True}, "sets use_qalora to true"),
        ({"modules_to_save": ["proj_out"]}, r'sets modules_to_save to \["proj_out"\]'),
        ({"peft_type": "LOHA"}, "PEFT's type 'LOHA'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4', which changed the base model"),
        ({"lora_alpha": -1}, "lora_alpha = -1: too small; give more than 0"),
        ({"alpha_pattern": {"to_q": float("inf")}}, "alpha_pattern.to_q = Infinity: not finite"),
        ({"rank_pattern": {"(to_q": 3}}, r"pattern '\(to_q' that is not a regular expression"),
        ({"rank_pattern": {"to_q": 3}}, f"gives '{Q}' rank 3, and its weights have rank 4"),
        ({"r": 16}, "gives 'single_transformer_blocks.3.proj_out' rank 16, and its weights have rank 4"),
    ],
)
@pytest.mark.parametrize("form", ["official", "diffusers"])
def test_configurations_that_cannot_be_followed_are_refused(
    targets: dict[str, tuple[int, ...]], tmp_path: Path, fields: dict[str, object], message: str, form: str
) -> None:
    with pytest.raises(AdapterError, match=message):
        configured({"r": 4, "lora_alpha": 4, "peft_type": "LORA"} | fields, targets, tmp_path, form=form)


def configured(fields: object, targets: dict[str, tuple[int, ...]], folder: Path, *, form: str) -> Foreign:
    if form == "official":
        named = {f"base_model.model.{name}": widths for name, widths in PLAIN.items()}
        save_file(layers_of(named), folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(fields if isinstance(fields, str) else json.dumps(fields))
    else:
        rewrite(
            folder / "adapter.safetensors",
            layers_of(PREFIXED),
            fields if isinstance(fields, str) else json.dumps(fields),
        )
    return read_foreign(folder, targets)


@pytest.mark.parametrize("form", ["official", "diffusers"])
def test_a_configuration_has_pefts_defaults_and_must_be_a_json_object(
    targets: dict[str, tuple[int, ...]], tmp_path: Path, form: str
) -> None:
    assert configured({"r": 4}, targets, tmp_path, form=form).weights.alpha == 8  # as PEFT fills it in
    for broken, message in (("{", "not JSON"), ("[]", "not a JSON object")):
        with pytest.raises(AdapterError, match=message):
            configured(broken, targets, tmp_path, form=form)


def test_an_official_file_without_its_configuration_has_no_known_scale(
    targets: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    configured({"r": 4}, targets, tmp_path, form="official")
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(
        AdapterError, match=r"alpha is in .*adapter_config\.json, which cannot be read.*import the directory"
    ):
        read_foreign(tmp_path / "adapter_model.safetensors", targets)


def test_alphas_in_two_places_must_agree(targets: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    # SimpleTuner's "comfyui" format has both, and the tensor holds alpha as it was configured, also for rsLoRA.
    for written, use_rslora, alpha in ((4.0, False, 4.0), (4.0, True, 8.0), (8.0, True, 8.0)):
        config = {"transformer.lora_alpha": 4, "transformer.use_rslora": use_rslora}
        alphas = {f"{name}.alpha": torch.tensor(written) for name in PREFIXED}
        rewrite(tmp_path / "a.safetensors", layers_of(PREFIXED) | alphas, json.dumps(config))
        assert read_foreign(tmp_path / "a.safetensors", targets).weights.alpha == alpha
    alphas = {f"{name}.alpha": torch.tensor(2.0) for name in PREFIXED}
    rewrite(tmp_path / "a.safetensors", layers_of(PREFIXED) | alphas, json.dumps(config))
    with pytest.raises(AdapterError, match="two alphas: 2 in a tensor, 8 in its configuration"):
        read_foreign(tmp_path / "a.safetensors", targets)


def test_nothing_is_unpickled(targets: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "adapter_model.bin")
    for path in (tmp_path / "adapter_model.bin", tmp_path):
        with pytest.raises(AdapterError, match=r"adapter_model\.bin: a pickle by its name.*save it as safetensors"):
            read_foreign(path, targets)
    (tmp_path / "adapter_model.bin").rename(tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match="is not a safetensors file"):
        read_foreign(tmp_path / "a.safetensors", targets)


def test_a_directory_with_several_files_needs_the_name_of_one(
    targets: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match=r"neither adapter_model\.safetensors nor .* files: none; name the file"):
        read_foreign(tmp_path, targets)
    for name in ("a", "b"):
        save_file(layers_of(PREFIXED), tmp_path / f"{name}.safetensors")
    with pytest.raises(AdapterError, match=r"files: a\.safetensors, b\.safetensors; name the file"):
        read_foreign(tmp_path, targets)
    save_file(layers_of(PREFIXED), tmp_path / "pytorch_lora_weights.safetensors")
    assert read_foreign(tmp_path, targets).weights.alpha == 4
