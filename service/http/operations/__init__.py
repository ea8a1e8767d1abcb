"""Endpoints for the operators of a server, and the page of its documentation."""
