"""Faults on purpose: a server is killed, stopped, starved and lied to under load, and every reply is checked."""
