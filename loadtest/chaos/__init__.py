"""Fault injection: a server under load is killed, stopped and starved of resources, and every reply is checked."""
