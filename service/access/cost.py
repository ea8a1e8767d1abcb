"""The cost of pictures in pixel-steps, by which keys share a server.

A pixel-step is one pixel of one row in one denoising step: a picture costs its width times its height times the steps that
are made, twice with guidance, which takes two rows, and twice with a model that edits, whose rows hold the reference.
Tokens are proportional to pixels, and the time of a step, about, to its tokens.
"""

from service.wire.schema import ResolvedRequest


def pixel_steps_of(request: ResolvedRequest) -> int:
    """Return the pixel-steps of all images of a request."""
    rows = request.num_images * (2 if request.guidance_scale > 1 else 1)
    return request.pixels_per_row * rows * request.denoising_steps
