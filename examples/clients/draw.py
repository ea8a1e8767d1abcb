"""Draw with ``lithograph.Client``: a picture, progress, a job. Run it beside ``make serve``: ``python draw.py [URL]``."""

import sys

import lithograph
from service.wire.events import ResultEvent, StepEvent


def main(url: str) -> None:
    """Three ways to get a picture."""
    with lithograph.Client(url) as client:
        apple = client.generate("a red apple", seed=1)
        apple.images[0].save("apple.png")
        print("apple.png", apple.request.seed, f"{apple.timings.denoise_seconds:.1f} s")

        for event in client.stream("一只猫，蓝色背景", seed=2, num_images=2):
            match event:
                case StepEvent():
                    print(f"picture {event.image}: step {event.step} of {event.steps}", end="\r")
                case ResultEvent():
                    for i, image in enumerate(event.images):
                        image.save(f"cat-{i}.png")
        print("cat-0.png, cat-1.png                ")

        job = client.submit("a rocket", steps=30)  # returns at once
        client.wait(job).images[0].save("rocket.png")
        print("rocket.png", client.job(job).status)

        try:
            client.generate("a red apple", width=100)
        except lithograph.RequestError as error:
            print("refused:", error)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
