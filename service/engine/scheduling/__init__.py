"""The order in which images of different keys, priorities and sizes get the rows of the forwards."""
