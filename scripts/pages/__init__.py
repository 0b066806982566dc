"""Pages of the documentation that are generated, one module each; scripts/make_docs.py writes them."""
