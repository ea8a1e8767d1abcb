"""Draw several pictures at once with ``lithograph.AsyncClient``: the service makes their steps together."""

import asyncio
import sys

import lithograph

PROMPTS = ("a red apple", "一只猫", "a rocket on a black background", "一辆车")


async def main(url: str) -> None:
    """Generate one picture of each prompt."""
    async with lithograph.AsyncClient(url) as client:
        drawn = await asyncio.gather(*(client.generate(prompt, seed=1) for prompt in PROMPTS))
    for i, result in enumerate(drawn):
        result.images[0].save(f"{i}.png")
        print(f"{i}.png", result.prompt)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"))
