"""Reading requests: bodies to models, outside the event loop."""
