"""The inference service: LongCat-Image behind LitServe."""
