"""Make the demo dataset: draw every thing and write its caption."""

import argparse
from pathlib import Path

from recipes.ink import pictures


def main() -> None:
    """Draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, default=Path("build/ink"), help="folder of the downloaded package")
    parser.add_argument("--output", type=Path, default=Path("examples/ink/pictures"), help="folder of the pictures")
    arguments = parser.parse_args()
    pictures.make(arguments.build, arguments.output)
    print(f"{len(list(arguments.output.glob('*.png')))} pictures with captions in {arguments.output}")


if __name__ == "__main__":
    main()
