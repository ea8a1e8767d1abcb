"""``python -m recipes.dashboard``: minutes of load and a training, then docs/dashboard-*.png."""

import sys
import tempfile
import time
from pathlib import Path

import click

from longcat.model.flavour import resolve
from longcat.process.port import free_port
from longcat.storage.opening import open_storage
from recipes.dashboard import board, picture, workload
from recipes.dashboard.prometheus import running

ROOT = Path(__file__).parent.parent.parent
PICTURES = {
    "service": ("At a glance", "Requests"),
    "engine": ("Engine", "Adapters"),
    "training": ("Training",),
}
_POINTS = 240


@click.command()
@click.option("--minutes", type=float, default=4.0, show_default=True, help="Minutes of load.")
@click.option("--train-steps", type=int, default=1000, show_default=True, help="Steps of the training meanwhile.")
@click.option("--people", type=int, default=6, show_default=True, help="Number of clients at once.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), default=ROOT / "docs", show_default=True)
def main(minutes: float, train_steps: int, people: int, output: Path) -> None:
    """Draw the dashboard from the replies of a real Prometheus."""
    service_port, trainer_port, prometheus_port = (free_port() for _ in range(3))
    rules = ROOT / "deploy" / "prometheus" / "rules.yaml"
    targets = {"lithograph": f"127.0.0.1:{service_port}", "lithograph-trainer": f"127.0.0.1:{trainer_port}"}
    with tempfile.TemporaryDirectory(prefix="lithograph-") as temporary:
        folder = Path(temporary)
        storage = open_storage((folder / "adapters").as_uri())
        options = [
            "--config", str(ROOT / "examples" / "ink" / "config.json"), f"instance_data_dir={ROOT}/examples/ink/pictures",
            f"output_dir={folder / 'run'}", f"cache_dir={folder / 'cache'}", "publish_to=" + storage.uri,
            "validation_num_inference_steps=4",
            f"checkpointing_steps={max(1, train_steps // 5)}", f"validation_steps={max(1, train_steps // 2)}",
        ]  # fmt: skip
        seed = folder / "seed"
        with running(folder, prometheus_port, rules, targets) as prometheus:
            with workload.training(
                folder, free_port(), [*options, f"output_dir={seed}", "max_train_steps=5", "validation_disable=true"]
            ) as first:
                first.wait()
            workload.publish_styles(storage, seed / "adapter.safetensors", resolve("embedded"))
            with workload.serving(folder, service_port, storage) as service:
                begin = time.time()
                with (
                    workload.training(folder, trainer_port, [*options, f"max_train_steps={train_steps}"]) as training,
                    workload.StyleLoad(service.url, people=people, styles=workload.STYLES),
                ):
                    time.sleep(minutes * 30)
                    workload.publish_torn(storage)
                    time.sleep(minutes * 30)
                    if training.poll() is None:
                        click.echo("the training still runs: the picture shows its progress", err=True)
                end = time.time()
            step = max(1.0, round((end - begin) / _POINTS))
            rows = board.rows(rate_seconds=max(15.0, 4 * step))
            for name, titles in PICTURES.items():
                file = output / f"dashboard-{name}.png"
                picture.draw(
                    {title: rows[title] for title in titles},
                    lambda query: prometheus.query_range(query, begin=begin, end=end, step_seconds=step),
                    (begin, end),
                    file,
                )
                click.echo(f"{file}: {file.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    sys.exit(main())
