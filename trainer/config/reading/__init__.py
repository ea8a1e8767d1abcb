"""Reading of a configuration: files in any encoding, JSON text, assignments of flags and environment, paths, sizes."""
