"""``lithograph generate`` without ``--server``: images of a model in this process."""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import click

from lithograph.generation.output_files import check_format, write_pictures
from lithograph.generation.recipe import check_size, come_with, fields_of_recipe, mark_of_recipe, model_of
from longcat.model.flavour import Flavour, resolve
from longcat.options import configure
from longcat.sampling.encoding.source_picture import SourcePicture
from longcat.validation import validated
from service.config import AdapterConfig, ModelConfig
from service.memory.flavour_choice import settled
from service.wire.limits import Limits
from service.wire.picture import Recipe, read_recipe
from service.wire.provenance.settings import ProvenanceConfig
from service.wire.schema import MAX_ADAPTERS, GenerateRequest, ResolvedRequest

_MAX_ROWS = 8
"""Rows in one forward: four images with guidance. It bounds activation memory, as --max-rows does in the service."""
GIVEN_WITH_RECIPE = ("c2pa_certificate", "c2pa_key", "visible_mark_font")
"""Options of labels that a recipe does not have: files of the machine that repeats it."""

AdapterSource = tuple[str, str | None]
"""The URI of an adapter storage, and its endpoint."""


@dataclass(frozen=True, kw_only=True)
class LocalGeneration:
    """A request, the model that generates its images, and the labels of their files."""

    config: ModelConfig
    flavour: Flavour
    body: GenerateRequest
    provenance: ProvenanceConfig
    recipe: tuple[Recipe, Path] | None = None
    """The recipe that is repeated, and the file that has it."""

    @classmethod
    def of_prompt(cls, fields: dict[str, Any], model: dict[str, Any], labels: dict[str, Any]) -> Self:
        """Return the generation of a request's fields; ``model`` and ``labels`` are options. Raises ``UserError``."""
        config = settled(configure(ModelConfig, model))
        flavour = resolve(config.flavour, revision=config.revision)
        body = validated(GenerateRequest, fields)
        return cls(config=config, flavour=flavour, body=body, provenance=configure(ProvenanceConfig, labels))

    @classmethod
    def of_recipe(
        cls,
        path: Path,
        output: Path,
        edit: dict[str, Any],
        model: dict[str, Any],
        labels: dict[str, Any],
        *,
        follow_flavour: bool,
        has_adapters: bool,
    ) -> Self:
        """Return the generation that repeats a picture file. ``edit``, ``model`` and ``labels`` are options.

        ``follow_flavour`` lets the recipe name the model. Raises ``RecipeError``, ``UserError``.
        """
        recipe = read_recipe(path)
        own = {name: labels[name] for name in GIVEN_WITH_RECIPE}
        labels = {"picture_label": "off"} if recipe.producer is None else {"picture_producer": recipe.producer}
        labels |= own | mark_of_recipe(recipe, path, own["visible_mark_font"])
        check_format(output, recipe)
        config, flavour = model_of(recipe, path, model, follow_flavour=follow_flavour, has_adapters=has_adapters)
        body = validated(GenerateRequest, fields_of_recipe(recipe, path, edit))
        provenance = configure(ProvenanceConfig, labels)
        return cls(config=config, flavour=flavour, body=body, provenance=provenance, recipe=(recipe, path))

    def run(self, output: Path, source: AdapterSource | None) -> None:
        """Generate with the renderer in this process, and write the files."""
        from service.renderer import Renderer

        request, picture = self._resolve(has_adapters=source is not None)
        steps = request.denoising_steps * request.num_images
        with tempfile.TemporaryDirectory(prefix="lithograph-") as folder:
            adapters = self._adapters(source, Path(folder)) if request.adapters else None
            renderer = Renderer(
                self.config, self.flavour, max_rows=_MAX_ROWS, adapters=adapters, provenance=self.provenance
            )
            with click.progressbar(length=steps, label="generating", file=sys.stderr) as bar:
                rendered = renderer.render(
                    request,
                    lambda made, total: bar.update(steps * made // total - bar.pos),
                    picture=picture,
                    defaulted=self.body.defaulted if self.recipe is None else (),
                )
        write_pictures(output, [picture.content for picture in rendered.images], request.seed)

    def _resolve(self, *, has_adapters: bool) -> tuple[ResolvedRequest, SourcePicture | None]:
        """Resolve the request, and read its picture; locally, only the model limits it."""
        from longcat.model.tokenizer import load_tokenizer, plain_ids  # transformers: half of the time of ``--server``

        tokenize = plain_ids(load_tokenizer(self.flavour.folder))
        has_adapters = has_adapters or come_with(self.flavour, [choice.name for choice in self.body.adapters])
        limits = Limits.of_model(self.flavour, has_adapters=has_adapters, keeps_manifests=self.provenance.signs)
        resolved, picture = limits.resolve_with_picture(self.body, tokenize)
        if self.recipe is not None:
            check_size(resolved, *self.recipe)
        return resolved, picture

    def _adapters(self, source: AdapterSource | None, folder: Path) -> AdapterConfig:
        """Return the adapters of a storage, by default of the one that comes with the model; ``folder`` is for files."""
        if source is not None:
            uri, endpoint_url, label = *source, None
        else:
            assert self.flavour.adapters is not None  # without any storage, requests with adapters fail validation
            uri, endpoint_url, label = self.flavour.adapters.as_uri(), None, self.flavour.adapters_label
        return AdapterConfig(uri=uri, endpoint_url=endpoint_url, label=label, slots=MAX_ADAPTERS, folder=folder)
