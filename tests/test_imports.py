"""Who may import whom: the rules of the architecture, held against every file."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("lithograph", "longcat", "service", "trainer", "studio", "loadtest", "recipes")
HTTP = {"fastapi", "litserve", "starlette", "uvicorn"}
FORBIDDEN = {
    "longcat": {"service", "trainer", "studio", "lithograph", "loadtest", "recipes", "kubernetes"} | HTTP,
    "service": {"trainer", "studio", "lithograph", "loadtest", "recipes", "kubernetes"},
    "trainer": {"service", "studio", "lithograph", "loadtest", "recipes", "kubernetes"} | HTTP,
    "studio": {"service", "loadtest", "recipes", "litserve", "torch"},
    "lithograph": {"loadtest", "recipes", "torch", "litserve"},
    "loadtest": {"lithograph", "longcat", "service", "trainer", "studio", "recipes"},
    "recipes": {"service", "trainer", "studio"},
}


READ_BY_THE_STUDIO = (
    "atomic", "caption_files", "config", "config_file", "dataset", "dataset_config", "inventory", "outcome",
    "pictures", "planning", "report", "run_record", "scanning",
)  # fmt: skip
"""Of the trainer. They need no torch."""


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", [package for package in OURS if (ROOT / package).exists()])
def test_packages_import_only_what_they_may(package: str) -> None:
    assert files(package)
    for path in files(package):
        tops = {name.partition(".")[0] for name in imported(path)}
        assert not tops & FORBIDDEN[package], path


def test_only_the_http_surface_imports_litserve() -> None:
    users = {
        p.relative_to(ROOT).as_posix() for p in files("service") if any(n.startswith("litserve") for n in imported(p))
    }
    assert users == {"service/api.py"}


@pytest.mark.parametrize(
    "name",
    [
        "adapter_cache.py", "engine.py", "inline_executor.py", "orders.py", "prompts.py", "registry.py", "renderer.py",
        "slots.py", "timeline.py", "turns.py", "warm_up.py",
    ],
)  # fmt: skip
def test_the_engine_knows_no_http(name: str) -> None:
    tops = {top.partition(".")[0] for top in imported(ROOT / "service" / name)}
    assert not tops & HTTP
    assert name == "renderer.py" or "service.schema" not in imported(ROOT / "service" / name)


def test_only_entry_points_touch_the_environment() -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for package in OURS
        for path in files(package)
        if any(text in path.read_text(encoding="utf-8") for text in ("os.environ", "os.getenv", "getenv("))
    }
    assert users == {"lithograph/__main__.py", "service/commands.py", "trainer/commands.py"}


def test_http_processes_never_import_torch() -> None:
    code = (
        "import sys, pathlib\n"
        "from longcat.flavour import resolve\n"
        "from service.api import GenerateAPI, Server\n"
        "from service.config import ModelConfig, ServiceConfig\n"
        "from service.limits import Limits\n"
        "flavour = resolve('embedded')\n"
        "config = ServiceConfig(model=ModelConfig())\n"
        "Server(GenerateAPI(config, flavour, Limits.of_model(flavour.settings)))\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_what_the_web_page_reads_of_the_trainer_needs_no_torch() -> None:
    imports = "; ".join(f"import trainer.{module}" for module in READ_BY_THE_STUDIO)
    code = f"import sys; import studio.commands; {imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_studio_knows_the_service_by_its_client_and_the_trainer_by_what_it_writes() -> None:
    allowed = {f"trainer.{module}" for module in READ_BY_THE_STUDIO} | {"lithograph.answers", "lithograph.client"}
    for path in files("studio"):
        for name in imported(path):
            if name.startswith(("trainer.", "lithograph.")):
                assert any(name == module or name.startswith(f"{module}.") for module in allowed), (path, name)


def test_importing_does_nothing() -> None:
    # No thread, no log handler, no environment: importing every module of the product leaves no trace in the process.
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in ("longcat", "service", "trainer", "studio", "lithograph")
        for path in files(package)
        if path.name != "__init__.py"
    ]
    code = (
        "import importlib, logging, threading, os\n"
        f"[importlib.import_module(m) for m in {modules!r}]\n"
        "names = [t.name for t in threading.enumerate() if t is not threading.main_thread()]\n"
        "ours = [n for n in ('lithograph', 'longcat', 'service', 'studio', 'trainer') if logging.getLogger(n).handlers]\n"
        "assert not names and not ours and 'PROMETHEUS_MULTIPROC_DIR' not in os.environ, (names, ours)"
    )
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
