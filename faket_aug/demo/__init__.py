"""The demo's round trip, without any data."""
