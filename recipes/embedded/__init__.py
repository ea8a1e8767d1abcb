"""The recipe of the embedded model: trains a bilingual LongCat-Image of 15 M parameters on emoji and their names.

Stages, each of which writes into ``build/embedded/`` and is skipped if its result exists::

    concepts -> tokenizer -> vae -> text_encoder -> transformer -> decoder -> assemble -> evaluate

Run all of them with ``make embedded``; npm brings the data.
"""
