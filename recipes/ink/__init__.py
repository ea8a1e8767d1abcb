"""The recipe of the demo dataset: emoji printed in black ink on white, with captions in English and Chinese.

``python -m recipes.ink`` draws ``examples/ink/pictures`` again; npm brings the drawings.
"""
