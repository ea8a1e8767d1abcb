"""The recipe of the studio's screenshots in README and docs."""
