"""A studio with one item of each kind, for arbitrary requests."""

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from longcat.adapter.publishing import set_latest
from longcat.adapter.weights.draft import draft_of, publish_lora
from longcat.model.flavour import Flavour
from longcat.storage.opening import open_storage
from studio.app import create_app
from studio.config import StudioConfig
from studio.generate.gallery import GalleryPicture, new_id
from studio.generate.recipe import PictureRecipe, ScaledAdapter
from studio.training.form import fields
from tests.fuzz.asgi import AsgiClient
from tests.fuzz.values.adapters import small
from tests.fuzz.values.pictures import png
from trainer.config.options import TrainConfig

_MOST_JOBS = 20


class Studio:
    """A studio with one item of each kind; its service does not answer, and its jobs stay queued."""

    def __init__(self, home: Path, flavour: Flavour) -> None:
        self.config = StudioConfig(home=home, service_url="http://127.0.0.1:1", data_roots=(home / "root",))
        self.app = create_app(self.config)
        self.client = AsgiClient(self.app)
        self.routes, self.fields = routes(self.app), field_names(self.app)
        self._flavour = flavour
        self.gallery_id = new_id(datetime.now(UTC))
        self.dataset = home / "datasets" / "cats"
        self.refill()
        self.job_id = self._submit()

    @property
    def context(self) -> Any:
        return self.app.state.studio

    def refill(self) -> None:
        """Create the items again that a case has deleted."""
        if not (self.config.home / "gallery" / self.gallery_id).exists():
            adapters = (ScaledAdapter(name="ink"),)
            size = {"width": 64, "height": 64, "steps": 1, "guidance_scale": 1.0}
            recipe = PictureRecipe(prompt="a cat", **size, seed=1, adapters=adapters)
            picture = GalleryPicture(
                id=self.gallery_id, created=datetime.now(UTC), recipe=recipe, flavour="embedded",
                model_hash="0" * 64, seconds=1,
                drawn_prompt="",
            )  # fmt: skip
            self.context.gallery.add(png(), picture)
        self.source = self.context.gallery.sources.add(png())
        if not (self.dataset / "a.png").exists() or not (self.dataset / "a.txt").exists():
            self.dataset.mkdir(parents=True, exist_ok=True)
            (self.dataset / "a.png").write_bytes(png())
            (self.dataset / "a.txt").write_text("a cat")
        for folder in (self.config.home / "datasets").iterdir():
            if folder != self.dataset:
                shutil.rmtree(folder)
        if not (self.config.home / "adapters" / "ink" / "latest").exists():
            storage, weights = open_storage(self.config.adapters_uri), small()
            manifest = publish_lora(storage, "ink", draft_of(weights, self._flavour, origin="trained"), weights)
            set_latest(storage, "ink", manifest.version)
        jobs = self.context.training.jobs
        views = jobs.list()
        if len(views) > _MOST_JOBS or all(view.job.id != getattr(self, "job_id", "") for view in views):
            for view in views:
                shutil.rmtree(self.config.home / "jobs" / view.job.id, ignore_errors=True)
            self.job_id = self._submit()
        self.client.run(self.context.generations.close())

    def _submit(self) -> str:
        config = TrainConfig(instance_data_dir=str(self.dataset), adapter_name="ink", model_flavour="embedded")
        return str(self.context.training.jobs.submit(config, name="ink", executor="local").id)


def openapi(app: FastAPI) -> dict[str, Any]:
    """Return an OpenAPI document of the studio, which it does not publish itself."""
    return get_openapi(title="studio", version="0", routes=app.routes)


def routes(app: FastAPI) -> list[tuple[str, str]]:
    """Return method and path of each route."""
    found = [(method.upper(), path) for path, methods in openapi(app)["paths"].items() for method in methods]
    return [
        *found,
        ("GET", "/static/{path}"),
        ("GET", "/{nothing}"),
        ("OPTIONS", "/generate"),
        ("PUT", "/jobs/{identity}"),
    ]


def known(studio: Studio) -> dict[str, list[str]]:
    """Return names of existing items by the field or path parameter that takes them."""
    return {
        "identity": [studio.job_id], "name": ["ink", "cats2", "ink@1"], "version": ["1"], "picture_id": [studio.gallery_id],
        "digest": [studio.source],
        "like": [studio.gallery_id], "before": [studio.gallery_id, "zzz"], "action": ["stop", "kill", "resume",
        "delete", "pin", "unpin"],
        "path": [str(studio.dataset), str(studio.config.home / "root"), "validation/x.png", "studio.css"],
        "key": ["a.png", "validation/cat.png"], "dataset": [str(studio.dataset)], "job": [studio.job_id],
        "seen": ["", "ink", "0"],
        "adapter": ["ink", "ink@1"], "scale:ink": ["1", "nan", "-2"], "language": ["zh", "en"],
        "theme": ["dark"], "caption": ["a dog"],
        "instance_data_dir": [str(studio.dataset)], "adapter_name": ["ink"], "model_flavour": ["embedded"],
        "executor": ["local"],
        "prompt": ["a cat"], "num_images": ["1"], "width": ["64"], "page": ["1"], "caption_strategy": ["csv",
        "json"], "state": ["queued"],
        "after": ["0"], "flavour": ["embedded", "dev"], "resolution": ["128", "1024x1024,64x64"], "trigger_words": ["a, b"],
    }  # fmt: skip


def field_names(app: FastAPI) -> list[str]:
    """Return every name that a route takes in its path, query or form."""
    described = [method for methods in openapi(app)["paths"].values() for method in methods.values()]
    queries = {parameter["name"] for method in described for parameter in method.get("parameters", ())}
    forms = {
        "prompt",
        "negative_prompt",
        "width",
        "height",
        "steps",
        "guidance_scale",
        "seed",
        "num_images",
        "strength",
        "left",
        "mask",
        "picture",
        "adapter",
        "scale:ink",
    }
    others = {
        "path",
        "key",
        "caption",
        "name",
        "token",
        "language",
        "theme",
        "executor",
        "submitted",
        "plan_for",
        "trigger_words",
    }
    return sorted({*queries, *forms, *others, *fields()})
