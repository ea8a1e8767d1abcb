"""The baseline: a plain server of LitServe, diffusers and peft (a module to run).

``LitAPI.setup`` loads ``LongCatImagePipeline`` and every adapter (``load_lora_adapter``); a request switches to its
adapter (``set_adapters``) and calls the pipeline with its prompt, steps, guidance and seed. With ``--max-batch-size``
over 1, LitServe collects requests, and those with equal adapter, steps, guidance and size share a pipeline call.

Two settings make it do the same work as the service and generate the same pictures: prompts are padded to the model's own
length (``lithograph.json``; 512 without one), and the text encoder gets the position ids of the model's training
(transformers 4's), because transformers 5 numbers pads differently. ``POST /generate`` takes the service's JSON and
replies with ``image/png``.
"""

import argparse
import io
import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import litserve
from fastapi import Request, Response

_LONGCAT_PROMPT_TOKENS = 512
_QUEUE_TIMEOUT_SECONDS = 3600
"""Request timeout. LitServe's default, 30 s, would reject requests under overload and make the baseline look fast."""


@dataclass(frozen=True, kw_only=True)
class PipelineRequest:
    """One request; those with equal ``kind`` can share a pipeline call."""

    prompt: str
    seed: int
    kind: tuple[str | None, float, int, float, int, int]
    """Adapter, its scale, steps, guidance scale, width and height in px."""


class PipelineAPI(litserve.LitAPI):
    """LitServe's hooks around the pipeline."""

    def __init__(
        self, *, model: Path, adapters: Path | None, dtype: str, threads: int, max_batch_size: int, batch_timeout: float
    ) -> None:
        super().__init__(
            max_batch_size=max_batch_size,
            batch_timeout=batch_timeout if max_batch_size > 1 else 0,
            api_path="/generate",
        )
        self._model = model
        self._adapters = adapters
        self._dtype = dtype
        self._threads = threads
        self._batches = max_batch_size > 1
        self._active: tuple[str | None, float] = (None, 1.0)

    def setup(self, device: str) -> None:
        """Load model and adapters and generate a first picture."""
        import diffusers
        import torch
        import transformers

        for library in (diffusers, transformers):
            library.utils.logging.disable_progress_bar()
        torch.set_num_threads(self._threads)
        self._pipeline = diffusers.LongCatImagePipeline.from_pretrained(
            self._model, dtype=getattr(torch, self._dtype), text_processor=None
        ).to(device)
        self._pipeline.set_progress_bar_config(disable=True)
        self._pipeline.tokenizer_max_length = _prompt_tokens(self._model)
        self._pipeline.text_encoder.register_forward_pre_hook(_number_as_in_training, with_kwargs=True)
        for file in sorted(self._adapters.glob("*.safetensors")) if self._adapters else ():
            self._pipeline.transformer.load_lora_adapter(str(file), adapter_name=file.stem, use_safetensors=True)
            self._pipeline.transformer.disable_lora()
        self._pipeline.transformer.to(getattr(torch, self._dtype))  # adapters are loaded in their file's
        self._draw([PipelineRequest(prompt="warm-up", seed=0, kind=(None, 1.0, 2, 2.0, 128, 128))])

    def decode_request(self, request: Request) -> PipelineRequest:
        """Read the fields of the service's JSON that the baseline needs from the parsed body."""
        body: dict[str, Any] = dict(request)
        first, *others = body.get("adapters") or [{"name": None}]
        if others:
            raise ValueError("the baseline applies one adapter")
        return PipelineRequest(
            prompt=body["prompt"],
            seed=body["seed"],
            kind=(
                first["name"],
                first.get("scale", 1.0),
                body["steps"],
                body["guidance_scale"],
                body["width"],
                body["height"],
            ),
        )

    def predict(self, x: PipelineRequest | list[PipelineRequest]) -> Any:
        """Generate one picture, or a batch's pictures in its order."""
        if isinstance(x, PipelineRequest):
            return self._draw([x])[0]
        groups: defaultdict[tuple[object, ...], list[int]] = defaultdict(list)
        for i, order in enumerate(x):
            groups[order.kind].append(i)
        pictures: dict[int, Any] = {}
        for members in groups.values():
            pictures.update(zip(members, self._draw([x[i] for i in members]), strict=True))
        return [pictures[i] for i in range(len(x))]

    def batch(self, inputs: list[PipelineRequest]) -> list[PipelineRequest]:
        """Return the requests unchanged; ``predict`` groups them."""
        return inputs

    def unbatch(self, output: list[Any]) -> list[Any]:
        """Return the replies unchanged."""
        return output

    def encode_response(self, output: Any) -> Response:
        """Encode a PNG at the service's compression level."""
        buffer = io.BytesIO()
        output.save(buffer, "PNG", compress_level=1)
        return Response(buffer.getvalue(), media_type="image/png")

    def _draw(self, requests: Sequence[PipelineRequest]) -> list[Any]:
        import torch

        adapter, scale, steps, guidance_scale, width, height = requests[0].kind
        self._switch(adapter, scale)
        pictures: list[Any] = self._pipeline(
            [order.prompt for order in requests],
            negative_prompt=[""] * len(requests),
            width=width,
            height=height,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=[torch.Generator().manual_seed(order.seed) for order in requests],
            enable_prompt_rewrite=False,
        ).images
        return pictures

    def _switch(self, adapter: str | None, scale: float) -> None:
        if (adapter, scale) == self._active:
            return
        transformer = self._pipeline.transformer
        if adapter is None:
            transformer.disable_lora()
        else:
            transformer.enable_lora()
            transformer.set_adapters([adapter], [scale])
        self._active = (adapter, scale)


def _prompt_tokens(model: Path) -> int:
    settings = model / "lithograph.json"
    if not settings.exists():
        return _LONGCAT_PROMPT_TOKENS
    tokens: int = json.loads(settings.read_text(encoding="utf-8")).get("max_prompt_tokens", _LONGCAT_PROMPT_TOKENS)
    return tokens


def _number_as_in_training(
    _: object, arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return position ids (3, B, S) as transformers 4.57 numbers padded text: a running count of real tokens; pads at 1."""
    mask_BS = options["attention_mask"]
    positions_BS = (mask_BS.long().cumsum(-1) - 1).masked_fill(mask_BS == 0, 1)
    return arguments, options | {"position_ids": positions_BS.unsqueeze(0).expand(3, -1, -1)}


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", type=Path, required=True, help="a directory that LongCatImagePipeline reads")
    parser.add_argument("--adapters", type=Path, help="a directory of NAME.safetensors")
    parser.add_argument("--device", default="cpu", help="cpu, or a CUDA device: cuda or cuda:N")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of each worker")
    parser.add_argument("--workers-per-device", type=int, default=1)
    parser.add_argument("--max-batch-size", type=int, default=1)
    parser.add_argument("--batch-timeout", type=float, default=0.05, help="seconds to wait for a batch to fill")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    api = PipelineAPI(
        model=arguments.model,
        adapters=arguments.adapters,
        dtype=arguments.dtype,
        threads=arguments.threads,
        max_batch_size=arguments.max_batch_size,
        batch_timeout=arguments.batch_timeout,
    )
    server = litserve.LitServer(
        api,
        accelerator="cpu" if arguments.device == "cpu" else "cuda",
        devices=[int(index)] if (index := arguments.device.partition(":")[2]) else 1,
        workers_per_device=arguments.workers_per_device,
        timeout=_QUEUE_TIMEOUT_SECONDS,
    )
    server.run(host="127.0.0.1", port=arguments.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
