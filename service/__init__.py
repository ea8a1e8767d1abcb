"""A request in, an image out: LongCat-Image behind LitServe."""
