"""How the embedded model was made, so that anyone can make it again. Never imported by the product."""
