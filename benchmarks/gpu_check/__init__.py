"""The GPU check: one command that tests and measures Lithograph on a CUDA GPU, in three parts of at most ten minutes.

``__main__`` starts a process for each group of checks (``groups``), ``checks`` runs and records them, ``report`` shows them.
"""
