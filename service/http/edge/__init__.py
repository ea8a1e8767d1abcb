"""What stands between a connection and an endpoint: limits of connections and requests, addresses, origins, request ids."""
