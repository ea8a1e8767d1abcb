"""The ratios that the documentation quotes, and their guard."""
