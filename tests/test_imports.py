"""Import rules of the architecture, by folder, checked on every file."""

import ast
import functools
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

PRODUCT = ("lithograph", "longcat", "service", "studio", "trainer")
OURS = (*PRODUCT, "benchmarks", "loadtest", "recipes")
HTTP = ("fastapi", "litserve", "starlette", "uvicorn")

LONGCAT = ("longcat.checksum", "longcat.errors", "longcat.logs", "longcat.problem", "longcat.validation")
"""Modules that every folder of the package may import."""

ALLOWED = {
    "longcat": ("longcat",),
    "longcat.model": (*LONGCAT, "longcat.model"),
    "longcat.storage": (*LONGCAT, "longcat.storage"),
    "longcat.adapter": (*LONGCAT, "longcat.model", "longcat.storage", "longcat.adapter"),
    "longcat.sampling": (*LONGCAT, "longcat.model", "longcat.storage", "longcat.adapter", "longcat.sampling"),
    "longcat.process": ("longcat.process",),
    "service": ("longcat", "service"),
    "service.access": ("longcat", "service.access", "service.observability", "service.wire"),
    "trainer": ("longcat", "trainer"),
    "studio": (
        "longcat", "studio", "lithograph.client", "lithograph.kubernetes", "service.http.edge",
        "service.wire.editing", "service.wire.picture", "service.wire.provenance",
        "trainer.config", "trainer.data", "trainer.memory", "trainer.record",
    ),
    "lithograph.client": ("longcat", "lithograph.client", "service.wire"),
    "lithograph.kubernetes": ("longcat", "lithograph.kubernetes", "trainer.config", "trainer.record.outcome"),
    "lithograph": ("longcat", "lithograph", "service", "trainer"),
    "recipes": ("longcat", "lithograph", "recipes"),
    "loadtest": ("loadtest",),
    "benchmarks": (
        "benchmarks", "lithograph.client", "loadtest", "longcat", "service.config", "service.engine", "service.renderer",
        "service.wire", "studio.generate", "trainer",
    ),
}  # fmt: skip
"""Our folders that each folder may import. The longest matching name applies."""

FORBIDDEN = {
    "longcat": (*HTTP, "kubernetes"),
    "service": ("kubernetes",),
    "service.engine": (*HTTP, "json", "service.http"),
    "service.adapters": (*HTTP, "json", "service.http"),
    "service.http": ("litserve", "torch", "service.engine", "service.adapters"),
    "service.wire": ("litserve", "torch", "service.engine", "service.adapters", "service.http"),
    "trainer": (*HTTP, "kubernetes"),
    "studio": ("litserve", "torch"),
    "lithograph": ("litserve", "torch"),
}
"""Modules that each folder may not import, whatever applies to its parents."""

WITHOUT_TORCH = (
    "longcat.model.shape", "longcat.storage",
    "service.wire", "service.http", "service.process", "trainer.config", "trainer.data", "trainer.record",
    "studio", "lithograph.client", "lithograph.kubernetes",
)  # fmt: skip
"""Folders whose import must not import torch, even indirectly."""
PRELOAD = "service.process.preload"
"""The one module whose import has an effect: it imports torch for the fork server, which alone imports it."""


@functools.cache
def modules() -> dict[str, Path]:
    """Return all our modules by full name."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in OURS
        for path in sorted((ROOT / package).rglob("*.py"))
    }


@functools.cache
def imported(module: str) -> frozenset[str]:
    """Return the full names of the modules that a module imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (members & modules().keys()) or {node.module}
    return frozenset(names)


def within(module: str, folders: tuple[str, ...]) -> bool:
    return any(module == folder or module.startswith(f"{folder}.") for folder in folders)


def inside(folder: str) -> list[str]:
    return [module for module in modules() if within(module, (folder,))]


def test_modules_import_only_the_folders_that_they_may() -> None:
    for module in modules():
        rules = [folder for folder in ALLOWED if within(module, (folder,))]
        if not rules:
            continue
        allowed = ALLOWED[max(rules, key=len)]
        ours = {name for name in imported(module) if name.partition(".")[0] in OURS and name != "lithograph"}
        assert not {name for name in ours if not within(name, allowed)}, module


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_folders_keep_out_what_is_not_theirs(folder: str) -> None:
    assert inside(folder)
    for module in inside(folder):
        assert not {name for name in imported(module) if within(name, FORBIDDEN[folder])}, module


def test_nothing_imports_a_command() -> None:
    commands = tuple(module for module in modules() if module.rpartition(".")[2] == "commands")
    assert commands
    for module in inside("service") + inside("trainer") + inside("studio") + inside("longcat"):
        if within(module, commands):
            continue
        assert not {name for name in imported(module) if within(name, commands)}, module


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: {name for name in imported(module) if name in modules()} for module in modules()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_no_folders_import_each_other_in_a_circle() -> None:
    # The folders of a package, each with what is below it. Modules beside them belong to the package as a whole.
    folders = {path.parent.relative_to(ROOT).parts[:2] for path in modules().values()}
    folder_of = {module: folder for module in modules() if (folder := tuple(module.split(".")[:2])) in folders}
    graph: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for module, folder in folder_of.items():
        others = {folder_of[name] for name in imported(module) if name in folder_of} - {folder}
        graph.setdefault(folder, set()).update(other for other in others if other[0] == folder[0])
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_no_two_classes_have_one_name() -> None:
    places: dict[str, str] = {}
    for module, path in modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):  # private names are a file's own
                assert places.setdefault(node.name, module) == module, node.name


def test_litserve_is_imported_in_one_module() -> None:
    users = [module for module in inside("service") if any(within(name, ("litserve",)) for name in imported(module))]
    assert users == ["service.process.server"]


def test_packages_fit_on_a_screen() -> None:
    for folder in {path.parent for path in modules().values()}:
        beside = {"__init__.py", "__main__.py", "__pycache__", "README.md"}
        beside |= {"static", "templates"} if folder == ROOT / "studio" else set()
        children = {path.name for path in folder.iterdir() if not path.name.startswith(".")} - beside
        assert len(children) <= 12, folder


def test_only_commands_and_starts_of_processes_touch_the_environment() -> None:
    users = {
        module
        for package in (*PRODUCT, "recipes", "loadtest")
        for module in inside(package)
        if any(text in modules()[module].read_text(encoding="utf-8") for text in ("os.environ", "getenv("))
    }
    commands = {"lithograph.__main__", "service.commands", "trainer.commands.configuration"}
    assert users == commands | {"service.process.engine_start", "trainer.loop.launch"}


@pytest.mark.parametrize("folder", WITHOUT_TORCH)
def test_folders_without_torch_bring_none(folder: str) -> None:
    imports = "; ".join(f"import {module}" for module in inside(folder) if module != PRELOAD)
    code = f"import sys; {imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("module", ["service.commands", "trainer.commands.training", "lithograph.generation.generate"])
def test_a_command_imports_no_model_library_before_it_runs(module: str) -> None:
    """``generate --server`` and ``--help`` need none, and ``serve`` starts its engines' imports first."""
    libraries = {"diffusers", "huggingface_hub", "litserve", "torch", "transformers"}
    code = f"import sys, {module}; print(*{libraries} & sys.modules.keys())"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split() == []


def test_http_processes_never_import_torch() -> None:
    code = (
        "import sys, pathlib\n"
        "from longcat.model.flavour import resolve\n"
        "from service.process.server import GenerateAPI, Server\n"
        "from service.config import ModelConfig, ServiceConfig\n"
        "from service.wire.limits import Limits\n"
        "flavour = resolve('embedded')\n"
        "config = ServiceConfig(model=ModelConfig())\n"
        "Server(GenerateAPI(config, flavour, Limits.of_model(flavour)))\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_importing_does_nothing() -> None:
    # Importing every module of the product leaves no thread, log handler or environment variable in the process.
    names = [module for package in PRODUCT for module in inside(package) if not module.endswith("__main__")]
    code = (
        "import importlib, logging, threading, os\n"
        f"[importlib.import_module(m) for m in {names!r}]\n"
        "names = [t.name for t in threading.enumerate() if t is not threading.main_thread()]\n"
        "ours = [n for n in ('lithograph', 'longcat', 'service', 'studio', 'trainer') if logging.getLogger(n).handlers]\n"
        "assert not names and not ours and 'PROMETHEUS_MULTIPROC_DIR' not in os.environ, (names, ours)"
    )
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
