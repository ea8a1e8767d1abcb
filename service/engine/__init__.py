"""The engine of one device: the step loop, its scheduler, its prompts and its adapter slots. No HTTP, no JSON."""
