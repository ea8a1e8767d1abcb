"""The layer between connections and endpoints: limits of connections and requests, paths, origins, request ids."""
