"""Jobs in shared storage: they outlive their server, and any replica answers for them."""
