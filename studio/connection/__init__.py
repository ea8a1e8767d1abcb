"""The connection to the service that generates, and a service of the studio's own."""
