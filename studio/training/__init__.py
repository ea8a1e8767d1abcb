"""The Train page: a form of the configuration, and the memory plan beside it."""
