"""Models that the tests run: small random ones, built on the spot, and a real one from a registry."""
