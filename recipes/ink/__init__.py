"""The recipe of the demo data set: emoji printed in black ink on white, with captions in English and Chinese.

``python -m recipes.ink`` draws ``examples/ink/pictures`` again; npm brings the drawings.
"""
