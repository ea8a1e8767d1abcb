"""What picture files say about their origin: labels, signatures, and the settings of both."""
