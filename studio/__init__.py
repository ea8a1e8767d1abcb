"""The studio: a web page for people who do not want a terminal. It talks to the service over HTTP; no torch."""
