"""Between the HTTP process and the engine processes: commands, their replies, and the choice of an engine."""
