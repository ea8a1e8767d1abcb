"""The origin of picture files, in the files: labels, signatures, and the settings of both."""
