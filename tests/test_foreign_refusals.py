"""LoRA files that cannot be applied exactly as their program would: refused, each by name and with its reason."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from longcat.errors import AdapterError
from longcat.foreign import Foreign, read_foreign
from longcat.loading import Components
from longcat.lora import lora_targets
from tests.test_foreign import PLAIN, PREFIXED, Q, imported, layers_of, rewrite

A, B = f"transformer.{Q}.lora_A.weight", f"transformer.{Q}.lora_B.weight"

REFUSALS: dict[str, tuple[dict[str, Tensor], str]] = {
    "DoRA of another width": (
        {f"transformer.{Q}.lora_magnitude_vector": torch.ones(128)},
        r"lora_magnitude_vector has shape \(128,\); this model needs \(256,\)",
    ),
    "DoRA that is infinite": (
        {f"transformer.{Q}.lora_magnitude_vector": torch.full((256,), float("inf"))},
        "lora_magnitude_vector holds numbers that are not finite",
    ),
    "DoRA's magnitude alone": (
        {"transformer.transformer_blocks.1.attn.to_q.lora_magnitude_vector": torch.ones(256)},
        "holds magnitude of .* without down and up",
    ),
    "kohya's DoRA": ({f"transformer.{Q}.dora_scale": torch.ones(256, 1)}, "uses DoRA.*dora_scale"),
    "LoKr": ({f"transformer.{Q}.lokr_w1": torch.ones(2, 2)}, "is a LoKr .*lokr_w1"),
    "LoHa": ({f"transformer.{Q}.hada_w1_a": torch.ones(2, 2)}, "is a LoHa .*hada_w1_a"),
    "IA3": ({f"transformer.{Q}.ia3_l": torch.ones(256)}, "is an IA3 .*ia3_l"),
    "OFT": ({f"transformer.{Q}.oft_blocks": torch.ones(2, 2)}, "is an OFT"),
    "bias": ({f"transformer.{Q}.lora_B.bias": torch.ones(256)}, "changes biases .*lora_B.bias"),
    "kohya's bias": ({f"transformer.{Q}.lora_up.bias": torch.ones(256)}, "changes biases"),
    "Tucker": ({f"transformer.{Q}.lora_mid.weight": torch.ones(4, 4, 3, 3)}, "is made for convolutions"),
    "whole weights": ({f"transformer.{Q}.diff": torch.ones(256, 256)}, "replaces whole weights"),
    "convolution": ({A: torch.ones(4, 256, 1, 1)}, r"shape \(4, 256, 1, 1\), which is a convolution"),
    "vector": ({A: torch.ones(4)}, r"shape \(4,\), which is no matrix"),
    "text encoder": (
        {"text_encoder.layers.0.q_proj.lora_A.weight": torch.ones(4, 8)},
        "adapts the text encoder .*q_proj",
    ),
    "kohya's text encoder": ({"lora_te1_layers_0.lora_down.weight": torch.ones(4, 8)}, "adapts the text encoder"),
    "something else": (
        {"transformer.proj_out.weight": torch.ones(8, 8)},
        "'transformer.proj_out.weight', which is no part",
    ),
    "modulation": (
        layers_of({"transformer.transformer_blocks.0.norm1.linear": (256, 1536)}),
        "changes 1 modules that this model has not or keeps fixed, as 'transformer_blocks.0.norm1.linear' .nearest: ",
    ),
    "larger model": (
        layers_of({"transformer.transformer_blocks.9.attn.to_q": (256, 256)}),
        r"as 'transformer_blocks.9.attn.to_q' \(nearest: 'transformer_blocks.\d.attn.to_q'\)",
    ),
    "other width": (
        layers_of({f"transformer.{Q}": (3072, 256)}),
        r"lora_A has shape \(4, 3072\); this model needs \(4, 256",
    ),
    "two ranks": ({B: torch.ones(256, 8)}, r"lora_B has shape \(256, 8\); this model needs \(256, 4\)"),
    "no rank": (layers_of({f"transformer.{Q}": (256, 256)}, rank=0), "has rank 0"),
    "large rank": (layers_of({f"transformer.{Q}": (256, 256)}, rank=129), "has rank 129; at most 128"),
    "not a number": ({B: torch.full((256, 4), float("nan"))}, "to_q lora_B holds numbers that are not finite"),
    "infinite in float32": ({B: torch.full((256, 4), 1e300, dtype=torch.float64)}, "numbers that are not finite"),
    "integers": ({A: torch.ones(4, 256, dtype=torch.int32)}, "holds torch.int32"),
    "A alone": (
        {"transformer.transformer_blocks.1.attn.to_q.lora_A.weight": torch.ones(4, 256)},
        "holds down of 'transformer_blocks.1.attn.to_q' without up",
    ),
    "B alone": (
        {"transformer.transformer_blocks.1.attn.to_q.lora_B.weight": torch.ones(256, 4)},
        "holds up of 'transformer_blocks.1.attn.to_q' without down",
    ),
    "alpha alone": ({"transformer.transformer_blocks.1.attn.to_q.alpha": torch.ones(())}, "without down and up"),
    "no alpha": ({f"transformer.{Q}.alpha": torch.zeros(())}, r"says alpha \[0.0\] of .*, which is no positive number"),
    "NaN as alpha": ({f"transformer.{Q}.alpha": torch.tensor(float("nan"))}, r"says alpha \[nan\]"),
    "alphas": ({f"transformer.{Q}.alpha": torch.ones(2)}, r"says alpha \[1.0, 1.0\]"),
    "two adapters": ({f"transformer.{Q}.lora_A.other.weight": torch.ones(4, 256)}, "twice, for several adapters"),
    "mixed forms": (
        layers_of({"lora_unet_single_blocks_0_linear2": (1280, 256)}),
        "mixes the keys of diffusers and kohya",
    ),
    "changed twice": (
        layers_of({"transformer.double_blocks.0.img_attn.qkv": (256, 768)}),
        "changes 'transformer_blocks.0.attn.to_q' twice, the second time as",
    ),
    "cut fused rows": (
        layers_of({"transformer.double_blocks.1.img_attn.qkv": (256, 512)}),
        r"double_blocks.1.img_attn.qkv has a B of shape \(512, 4\); this model needs 768 rows",
    ),
}


@pytest.fixture
def targets(model: Components) -> dict[str, tuple[int, int]]:
    return lora_targets(model.transformer)


@pytest.mark.parametrize(("extra", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_made_right_is_refused_by_name(
    targets: dict[str, tuple[int, int]], tmp_path: Path, extra: dict[str, Tensor], message: str
) -> None:
    imported(layers_of(PREFIXED), targets, tmp_path)
    with pytest.raises(AdapterError, match=message) as caught:
        imported(layers_of(PREFIXED) | extra, targets, tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'a.safetensors'} ")


def test_another_models_adapter_is_no_silent_no_op(targets: dict[str, tuple[int, int]], tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"changes nothing that this model lets.*'down_blocks_0_attn_to_q'"):
        imported(layers_of({"lora_unet_down_blocks_0_attn_to_q": (320, 320)}), targets, tmp_path)
    with pytest.raises(AdapterError, match="holds no LoRA weights"):
        imported({}, targets, tmp_path)


def test_the_limit_of_the_rank_is_the_callers(targets: dict[str, tuple[int, int]], tmp_path: Path) -> None:
    save_file(layers_of(PREFIXED, rank=130), tmp_path / "a.safetensors")
    assert read_foreign(tmp_path / "a.safetensors", targets, max_rank=130).weights.rank == 130


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"use_dora": True}, "says use_dora, and .* have no lora_magnitude_vector"),
        ({"bias": "lora_only"}, "sets bias to 'lora_only'"),
        ({"lora_bias": True}, "sets lora_bias to True"),
        ({"use_qalora": True}, "sets use_qalora to True"),
        ({"modules_to_save": ["proj_out"]}, r"sets modules_to_save to \['proj_out'\]"),
        ({"peft_type": "LOHA"}, "is of PEFT's kind 'LOHA'"),
        ({"init_lora_weights": "pissa_niter_4"}, "begun with init_lora_weights 'pissa_niter_4'"),
        ({"lora_alpha": -1}, "says lora_alpha -1 .*greater than 0"),
        ({"alpha_pattern": {"to_q": float("inf")}}, "says alpha_pattern.to_q inf"),
        ({"rank_pattern": {"(to_q": 3}}, r"pattern '\(to_q' that is no regular expression"),
        ({"rank_pattern": {"to_q": 3}}, f"says rank 3 of '{Q}', which has 4"),
        ({"r": 16}, "says rank 16 of 'single_transformer_blocks.3.proj_out', which has 4"),
    ],
)
@pytest.mark.parametrize("form", ["official", "diffusers"])
def test_configurations_that_cannot_be_followed_are_refused(
    targets: dict[str, tuple[int, int]], tmp_path: Path, said: dict[str, object], message: str, form: str
) -> None:
    with pytest.raises(AdapterError, match=message):
        configured({"r": 4, "lora_alpha": 4, "peft_type": "LORA"} | said, targets, tmp_path, form=form)


def configured(said: object, targets: dict[str, tuple[int, int]], folder: Path, *, form: str) -> Foreign:
    if form == "official":
        named = {f"base_model.model.{name}": widths for name, widths in PLAIN.items()}
        save_file(layers_of(named), folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(said if isinstance(said, str) else json.dumps(said))
    else:
        rewrite(
            folder / "adapter.safetensors", layers_of(PREFIXED), said if isinstance(said, str) else json.dumps(said)
        )
    return read_foreign(folder, targets)


@pytest.mark.parametrize("form", ["official", "diffusers"])
def test_configurations_say_what_is_not_in_them(targets: dict[str, tuple[int, int]], tmp_path: Path, form: str) -> None:
    assert configured({"r": 4}, targets, tmp_path, form=form).weights.alpha == 8  # as PEFT fills it in
    for broken, message in (("{", "not JSON"), ("[]", "no JSON object")):
        with pytest.raises(AdapterError, match=message):
            configured(broken, targets, tmp_path, form=form)


def test_an_official_file_without_its_configuration_has_no_known_scale(
    targets: dict[str, tuple[int, int]], tmp_path: Path
) -> None:
    configured({"r": 4}, targets, tmp_path, form="official")
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match=r"keeps its alpha in adapter_config\.json.*import the directory"):
        read_foreign(tmp_path / "adapter_model.safetensors", targets)


def test_alphas_in_two_places_must_agree(targets: dict[str, tuple[int, int]], tmp_path: Path) -> None:
    # SimpleTuner's "comfyui" format has both, and the tensor holds alpha as it was configured, also for rsLoRA.
    for said, use_rslora, alpha in ((4.0, False, 4.0), (4.0, True, 8.0), (8.0, True, 8.0)):
        config = {"transformer.lora_alpha": 4, "transformer.use_rslora": use_rslora}
        alphas = {f"{name}.alpha": torch.tensor(said) for name in PREFIXED}
        rewrite(tmp_path / "a.safetensors", layers_of(PREFIXED) | alphas, json.dumps(config))
        assert read_foreign(tmp_path / "a.safetensors", targets).weights.alpha == alpha
    alphas = {f"{name}.alpha": torch.tensor(2.0) for name in PREFIXED}
    rewrite(tmp_path / "a.safetensors", layers_of(PREFIXED) | alphas, json.dumps(config))
    with pytest.raises(AdapterError, match=r"says two alphas of .*: 2 in a tensor, 8 in its configuration"):
        read_foreign(tmp_path / "a.safetensors", targets)


def test_nothing_is_unpickled(targets: dict[str, tuple[int, int]], tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "adapter_model.bin")
    for path in (tmp_path / "adapter_model.bin", tmp_path):
        with pytest.raises(AdapterError, match=r"adapter_model\.bin is a pickle by its name.*save it as safetensors"):
            read_foreign(path, targets)
    (tmp_path / "adapter_model.bin").rename(tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match="is not a safetensors file"):
        read_foreign(tmp_path / "a.safetensors", targets)


def test_a_directory_has_to_say_which_file(targets: dict[str, tuple[int, int]], tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"should hold adapter_model\.safetensors or .* has none: name the file"):
        read_foreign(tmp_path, targets)
    for name in ("a", "b"):
        save_file(layers_of(PREFIXED), tmp_path / f"{name}.safetensors")
    with pytest.raises(AdapterError, match=r"it has a\.safetensors, b\.safetensors: name the file"):
        read_foreign(tmp_path, targets)
    save_file(layers_of(PREFIXED), tmp_path / "pytorch_lora_weights.safetensors")
    assert read_foreign(tmp_path, targets).weights.alpha == 4
