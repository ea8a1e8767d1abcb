"""Draw with OpenAI's own client (``pip install openai``): only the address is another."""

import base64
import sys
from pathlib import Path

from openai import OpenAI
from openai.types import ImageGenCompletedEvent


def main(url: str) -> None:
    """Generate a picture, and one with its previews."""
    client = OpenAI(base_url=f"{url}/v1", api_key="not needed")
    print("models:", ", ".join(model.id for model in client.models.list()))

    apple = client.images.generate(prompt="a red apple", size="128x128", extra_body={"seed": 1, "guidance_scale": 3})
    assert apple.data
    Path("openai-apple.png").write_bytes(base64.b64decode(apple.data[0].b64_json or ""))

    for event in client.images.generate(prompt="一只猫", stream=True, partial_images=2):
        name = "cat.png" if isinstance(event, ImageGenCompletedEvent) else f"cat-{event.partial_image_index}.jpg"
        Path(f"openai-{name}").write_bytes(base64.b64decode(event.b64_json))
        print(f"openai-{name}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
