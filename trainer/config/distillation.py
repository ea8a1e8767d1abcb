"""The options of ``lithograph distill``: ``distillation`` in a training's configuration. No torch."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from longcat.problem import Problem
from longcat.validation import ProblemValueError
from trainer.config.dataset_options import DatasetConfig
from trainer.config.reading.paths import FilePath

_Steps = Annotated[int, Field(ge=1, le=1000)]


class DistillationConfig(BaseModel):
    """The prompts, the teacher and the student of a distillation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    prompts: FilePath
    """A text file with a prompt on each line, in every language that the adapter is to serve."""
    steps: _Steps = 8
    """Denoising steps of the student, which uses no guidance; the adapter's manifest declares them."""
    teacher_steps: _Steps | None = None
    """Denoising steps of the teacher, the base with guidance: a multiple of ``steps``. None is the smallest multiple that is
    not less than the model's default."""
    teacher_guidance: Annotated[float, Field(ge=1, le=100)] | None = None
    """Guidance scale of the teacher; None is the model's default."""
    trajectories: Annotated[int, Field(ge=1, le=10_000_000)] = 2000
    """Trajectories of the teacher, each computed once and cached. Prompts are used equally often, each time with other
    noise and at one of the sizes of ``resolution``."""
    on_policy: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the training examples that start where the student's own steps lead, instead of on the teacher's
    trajectory."""

    @model_validator(mode="after")
    def _divides_teacher_steps(self) -> Self:
        if self.teacher_steps is not None and self.teacher_steps % self.steps:
            below = self.teacher_steps // self.steps * self.steps
            raise ProblemValueError(
                Problem(
                    code="teacher_steps_not_multiple",
                    template="not a multiple of steps, {steps}: each step replaces as many of the teacher's",
                    remedy_template="give {nearest}",
                    field="teacher_steps",
                    value=self.teacher_steps,
                    details={"steps": self.steps, "nearest": below or self.steps},
                )
            )
        return self

    @property
    def dataset(self) -> DatasetConfig:
        """The prompts as a dataset, whose pictures are noise."""
        return DatasetConfig(id="prompts", instance_data_dir=str(self.prompts.parent))

    def solver_steps(self, default: int) -> int:
        """Return the teacher's steps for a model whose default number of steps is given."""
        return self.teacher_steps or -(-default // self.steps) * self.steps
