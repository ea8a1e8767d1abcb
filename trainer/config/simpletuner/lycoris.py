"""``lycoris_config``: the layers that LoKr or LoHa changes, and their options. No torch.

It is the object that ``lycoris-lora``'s ``create_lycoris`` takes, as SimpleTuner passes it on. Layers are selected as
``lycoris.wrapper.LycorisNetwork`` does, by the classes of the modules around them and by names.
"""

import fnmatch
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from longcat.problem import Problem
from longcat.validation import ProblemValueError
from trainer.config.simpletuner.lycoris_layer import LayerOptions

_Dim = Annotated[int, Field(ge=1, le=2**31 - 1)]
_Factor = Annotated[int, Field(ge=-1, le=2**31 - 1)]
_Alpha = Annotated[float, Field(ge=0, le=1e6)]
_Algo = Annotated[Literal["lokr", "loha"], BeforeValidator(lambda given: _known_algo(given))]

_OFF: Mapping[str, str] = {
    "use_scalar": "its scalar is folded into the weights when they are saved, so that a run could not go on from them",
    "dropout": "LyCORIS does not apply it to LoKr and LoHa",
    "rank_dropout": "rows of an update are not dropped here",
    "module_dropout": "whole layers are not dropped here",
    "rank_dropout_scale": "rows of an update are not dropped here",
    "train_norm": "norms are not trained here",
    "dora_wd": "LoKr and LoHa with DoRA cannot be served",
    "weight_decompose": "LoKr and LoHa with DoRA cannot be served",
    "rs_lora": "LyCORIS does not take it for a whole network; give linear_alpha multiplied by the root of linear_dim",
}
"""Options that have to be off, and the reason."""
_WITHOUT_EFFECT = frozenset(
    {"bypass_mode", "conv_dim", "conv_alpha", "use_tucker", "use_cp", "use_conv_cp", "disable_conv_cp", "wd_on_output",
     "wd_on_out", "block_size", "constraint", "constrain", "rescaled", "preset", "train_llm_adapter", "warn_on_unmatched"}
)  # fmt: skip
"""Options of convolutions, of other algorithms or of the way of computing: with any value, the result is the same."""


_CLASSES: Mapping[str, str] = {
    "": "LongCatImageTransformer2DModel",
    "transformer_blocks": "ModuleList",
    "transformer_blocks.N": "LongCatImageTransformerBlock",
    "transformer_blocks.N.norm1": "AdaLayerNormZero",
    "transformer_blocks.N.norm1_context": "AdaLayerNormZero",
    "transformer_blocks.N.attn": "LongCatImageAttention",
    "transformer_blocks.N.attn.to_out": "ModuleList",
    **{
        f"transformer_blocks.N.{name}{end}": kind
        for name in ("ff", "ff_context")
        for end, kind in (("", "FeedForward"), (".net", "ModuleList"), (".net.N", "GELU"))
    },
    "single_transformer_blocks": "ModuleList",
    "single_transformer_blocks.N": "LongCatImageSingleTransformerBlock",
    "single_transformer_blocks.N.norm": "AdaLayerNormZeroSingle",
    "single_transformer_blocks.N.attn": "LongCatImageAttention",
    "norm_out": "AdaLayerNormContinuous",
    "time_embed": "LongCatImageTimestepEmbeddings",
    "time_embed.timestep_embedder": "TimestepEmbedding",
}
"""Classes of the transformer's modules around its linear layers."""


def _known_algo(given: Any) -> Any:
    if isinstance(given, str) and given.lower() not in ("lokr", "loha"):
        raise ProblemValueError(
            Problem(
                code="lycoris_algo_unsupported", template="an algorithm of LyCORIS that cannot be trained and served here",
                remedy_template="give lokr or loha; for lora and locon, set lora_type standard",
            )
        )  # fmt: skip
    return given.lower() if isinstance(given, str) else given


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_others(cls, given: Any) -> Any:
        """Drop options without effect; reject those whose effect is not supported."""
        if not isinstance(given, Mapping):
            return given
        for name, value in given.items():
            if name in _OFF and value not in (None, False, 0, "false", "False"):
                raise ProblemValueError(
                    Problem(
                        code="lycoris_option_unsupported", template="not supported: {reason}",
                        remedy_template="leave it out", field=name, value=value, details={"reason": _OFF[name]},
                    )
                )  # fmt: skip
        return {name: value for name, value in given.items() if name not in _OFF and name not in _WITHOUT_EFFECT}


class ModuleOptions(_Options):
    """The options of the modules of one class or name; None is that of the whole configuration."""

    algo: _Algo | None = None
    dim: _Dim | None = None
    """The r of alpha / r."""
    alpha: _Alpha | None = None
    factor: _Factor | None = None
    full_matrix: bool | None = None
    decompose_both: bool | None = None
    unbalanced_factorization: bool | None = None


class Preset(_Options):
    """The layers that are changed."""

    target_module: tuple[str, ...] = ("Linear",)
    """Classes of modules; every linear layer in them is changed."""
    target_name: tuple[str, ...] = ()
    """Names of layers, or regular expressions that their names begin with."""
    module_algo_map: dict[str, ModuleOptions] = {}
    name_algo_map: dict[str, ModuleOptions] = {}
    exclude_name: tuple[str, ...] = ()
    use_fnmatch: bool = False
    """Take names for patterns such as ``*.to_q`` instead of regular expressions."""
    enable_conv: bool = True
    """No effect: the model has no convolutions."""
    lora_prefix: str = "lycoris"
    """No effect: exports have the usual prefix."""

    @field_validator("target_name", "exclude_name")
    @classmethod
    def _are_patterns(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in given:
            _check_pattern(pattern)
        return given

    @field_validator("name_algo_map")
    @classmethod
    def _has_patterns(cls, given: dict[str, ModuleOptions]) -> dict[str, ModuleOptions]:
        for pattern in given:
            _check_pattern(pattern)
        return given

    def matches(self, pattern: str, name: str) -> bool:
        """Return True if a pattern is that of a name."""
        if pattern == name:
            return True
        return fnmatch.fnmatch(name, pattern) if self.use_fnmatch else re.match(pattern, name) is not None

    def excludes(self, name: str) -> bool:
        """Return True if a module is left out."""
        return any(self.matches(pattern, name) for pattern in self.exclude_name)

    def names(self, name: str) -> bool:
        """Return True if a layer is selected by its name."""
        return any(self.matches(pattern, name) for pattern in (*self.target_name, *self.name_algo_map))

    def options_of(self, name: str, classes: Mapping[str, str]) -> ModuleOptions | None:
        """Return the options of a layer; None if it is not changed.

        ``classes``: the class of each module around the layer, by name, the outermost first and the layer last.
        """
        if self.excludes(name):
            return None
        targets = {*self.target_module, *self.module_algo_map}
        around = [module for module in classes if not self.excludes(module)]
        outermost = next((module for module in around if classes[module] in targets and not self.names(module)), None)
        if outermost is not None and outermost != name:
            inside = around[around.index(outermost) :]
            chosen = (self.module_algo_map.get(classes[module]) for module in reversed(inside))
            return next((options for options in chosen if options is not None), ModuleOptions())
        if self.names(name):
            by_name = self.name_algo_map.get(name) or next(
                (options for pattern, options in self.name_algo_map.items() if self.matches(pattern, name)), None
            )
            return by_name or self.module_algo_map.get(classes[name]) or ModuleOptions()
        return None if outermost is None else self.module_algo_map.get(classes[name]) or ModuleOptions()


class LycorisConfig(_Options):
    """The configuration of a training with LoKr or LoHa."""

    algo: _Algo
    """lokr or loha."""
    multiplier: Literal[1] = 1
    """Strength in training; 1, because files do not record another."""
    linear_dim: _Dim = 4
    """Rank. LoKr: from half of its larger matrix on, that matrix is trained whole; SimpleTuner's 10000 does so."""
    linear_alpha: _Alpha = 1
    """The update is scaled by alpha / rank; 0 is the rank. No effect on a LoKr of whole matrices."""
    factor: _Factor = -1
    """LoKr: largest size of the smaller matrix; -1 is the root of the layer's width."""
    full_matrix: bool = False
    """LoKr: train the larger matrix whole at any rank."""
    decompose_both: bool = False
    """LoKr: also the smaller matrix is a product, at ranks below half of its size."""
    unbalanced_factorization: bool = False
    """LoKr: exchange the sizes of the two matrices in the layer's output."""
    apply_preset: Preset = Preset()

    @field_validator("multiplier", mode="before")
    @classmethod
    def _is_one(cls, given: Any) -> Any:
        return 1 if given == 1 and not isinstance(given, bool) else given

    @property
    def unknown_classes(self) -> tuple[str, ...]:
        """Return the classes that select nothing, because this model has no module of them."""
        preset = self.apply_preset
        given = dict.fromkeys((*preset.target_module, *preset.module_algo_map))
        return tuple(name for name in given if name not in {*_CLASSES.values(), "Linear"})

    def options_of(self, name: str) -> LayerOptions | None:
        """Return a layer's options, with those of the whole configuration filled in; None if it is not changed."""
        classes = _classes_around(name)
        module = self.apply_preset.options_of(name, classes)
        if module is None:
            return None
        dim = module.dim or self.linear_dim
        return LayerOptions(
            algo=module.algo or self._algo_around(classes),
            dim=dim,
            alpha=module.alpha or self.linear_alpha or dim,
            factor=self.factor if module.factor is None else module.factor,
            full_matrix=_either(module.full_matrix, self.full_matrix),
            decompose_both=_either(module.decompose_both, self.decompose_both),
            unbalanced_factorization=_either(module.unbalanced_factorization, self.unbalanced_factorization),
        )

    def _algo_around(self, classes: Mapping[str, str]) -> Literal["lokr", "loha"]:
        """Return the algorithm of the nearest class around a layer that gives one."""
        maps = (self.apply_preset.module_algo_map.get(kind) for kind in reversed([*classes.values()]))
        return next((options.algo for options in maps if options is not None and options.algo), self.algo)


def _classes_around(layer: str) -> dict[str, str]:
    """Return the classes of the modules around a linear layer by name, the transformer first and the layer last."""
    parts = layer.split(".")
    names = ["", *(".".join(parts[:count]) for count in range(1, len(parts)))]
    return {**{name: _CLASSES[re.sub(r"(?<=\.)\d+", "N", name)] for name in names}, layer: "Linear"}


def _either(given: bool | None, default: bool) -> bool:
    return default if given is None else given


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        if "*" not in pattern:
            raise ProblemValueError(
                Problem(
                    code="lycoris_pattern_invalid", template="{pattern!r} is not a regular expression: {reason}",
                    remedy_template="give the name of a layer, or a regular expression",
                    details={"pattern": pattern, "reason": str(error)},
                )
            ) from error  # fmt: skip
