"""The recipe of the embedded model: emoji and their names in, a bilingual LongCat-Image of 15 M parameters out.

Stages, each of which writes into ``build/embedded/`` and is skipped when its result is there::

    concepts -> tokenizer -> vae -> text_encoder -> transformer -> decoder -> assemble -> evaluate

Run all of them with ``make embedded``; npm brings the data.
"""
